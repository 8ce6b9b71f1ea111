"""Extraction against trafilatura, on the open pages that the weights were not fitted on: F1 and speed, English and Chinese.

    python -m benchmarks.data [PAGES.parquet]

trafilatura lives in an environment of its own (.cache/bench-data, made here) and reads the same pages in the same run, one
process each, in turns; both are timed by processor time per page. Then benchmarks.rules, benchmarks.wrapped and
benchmarks.end_to_end. What benchmarks.duplicates and benchmarks.corpus published last (rensa, bits per byte)
is carried into the last line, its date into the table; a key that nobody measured is left out rather than guessed.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import end_to_end, rules, wrapped
from benchmarks.pages import pages_file
from benchmarks.peers import Peer, interpreter
from benchmarks.report import RESULTS, median_interval, publish
from ninthsky.data.blocks import decode, parse
from ninthsky.data.fit import fitted_on, kept_text
from ninthsky.data.made import made_pages
from ninthsky.data.measure import token_f1
from ninthsky.data.score import choose

PEER = "trafilatura==2.3.1"
PEER_NEEDS = ("lxml_html_clean",)  # its justext imports a part that lxml has since given away
ROUNDS = 5
TURN = 25  # pages
# Runs in the peer's environment: pages in by length-prefixed frames, {"text", "seconds"} out by lines.
_PEER_PROGRAM = """
import json, struct, sys, time
import trafilatura
trafilatura.extract("<html><body><article><p>" + "warm up " * 50 + "</p></article></body></html>")
while header := sys.stdin.buffer.read(4):
    html = sys.stdin.buffer.read(struct.unpack("<I", header)[0])
    began = time.process_time()
    try:
        text = trafilatura.extract(html) or ""
    except Exception as error:
        text = ""
        print(repr(error), file=sys.stderr)
    print(json.dumps({"text": text, "seconds": time.process_time() - began}), flush=True)
"""


def ours(html: bytes) -> tuple[str, float]:
    """Our extraction alone, as the peer's: bytes to text."""
    began = time.process_time()
    page = parse(decode(html)[0])
    text = kept_text(page, choose(page)[0])
    return text, time.process_time() - began


def main(source: Path) -> None:
    """Prints the table and, last, one JSON object."""
    rows = [row for row in pq.read_table(source).to_pylist() if not fitted_on(row["id"])]
    peer = Peer(interpreter("bench-data", PEER, *PEER_NEEDS), _PEER_PROGRAM)

    def trafilatura(html: bytes) -> tuple[str, float]:
        answer = peer(html)
        return answer["text"], answer["seconds"]

    tools: dict[str, Callable[[bytes], tuple[str, float]]] = {"ours": ours, "trafilatura": trafilatura}
    ours(rows[0]["html"])
    f1: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    per_page: dict[tuple[str, str], float] = defaultdict(float)
    for number in range(ROUNDS):
        seconds: dict[tuple[str, str], float] = defaultdict(float)
        for start in range(0, len(rows), TURN):
            # Who goes first changes from turn to turn.
            for name in sorted(tools, reverse=start // TURN % 2 == 1):
                for row in rows[start : start + TURN]:
                    text, used = tools[name](row["html"])
                    seconds[name, row["language"]] += used
                    if number == 0:
                        score = token_f1(text, row["main_text"])
                        for group in {row["language"], row["set"]}:
                            f1[name, group].append(score)
            print(f"round {number + 1} of {ROUNDS}, page {start} of {len(rows)}", file=sys.stderr, flush=True)
        for language in ("en", "zh"):
            ratios[language].append(seconds["trafilatura", language] / seconds["ours", language])
        for key, used in seconds.items():
            per_page[key] += used / ROUNDS
    figures: dict[str, Any] = {}
    table: list[list[Any]] = []

    def mean(key: tuple[str, str], part: int) -> float:
        return sum(one[part] for one in f1[key]) / len(f1[key])

    for group in ("en", "zh", *sorted({row["set"] for row in rows} - {"zh"})):
        mine, theirs = (
            "{2:.3f} (P {0:.3f}, R {1:.3f})".format(*(mean((name, group), part) for part in range(3)))
            for name in ("ours", "trafilatura")
        )
        table.append([f"F1, {group}, {len(f1['ours', group])} pages not fitted on", mine, theirs])
        figures |= {
            f"extract_{group}_f1": mean(("ours", group), 2),
            f"extract_{group}_f1_trafilatura": mean(("trafilatura", group), 2),
        }
    for language in ("en", "zh"):
        size = sum(len(row["html"]) for row in rows if row["language"] == language) / 1e6
        speeds = [f"{size / per_page[name, language]:.1f} MB/s" for name in ("ours", "trafilatura")]
        table.append([f"speed, {language} (processor time, one core)", *speeds])
        figures |= median_interval(ratios[language], f"extract_{language}_speedup")
        table.append([f"times trafilatura's speed, {language}", figures[f"extract_{language}_speedup"], 1.0])
    articles = [page for page in made_pages() if page.article]
    for name, tool in tools.items():
        scores = [token_f1(tool(page.html)[0], page.article) for page in articles]
        figures[f"made_f1_{name}"] = sum(score[2] for score in scores) / len(scores)
    table.append(
        [f"F1, {len(articles)} made spam-wrapped pages (synthetic)", figures["made_f1_ours"], figures["made_f1_trafilatura"]]
    )
    for part in (rules, wrapped, end_to_end):
        more_rows, more = part.measure(source)
        table += [row if len(row) == 3 else [row[0], "P {:.3f}, R {:.3f}, F1 {:.3f}".format(*row[1:]), ""] for row in more_rows]
        figures |= more
    more_rows, more = published()
    publish("data", [*table, *more_rows], figures | more, columns=("what", "ours", "peer"))


# Benchmarks that run by themselves, and what of theirs belongs to the room's line.
_APART = {"duplicates": ("minhash_over_rensa",), "corpus": ("bpb_ours", "bpb_datatrove", "bpb_raw")}


def published() -> tuple[list[list[Any]], dict[str, Any]]:
    """Rows and figures that other benchmarks of the room left under benchmarks/results/."""
    table: list[list[Any]] = []
    figures: dict[str, Any] = {}
    kept: dict[str, Any]
    for name, keys in _APART.items():
        path = RESULTS / f"{name}.json"
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {"figures": {}, "date": "never"}
        for key in keys:
            if key in kept["figures"]:
                figures[key] = kept["figures"][key]
            table.append([f"{key}, of benchmarks.{name}", kept["figures"].get(key, "not measured"), f"run on {kept['date']}"])
    return table, figures


if __name__ == "__main__":
    chosen = pages_file(*sys.argv[1:2])
    main(chosen)
