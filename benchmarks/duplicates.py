"""Near duplicates: MinHash against rensa, its error, what is found of real texts that were edited, and a million documents.

    python -m benchmarks.duplicates [PAGES.parquet]        about 6 minutes
    python -m benchmarks.duplicates million SIZE WORDS     one size of the last part alone; WORDS is a text file

Both sides sketch the same texts with 112 permutations over shingles of five tokens and the same normalisation (NFKD, case
folding, accents and punctuation gone, Chinese by character): ours in its kernel, rensa's in Python as its users write it, since
rensa takes tokens; by the faster of its two ways, one by one or all in one call. They are timed by processor time, one thread
each, in turns. `plain` is rensa after `text.split()` alone. Edited copies are made of texts that nothing was fitted on; which
pairs are alike is decided by exact Jaccard similarity in Python.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from resiliparse.extract.html2text import extract_plain_text

from benchmarks.pages import pages_file
from benchmarks.peers import ROOT, Peer, interpreter
from benchmarks.report import median_interval, publish
from ninthsky.data.blocks import decode
from ninthsky.data.duplicates.find import find
from ninthsky.data.duplicates.minhash import PERMUTATIONS, SHINGLE, jaccard, signatures
from ninthsky.data.duplicates.normal import fold, tables
from ninthsky.data.duplicates.shard import leave, rank
from ninthsky.run.executor import Clock
from ninthsky.run.executor.local import Local

PEER = "rensa==0.5.0"
ROUNDS = 7
THRESHOLD = 0.8
SIZES = (125_000, 250_000, 500_000, 1_000_000)
SHARD = 10_000
WORKERS = 2
_CJK = "\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_NORMAL = f"""
import re, unicodedata
_TOKEN = re.compile(r"[{_CJK}]|[^\\W_{_CJK}]+")
_ACCENTS = re.compile("[\\u0300-\\u036f]")
def shingles(text):
    if not text.isascii():
        text = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text)))
    tokens = _TOKEN.findall(text.casefold())
    return [" ".join(tokens[i : i + 5]) for i in range(max(len(tokens) - 4, 1))]
"""
_PROGRAM = (
    _NORMAL
    + """
import json, struct, sys, time
from rensa import RMinHash
def plain(text):
    tokens = text.split()
    return [" ".join(tokens[i : i + 5]) for i in range(max(len(tokens) - 4, 1))]
def sketch(cut, texts):
    out = []
    for text in texts:
        one = RMinHash(num_perm=112, seed=42)
        one.update(cut(text))
        out.append(one)
    return out
def matrix(cut, texts):
    return RMinHash.digest_matrix_from_token_sets([cut(text) for text in texts], 112, 42)
while header := sys.stdin.buffer.read(4):
    texts, pairs = json.loads(sys.stdin.buffer.read(struct.unpack("<I", header)[0]))
    seconds = []
    for cut in (shingles, plain):
        both = []
        for way in (sketch, matrix):
            began = time.process_time()
            way(cut, texts)
            both.append(time.process_time() - began)
        seconds.append(min(both))
    sketches = sketch(shingles, texts)
    print(json.dumps([seconds, [sketches[a].jaccard(sketches[b]) for a, b in pairs]]), flush=True)
"""
)


def windows(texts: list[str], size: int) -> list[str]:
    """Pieces of texts, so that long ones do not count alone."""
    return [text[at : at + size] for text in texts for at in range(0, len(text), size) if len(text[at : at + size]) > size // 5]


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The definition, in Python and apart from the kernels."""
    tokens = re.findall(rf"[{_CJK}]|[^\W_{_CJK}]+", fold(text))
    return frozenset(tuple(tokens[i : i + SHINGLE]) for i in range(max(len(tokens) - SHINGLE + 1, 1)))


def like(one: frozenset[Any], other: frozenset[Any]) -> float:
    return len(one & other) / len(one | other)


