"""Quality rules against datatrove's four filters (Gopher quality and repetition, FineWeb, C4): decisions and speed.

    python -m benchmarks.rules [PAGES.parquet]

The texts are those of real English pages: hand-cleaned, and as resiliparse gives them, whole and main part. Each filter
is asked of each text by itself, with datatrove's own defaults. Both sides are timed by processor time, one thread each, in
turns. Cold: nothing is known of any word; what numba compiles is on disk already (5 s once per machine).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from resiliparse.extract.html2text import extract_plain_text

from benchmarks.pages import pages_file
from benchmarks.peers import Peer, interpreter
from benchmarks.report import median_interval, publish
from ninthsky.data.blocks import decode
from ninthsky.data.rules.c4 import clean
from ninthsky.data.rules.judge import Counter, buffers

PEER = "datatrove==0.10.1"
ROUNDS = 5
TURN = 100  # texts
TIMED = 500  # texts, of all that are compared
_PROGRAM = """
import json, struct, sys, time
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
filters = GopherQualityFilter(), GopherRepetitionFilter(), FineWebQualityFilter(), C4QualityFilter()
list(one.filter(Document(text="Warm up, and then again. " * 20, id="")) for one in filters)
while header := sys.stdin.buffer.read(4):
    texts = json.loads(sys.stdin.buffer.read(struct.unpack("<I", header)[0]))
    answers = []
    began = time.process_time()
    for text in texts:
        row = []
        for one in filters:
            document = Document(text=text, id="")
            found = one.filter(document)
            row.append("" if found is True else found[1])
        answers.append([row, document.text if row[-1] == "" else ""])
    print(json.dumps([answers, time.process_time() - began]), flush=True)
"""
# datatrove's reasons, with the figure of ours, the bound, and its default.
_QUALITY = (
    ("gopher_short_doc", "visible_words", "min", 50), ("gopher_long_doc", "visible_words", "max", 100_000),
    ("gopher_below_avg_threshold", "word_length", "min", 3), ("gopher_above_avg_threshold", "word_length", "max", 10),
    ("gopher_too_many_hashes", "hash_share", "max", 0.1), ("gopher_too_many_ellipsis", "ellipsis_share", "max", 0.1),
    ("gopher_too_many_bullets", "bullet_lines", "max", 0.9), ("gopher_too_many_end_ellipsis", "ellipsis_lines", "max", 0.3),
    ("gopher_below_alpha_threshold", "alphabetic_share", "min", 0.8), ("gopher_enough_stop_words", "stop_words", "min", 2),
)  # fmt: skip
_REPETITION = (
    ("dup_para_frac", "duplicate_paragraphs", "max", 0.3), ("dup_para_char_frac", "duplicate_paragraph_characters", "max", 0.2),
    ("dup_line_frac", "duplicate_lines", "max", 0.3), ("dup_line_char_frac", "duplicate_line_characters", "max", 0.2),
    ("top_2_gram", "top_2_gram", "max", 0.2), ("top_3_gram", "top_3_gram", "max", 0.18),
    ("top_4_gram", "top_4_gram", "max", 0.16),
    *((f"duplicated_{n}_n_grams", f"repeated_{n}_grams", "max", limit)
      for n, limit in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True)),
)  # fmt: skip
_FINEWEB = (
    ("line_punct_ratio", "terminal_lines", "min", 0.12), ("short_line_ratio", "short_lines", "max", 0.67),
    ("char_dup_ratio", "repeated_line_characters", "max", 0.01), ("list_ratio", "newlines_per_word", "max", 0.3),
)  # fmt: skip
_C4 = (
    ("lorem_ipsum", "lorem_ipsum", "max", 0), ("curly_bracket", "curly_bracket", "max", 0),
    ("too_few_sentences", "sentences", "min", 5),
)  # fmt: skip


def texts_of(source: Path) -> list[str]:
    """Four texts of each English page, empty ones left out."""
    texts: list[str] = []
    for row in pq.read_table(source, columns=["html", "main_text", "language"]).to_pylist():
        if row["language"] == "en":
            html = decode(row["html"])[0]
            texts.append(row["main_text"])
            texts += [extract_plain_text(html, main_content=main) for main in (False, True)]
            texts.append(extract_plain_text(html, main_content=True, preserve_formatting=False))
    return [text for text in texts if text and text.strip()]


def ours(counter: Counter, texts: list[str]) -> tuple[list[tuple[list[str], str]], float]:
    """The same answers as the peer's, and the seconds."""
    began = time.process_time()
    data, offsets = buffers(texts)
    figures = counter(data, offsets)
    cleaned = clean(data, offsets, counter.words, ended=True)
    figures |= {"lorem_ipsum": cleaned.lorem_ipsum, "curly_bracket": cleaned.curly_bracket, "sentences": cleaned.sentences}
    reasons = [_first(figures, rows) for rows in (_QUALITY, _REPETITION, _FINEWEB, _C4)]
    left = [
        cleaned.data[start:end].tobytes().decode().strip()
        for start, end in zip(cleaned.offsets[:-1], cleaned.offsets[1:], strict=True)
    ]
    seconds = time.process_time() - began
    answers = list(zip(map(list, zip(*reasons, strict=True)), left, strict=True))
    return [(row, text if row[-1] == "" else "") for row, text in answers], seconds


