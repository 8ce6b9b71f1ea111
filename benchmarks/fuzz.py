"""Damaged inputs through the data stages: nothing stops, and each is accounted for, in documents/ or dropped/ with its reason.

    python -m benchmarks.fuzz [--inputs 10000] [--seed 0] [--pages PAGES.parquet]

Nine in ten are HTML: cut, bits flipped, nested up to 100,000 deep, huge attributes, wrong encodings,
nulls, spliced, random bytes. The rest are WARC, WET, JSON lines and Parquet files, packed or not, of a few records each, cut or
with bits flipped. Sound pages come from PAGES.parquet where it is there, else from the made ones. Counted: files that no row
tells of, and how the rest was decided.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from benchmarks.pages import DEFAULT
from benchmarks.report import publish
from ninthsky.config.load import parse_settings
from ninthsky.data.made import made_pages
from ninthsky.data.stages import STAGES
from ninthsky.run.engine import run_stages
from ninthsky.run.folder import RunFolder, write_json
from ninthsky.run.progress import PlainScreen

RECORDS = 4  # of a file that holds several
DEEPEST = 100_000
_DEEP_SHARE = 0.02  # of the HTML inputs: each costs a tenth of a second
_ENCODINGS = ("utf-8", "gb18030", "big5", "shift_jis", "euc-kr", "koi8-r", "windows-1252", "utf-16", "utf-32", "utf-7")


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 3, 30, len(out) // 50 + 1])):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _nested(data: bytes, rng: random.Random) -> bytes:
    depth = rng.choice([100, 2_000]) if rng.random() > _DEEP_SHARE * 8 else DEEPEST
    tag = rng.choice(["div", "span", "b", "ul><li", "table><tr><td", "a", "p", "svg", "template", "object", "font"])
    at = rng.randrange(len(data) + 1)
    return data[:at] + f"<{tag}>".encode() * depth + data[at:]


def _attribute(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice([10_000, 1_000_000])
    quote = rng.choice([b'"', b"'", b""])
    at = max(data.find(b"<p"), data.find(b"<div"), 0)
    many = b" a=1" * (size // 20) if rng.random() < 0.3 else b""
    return (
        data[:at]
        + b"<div class="
        + quote
        + rng.choice([b"x", b"nav ", b"<p>", b"&amp;"]) * (size // 4)
        + quote
        + many
        + b">"
        + data[at:]
    )


def _recoded(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    declared, real = rng.choice(_ENCODINGS), rng.choice(_ENCODINGS)
    return f"<html><head><meta charset={declared}></head>{text}".encode(real, "replace")


def _nulls(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 50, len(out) // 20 + 1])):
        out.insert(rng.randrange(len(out) + 1), 0) if rng.random() < 0.1 or not out else out.__setitem__(
            rng.randrange(len(out)), 0
        )
    return bytes(out)


def _spliced(data: bytes, rng: random.Random) -> bytes:
    first, second = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[second:] + data[first:second] + data[: first // 2]


def _noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 7, 500, 20_000]))


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut, "flipped": _flip, "nested": _nested, "attribute": _attribute, "recoded": _recoded, "nulls": _nulls,
    "spliced": _spliced, "noise": _noise,
}  # fmt: skip


def _warc(pages: list[bytes], name: str, conversion: bool) -> bytes:
    out = b""
    for number, page in enumerate(pages):
        body = page if conversion else b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page
        kind = "conversion" if conversion else "response"
        what = "text/plain" if conversion else "application/http; msgtype=response"
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://{name}/{number}\r\nContent-Type: {what}\r\n"
        out += f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"
    return out


def container(kind: str, pages: list[bytes], name: str) -> bytes:
    """A sound file of a kind; its records are named after it."""
    if kind in ("warc", "wet"):
        return _warc(pages, name, kind == "wet")
    rows = [{"id": f"{name}/{number}", "html": page.decode("utf-8", "replace")} for number, page in enumerate(pages)]
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def packed(data: bytes, packing: str) -> bytes:
    if packing == ".gz":
        return gzip.compress(data, 1)
    return zstandard.compress(data, 1) if packing == ".zst" else data


def make(folder: Path, pages: list[bytes], inputs: int, seed: int) -> dict[str, str]:
    """Writes `inputs` damaged files; name -> what was done to it."""
    made: dict[str, str] = {}
    for number in range(inputs):
        rng = random.Random(f"{seed}/{number}")
        if number % 10:
            damage = rng.choice(sorted(DAMAGES))
            name, data = f"{number:06d}.html", DAMAGES[damage](rng.choice(pages), rng)
        else:
            kind, packing = rng.choice(["warc", "wet", "jsonl", "parquet"]), rng.choice(["", ".gz", ".zst"])
            packing = "" if kind == "parquet" else packing
            name = f"{number:06d}.{kind}{packing}"
            damage = rng.choice(["cut", "flipped"])
            before = rng.random() < 0.3  # damaged before it was packed
            data = container(kind, [rng.choice(pages) for _ in range(RECORDS)], name)
            data = packed(DAMAGES[damage](data, rng), packing) if before else DAMAGES[damage](packed(data, packing), rng)
            damage = f"{kind}{packing} {damage}"
        (folder / name).write_bytes(data)
        made[name] = damage
    return made


def sound_pages(source: Path, most: int = 60_000) -> list[bytes]:
    """Pages to damage, small ones, so that ten thousand take minutes."""
    if not source.exists():
        return [page.html for page in made_pages()]
    return [html for html in pq.read_table(source, columns=["html"]).column("html").to_pylist() if len(html) < most]


def run(folder: Path, into: Path) -> tuple[dict[str, list[str]], Counter[str]]:
    """The stages `data.pages` and `data.corpus` over a folder: input file -> decisions of its records, and all reasons."""
    settings = parse_settings(f'size = "nano"\n[data]\nsources = [{json.dumps(str(folder))}]\nmax_pages = 1000000\n', "fuzz")
    run_folder = RunFolder(into)
    write_json(into / "settings.json", settings.model_dump(mode="json"))
    run_stages(run_folder, settings, [stage for stage in STAGES if stage.name in ("data.pages", "data.corpus")], PlainScreen())
    told: dict[str, list[str]] = {}
    reasons: Counter[str] = Counter()
    for kind in ("documents", "dropped"):
        for path in sorted((run_folder.stage("data.corpus") / kind).glob("*.parquet")):
            for row in pq.read_table(path).to_pylist():
                name = row["path"].removeprefix("http://").split("/")[0].split("#")[0]
                reason = f"{row['stage']}: {row['rule']}" if kind == "dropped" else "kept"
                told.setdefault(name, []).append(reason)
                reasons[reason] += 1
    return told, reasons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pages", type=Path, default=DEFAULT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, into = Path(name) / "inputs", Path(name) / "run"
        folder.mkdir()
        into.mkdir()
        made = make(folder, sound_pages(given.pages), given.inputs, given.seed)
        began = time.monotonic()
        told, reasons = run(folder, into)
        seconds = time.monotonic() - began
    missing = sorted(set(made) - set(told))
    table: list[list[object]] = [[f"{reason}", count, ""] for reason, count in reasons.most_common()]
    by_damage = Counter(made.values())
    for damage, count in sorted(by_damage.items()):
        lost = sum(1 for one in missing if made[one] == damage)
        table.append([f"input {damage}", count, f"{lost} not accounted for"])
    if missing:
        table.append(["not accounted for, the first", missing[0], made[missing[0]]])
    figures = {
        "fuzz_inputs": len(made),
        "fuzz_accounted": len(made) - len(missing),
        "fuzz_records": sum(reasons.values()),
        "fuzz_seconds": seconds,
    }
    publish("fuzz", table, figures, columns=("what", "count", "note"))


if __name__ == "__main__":
    main()