def edited(text: str, language: str, rng: random.Random) -> str:
    """A copy as the web makes them: words replaced, dropped, doubled; a paragraph gone or new; another case; full width."""
    pieces = list(text) if language == "zh" else re.split(r"(?<=\s)", text)
    for _ in range(rng.choice((0, 1, 2, 4, 8, 16, 32))):
        at = rng.randrange(len(pieces))
        kind = rng.randrange(3)
        if kind == 0:
            pieces[at] = rng.choice("天地人和山水") if language == "zh" else f"{rng.choice(pieces).strip()} "
        elif kind == 1:
            pieces[at] = ""
        else:
            pieces.insert(at, rng.choice(pieces))
    copy = "".join(pieces)
    match rng.randrange(6):
        case 0:
            copy = copy.upper()
        case 1:
            copy = re.sub(r"[,.;:，。；：]", " ", copy)
        case 2:
            copy = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in copy)
        case 3:
            copy += "\n本文转载自网络，版权归原作者所有。" if language == "zh" else "\nRead the whole story on our site."
    return copy


def speed(texts: list[str], peer: Peer) -> tuple[list[list[Any]], dict[str, Any]]:
    """Megabytes per second, ours and rensa's, and how many times."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    message = json.dumps([texts, []]).encode()
    ratios: dict[str, list[float]] = {"minhash_over_rensa": [], "minhash_over_rensa_plain": []}
    ours_seconds, theirs_seconds = [], []
    for _ in range(ROUNDS):
        normal, plain = peer(message)[0]
        began = time.process_time()
        signatures(texts)
        mine = time.process_time() - began
        ratios["minhash_over_rensa"].append(normal / mine)
        ratios["minhash_over_rensa_plain"].append(plain / mine)
        ours_seconds.append(mine)
        theirs_seconds.append(normal)
    figures: dict[str, Any] = {"minhash_mb_per_s": size / float(np.median(ours_seconds))}
    rows = [["MinHash, MB/s, same normalisation", figures["minhash_mb_per_s"], size / float(np.median(theirs_seconds))]]
    for name, values in ratios.items():
        figures |= median_interval(values, name)
        rows.append([f"times rensa's speed{', rensa only splitting' if 'plain' in name else ''}", figures[name], 1.0])
    return rows, figures


def error(texts: list[tuple[str, str]], peer: Peer) -> tuple[list[list[Any]], dict[str, Any]]:
    """Mean absolute error of estimates, ours and rensa's, and what theory gives for 112 permutations."""
    rng = random.Random(11)
    both: list[str] = []
    exact = []
    for text, language in texts:
        copy = edited(text, language, rng)
        both += [text, copy]
        exact.append(like(shingles(text), shingles(copy)))
    truth = np.array(exact)
    found = signatures(both)
    ours = np.array([jaccard(found[i], found[i + 1]) for i in range(0, len(both), 2)])
    theirs = np.array(peer(json.dumps([both, [(i, i + 1) for i in range(0, len(both), 2)]]).encode())[1])
    # A normal deviate's mean absolute value is sqrt(2 / pi) of its deviation.
    theory = float(np.sqrt(2 / np.pi) * np.sqrt(truth * (1 - truth) / PERMUTATIONS).mean())
    figures = {
        "jaccard_error": float(abs(ours - truth).mean()), "jaccard_error_rensa": float(abs(theirs - truth).mean()),
        "jaccard_error_theory": theory, "jaccard_bias": float((ours - truth).mean()), "jaccard_pairs": len(truth),
    }  # fmt: skip
    rows = [
        [f"mean absolute error of {len(truth)} estimates (theory {theory:.4f})", figures["jaccard_error"],
         figures["jaccard_error_rensa"]],
        ["their bias", figures["jaccard_bias"], float((theirs - truth).mean())],
    ]  # fmt: skip
    return rows, figures