def _first(figures: dict[str, Any], rows: tuple[tuple[str, str, str, float], ...]) -> list[str]:
    broken = np.stack(
        [figures[name] < limit if bound == "min" else figures[name] > limit for _, name, bound, limit in rows], axis=1
    )
    return [next((rows[at][0] for at, hit in enumerate(hits) if hit), "") for hits in broken.tolist()]


def measure(source: Path) -> tuple[list[list[Any]], dict[str, Any]]:
    """Rows of the table (what, ours, datatrove's) and figures: rules_equal, rules_speedup_warm, rules_speedup_cold ..."""
    peer = Peer(interpreter("bench-rules", PEER, "spacy>=3.8,<4", "regex"), _PROGRAM)
    texts = texts_of(source)
    ours(Counter("en"), texts[:3])
    equal = [0, 0, 0, 0, 0]
    for start in range(0, len(texts), TURN):
        portion = texts[start : start + TURN]
        theirs, _ = peer(json.dumps(portion).encode())
        for (mine, text), (other, their_text) in zip(ours(Counter("en"), portion)[0], theirs, strict=True):
            for filter_ in range(4):
                equal[filter_] += mine[filter_] == other[filter_]
            equal[4] += text == their_text
        print(f"compared {min(start + TURN, len(texts))} of {len(texts)}", file=sys.stderr, flush=True)
    timed = texts[:: max(len(texts) // TIMED, 1)]
    size = sum(len(text.encode()) for text in timed) / 1e6
    warm = Counter("en")
    ours(warm, timed)
    ratios: dict[str, list[float]] = {"warm": [], "cold": []}
    rates: dict[str, list[float]] = {"warm": [], "cold": [], "theirs": []}
    for number in range(ROUNDS):
        seconds = {"warm": 0.0, "cold": 0.0, "theirs": 0.0}
        cold = Counter("en")
        for start in range(0, len(timed), TURN):
            portion = timed[start : start + TURN]
            seconds["theirs"] += peer(json.dumps(portion).encode())[1]
            seconds["warm"] += ours(warm, portion)[1]
            seconds["cold"] += ours(cold, portion)[1]
        for name in ratios:
            ratios[name].append(seconds["theirs"] / seconds[name])
        for name in rates:
            rates[name].append(size / seconds[name])
        print(f"round {number + 1} of {ROUNDS}: {ratios['warm'][-1]:.1f} x", file=sys.stderr, flush=True)
    names = ("Gopher quality", "Gopher repetition", "FineWeb", "C4", "what C4 leaves")
    rows: list[list[Any]] = [
        [f"the same reason, {name}", f"{count} of {len(texts)}", PEER] for name, count in zip(names, equal, strict=True)
    ]
    theirs_rate = f"{np.median(rates['theirs']):.3f} MB/s"
    rows += [[f"all four, {name}", f"{np.median(rates[name]):.2f} MB/s", theirs_rate] for name in ratios]
    figures: dict[str, Any] = {"rules_equal": min(equal) / len(texts), "rules_texts": len(texts)}
    for name, values in ratios.items():
        figures |= median_interval(values, f"rules_speedup_{name}")
        rows.append([f"times datatrove's speed, {name}", figures[f"rules_speedup_{name}"], 1.0])
    return rows, figures


def main(source: Path) -> None:
    """Prints the table and, last, one JSON object."""
    rows, figures = measure(source)
    publish("rules", rows, figures, columns=("what", "ours", PEER))


if __name__ == "__main__":
    chosen = pages_file(*sys.argv[1:2])
    main(chosen)