def recall(families: list[list[str]], name: str) -> tuple[list[list[Any]], dict[str, Any]]:
    """Pairs of a family at an exact similarity of .8 or more: how many end in one cluster; what goes without such a reason."""
    texts = [text for family in families for text in family]
    sets = [shingles(text) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        shards = []
        for start in range(0, len(texts), 128):
            part = texts[start : start + 128]
            shards.append(Path(folder, f"{start:05d}"))
            leave(shards[-1], range(len(part)), part, [rank(1.0, len(text)) for text in part], ["site"] * len(part))
        found = find(shards, Path(folder, "reduce"), THRESHOLD, 0, 0.1)
    cluster = list(range(len(texts)))
    for record in found.near:
        cluster[record["document"]] = int(record["survivor"])
    for record in found.equal:
        cluster[record["document"]] = cluster[record["survivor"]]
    at = 0
    truly = met = 0
    bands: dict[str, list[int]] = {".80-.85": [0, 0], ".85-.90": [0, 0], ".90-1": [0, 0]}
    for family in families:
        for one, other in combinations(range(at, at + len(family)), 2):
            similarity = like(sets[one], sets[other])
            if similarity >= THRESHOLD:
                together = cluster[one] == cluster[other]
                truly, met = truly + 1, met + together
                band = bands[".80-.85" if similarity < 0.85 else ".85-.90" if similarity < 0.9 else ".90-1"]
                band[0], band[1] = band[0] + 1, band[1] + together
        at += len(family)
    gone = [index for index in range(len(texts)) if cluster[index] != index]
    links = {int(record["document"]): int(record["link"]) for record in found.near}
    links |= {int(record["document"]): int(record["survivor"]) for record in found.equal}
    false = sum(like(sets[index], sets[links[index]]) < THRESHOLD for index in gone)
    chained = sum(like(sets[index], sets[cluster[index]]) < THRESHOLD for index in gone)
    figures = {
        f"{name}_pairs": truly, f"{name}_recall": met / max(truly, 1), f"{name}_dropped": len(gone),
        f"{name}_precision": 1 - false / max(len(gone), 1), f"{name}_chained": chained / max(len(gone), 1),
        **{f"{name}_recall_{band}": hit / count for band, (count, hit) in bands.items() if count},
    }  # fmt: skip
    rows = [
        [f"{name}: pairs above .8 found", figures[f"{name}_recall"], f"{met} of {truly}"],
        [f"{name}: dropped for a text that is .8 like it", figures[f"{name}_precision"], f"{len(gone) - false} of {len(gone)}"],
        [f"{name}: dropped below .8 to the survivor, through others", figures[f"{name}_chained"], f"{chained} of {len(gone)}"],
    ]
    return rows, figures


def _short_texts(number: int, vocabulary: str) -> list[str]:
    """Documents of 60 words of real pages, each with its site's footer; a fifth has an edited copy, some an equal one."""
    words = np.array(Path(vocabulary).read_text("utf-8").split(), object)
    rng = np.random.default_rng(number)
    texts: list[str] = []
    while len(texts) < SHARD:
        chosen = words[rng.integers(0, len(words), 60)]
        site = number % 50
        footer = f"\nAbout the paper of town {site}, its people and where they may be met on working days of the week"
        texts.append(" ".join(chosen) + footer)
        if rng.random() < 0.2:
            chosen[rng.integers(0, 60)] = "changed"
            texts.append(" ".join(chosen) + footer)
        if rng.random() < 0.05:
            texts.append(" ".join(chosen) + footer)
    return texts[:SHARD]


def make_shard(job: tuple[int, str, str], skip: dict[int, str], clock: Clock) -> float:
    """The map's task: returns the seconds without those that made the texts."""
    number, folder, vocabulary = job
    texts = _short_texts(number, vocabulary)
    began = time.process_time()
    ranks = [rank(1.0, len(text)) for text in texts]
    leave(Path(folder, f"{number:05d}"), range(len(texts)), texts, ranks, [f"site {number % 50}"] * len(texts))
    return time.process_time() - began


def _own_memory(pid: int) -> Iterator[int]:
    """Bytes of a process and of its children, shared pages by their share."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                yield int(line.split()[1]) * 1024
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _own_memory(int(child))
    except OSError:  # it ended meanwhile
        return


def million(size: int, vocabulary: str) -> dict[str, Any]:
    """Map and reduce of `size` short documents over two processes: seconds of processor time, peak of all memory, what went."""
    peak = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.05):
            peak = max(peak, sum(_own_memory(os.getpid())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        workers = Local(600, WORKERS)
        jobs = [(number, folder, vocabulary) for number in range(size // SHARD)]
        mapped = sum(seconds for _, seconds in workers.map(make_shard, jobs))
        shards = [Path(folder, f"{number:05d}") for number in range(len(jobs))]
        disk = sum(file.stat().st_size for shard in shards for file in shard.iterdir())
        before = _processor_seconds()
        began = time.monotonic()
        found = find(shards, Path(folder, "reduce"), THRESHOLD, 10, 0.1, workers)
        reduced = _processor_seconds() - before
        wall = time.monotonic() - began
    over.set()
    watcher.join()
    return {
        "documents": size, "map_seconds": mapped, "reduce_seconds": reduced, "reduce_wall": wall, "peak_gb": peak / 1e9,
        "disk_gb": disk / 1e9, "equal": len(found.equal), "near": len(found.near), "blocks": len(found.repeated),
    }  # fmt: skip


def _processor_seconds() -> float:
    """Of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def growth(words: list[str]) -> tuple[list[list[Any]], dict[str, Any]]:
    """Each size in a process of its own."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder, "words")
        vocabulary.write_text("\n".join(words), "utf-8")
        for size in SIZES:
            print(f"{size:,} documents ...", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "benchmarks.duplicates", "million", str(size), str(vocabulary)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    cost = [(one["map_seconds"] + one["reduce_seconds"]) / one["documents"] * 1e6 for one in results]
    rows = [
        [f"{one['documents']:,} documents: microseconds each, map + reduce", micro, f"peak {one['peak_gb']:.2f} GB"]
        for one, micro in zip(results, cost, strict=True)
    ]
    rows.append(["cost of a document, the most against the fewest", cost[-1] / cost[0], "1 is linear"])
    return rows, {"million": results, "million_peak_gb": results[-1]["peak_gb"], "million_growth": cost[-1] / cost[0]}


def compile_seconds() -> float:
    """Processor time of the first sketch where numba's cache is empty, less that of the second."""
    program = (
        "import time; from ninthsky.data.duplicates.minhash import signatures; began = time.process_time();"
        "signatures(['a b c d e f']); first = time.process_time() - began; began = time.process_time();"
        "signatures(['a b c d e f']); print(first - (time.process_time() - began))"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


def main(source: Path) -> None:
    """Prints the table and, last, one JSON object."""
    pages = pq.read_table(source, columns=["html", "main_text", "language"]).to_pylist()
    texts = [(row["main_text"], row["language"]) for row in pages if row["main_text"] and len(row["main_text"]) > 400]
    by_language = {name: [text for text, language in texts if language == name] for name in ("en", "zh")}
    peer = Peer(interpreter("bench-rensa", PEER), _PROGRAM)
    tables()
    signatures(pa.array(["warm up"], pa.large_string()))
    rows, figures = speed([*windows(by_language["en"], 2500), *windows(by_language["zh"], 800)], peer)
    for more, numbers in (error([(text[:4000], language) for text, language in texts], peer), _families(pages, texts)):
        rows += more
        figures |= numbers
    more, numbers = growth(" ".join(by_language["en"]).split()[:50_000])
    rows, figures = rows + more, figures | numbers
    figures["minhash_compile_seconds"] = compile_seconds()
    rows.append(["compiled once per machine, seconds", figures["minhash_compile_seconds"], ""])
    publish("duplicates", rows, figures, columns=("what", "ours", PEER))


def _families(pages: list[dict[str, Any]], texts: list[tuple[str, str]]) -> tuple[list[list[Any]], dict[str, Any]]:
    rng = random.Random(5)
    families = [[text, *(edited(text, language, rng) for _ in range(4))] for text, language in texts]
    rows, figures = recall(families, "edited")
    # Two of a kind alone: nothing but their own band leads from one to the other.
    pieces = [(piece, language) for text, language in texts for piece in windows([text], 800 if language == "zh" else 2500)]
    more, numbers = recall([[piece, edited(piece, language, rng)] for piece, language in pieces], "alone")
    rows, figures = rows + more, figures | numbers
    # All real pages are one family: every pair is held against the definition. Whole pages, so that shells are shared.
    whole = [extract_plain_text(decode(page["html"])[0], main_content=False) for page in pages]
    more, numbers = recall([[text for text in whole if text.strip()]], "real")
    return rows + more, figures | numbers


if __name__ == "__main__":
    if sys.argv[1:2] == ["million"]:
        print(json.dumps(million(int(sys.argv[2]), sys.argv[3])))
    else:
        chosen = pages_file(*sys.argv[1:2])
        main(chosen)
