"""From what the reduce found to what happens to each document of a shard: it goes, loses blocks, or stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ninthsky.data.decontaminate import Evaluation
from ninthsky.data.duplicates.blocks import ANYWHERE, lines, site_key, site_of
from ninthsky.data.duplicates.find import Found
from ninthsky.data.duplicates.runs import Shards
from ninthsky.data.extract import EVALUATION, EXACT, NEAR, REPEATS, Document, Drop, Extractor

Array = NDArray[Any]
Row = dict[str, Any]

_NAMES = ["id", "source", "path"]


class Decisions:
    """What `found` means for the rows of each part. Holds ids and paths of the documents that others are told of."""

    def __init__(self, parts: Sequence[Path], shards: Shards, found: Found, threshold: float, extractor: Extractor) -> None:
        self._shards, self._found, self._threshold, self._extractor = shards, found, threshold, extractor
        told = np.unique(np.concatenate([found.equal["survivor"], found.near["survivor"], found.near["link"]]))
        self._names: dict[int, Row] = {}
        for shard, first, last in shards.split(told):
            documents = told[first:last]
            table = pq.read_table(parts[shard], columns=_NAMES)
            places = shards.rows(shard)["row"][documents - shards.base[shard]]
            self._names.update(zip(documents.tolist(), table.take(pa.array(places)).to_pylist(), strict=True))

    def apply(self, shard: int, rows: list[Row]) -> None:
        """Fills in, of the part's rows, why each goes that goes, and what others lose of their text."""
        for row, drop in self._duplicates(shard):
            set_drop(rows[row], drop)
        if len(self._found.repeated):
            self._cut([rows[row] for row in self._shards.rows(shard)["row"] if rows[row]["stage"] is None])

    def _duplicates(self, shard: int) -> Iterator[tuple[int, Drop]]:
        base, end = self._shards.base[shard], self._shards.base[shard + 1]
        rows = self._shards.rows(shard)["row"]
        for record in _between(self._found.equal, base, end):
            stays = self._names[int(record["survivor"])]
            detail = f"the same text as {_place(stays)}, which stays"
            yield int(rows[record["document"] - base]), Drop(EXACT, "text_hash", 1.0, 1.0, detail)
        for record in _between(self._found.near, base, end):
            detail = f"{_place(self._names[int(record['survivor'])])} stays: purer language, longer text, or the first"
            if record["link"] != record["survivor"]:
                detail += f"; linked to it through {self._names[int(record['link'])]['id']} ({record['link_similarity']:.2f})"
            drop = Drop(NEAR, "jaccard", round(float(record["similarity"]), 6), self._threshold, detail)
            yield int(rows[record["document"] - base]), drop

    def _cut(self, rows: list[Row]) -> None:
        """Takes repeated blocks out; rows that break a quality rule without them go."""
        cut = lines([row["text"] for row in rows])
        sites = [site_of(row["source"], row["path"]) for row in rows]
        owner = np.repeat(np.arange(len(rows)), np.diff(cut.first))
        hits: dict[int, dict[int, str]] = {}
        site_keys = np.array([site_key(site) for site in sites], np.uint64)
        for keys, whole in ((site_keys[owner], False), (np.full(len(owner), ANYWHERE, np.uint64), True)):
            for line, record in _matches(self._found.repeated, cut.keys, keys):
                row = int(owner[line])
                where = "the corpus" if whole else sites[row]
                why = f"stands on {record['pages']} pages of {where}; {record['limit']} are allowed"
                hits.setdefault(row, {}).setdefault(int(line - cut.first[row]), why)
        changed = [rows[row] for row in sorted(hits)]
        take_out(changed, [hits[row] for row in sorted(hits)], self._extractor, REPEATS, "repeated_blocks")


def take_out(rows: list[Row], hits: Sequence[dict[int, str]], extractor: Extractor, stage: str, rule: str) -> None:
    """Takes lines (number -> why) out of the rows' texts. What breaks a quality rule without them goes at `stage` by `rule`."""
    documents = []
    for row, gone in zip(rows, hits, strict=True):
        text = row["text"].split("\n")
        row["cut"] = [*(row.get("cut") or []), *({"text": text[line], "why": why} for line, why in sorted(gone.items()))]
        row["spans"] = narrowed(row["spans"], gone, len(text))
        left = "\n".join(line for number, line in enumerate(text) if number not in gone)
        documents.append(Document(text=left, language=row["language"], figures=dict(row["figures"])))
        share = 1 - len(left) / len(row["text"])
        documents[-1].figures[rule] = round(share, 6)
    extractor.judge([document for document in documents if document.text])
    for row, document, gone in zip(rows, documents, hits, strict=True):
        row["text"], row["figures"] = document.text, list(document.figures.items())
        broken = document.drop
        if broken is None and document.text:
            continue
        left = f"what is left breaks {broken.rule}: {broken.figure:g}" if broken is not None else "nothing is left"
        first = row["cut"][-len(gone)]
        detail = f"{left} without {len(gone)} blocks; the first, {first['text'][:60]!r}, {first['why']}"
        set_drop(row, Drop(stage, rule, document.figures[rule], broken.threshold if broken is not None else 1.0, detail))


def narrowed(spans: list[dict[str, int]], gone: dict[int, str], count: int) -> list[dict[str, int]]:
    """The spans of blocks without the lines that are gone; as they were where lines are not blocks.

    They are not where C4's rule took lines out, or where a block has several.
    """
    blocks = [block for span in spans for block in range(span["first"], span["last"])]
    if len(blocks) != count:
        return spans
    found: list[dict[str, int]] = []
    for line, block in enumerate(blocks):
        if line in gone:
            continue
        if found and found[-1]["last"] == block:
            found[-1]["last"] += 1
        else:
            found.append({"first": block, "last": block + 1})
    return found


def decontaminate(rows: list[Row], evaluation: Evaluation, extractor: Extractor, action: Literal["drop", "cut"]) -> None:
    """Drops the rows that share an n-gram with an evaluation set, or takes out their blocks that do."""
    changed: list[Row] = []
    hits: list[dict[int, str]] = []
    for row in rows:
        if row["stage"] is not None or (shared := evaluation.overlap(row["text"], row["language"])) is None:
            continue
        row["figures"] = [*row["figures"], ("evaluation_overlap", round(shared.share, 6))]
        if action == "drop":
            first, last = shared.spans[0]
            detail = f"shares {row['text'][first:last][:200]!r} with {shared.item}"
            set_drop(row, Drop(EVALUATION, "n_gram_overlap", round(shared.share, 6), 0.0, detail))
            continue
        gone: dict[int, str] = {}
        for first, last in shared.spans:
            why = f"shares {row['text'][first:last][:200]!r} with {shared.item}"
            begin, end = row["text"].count("\n", 0, first), row["text"].count("\n", 0, last)
            gone |= dict.fromkeys(range(begin, end + 1), why)
        changed.append(row)
        hits.append(gone)
    take_out(changed, hits, extractor, EVALUATION, "n_gram_overlap")


def set_drop(row: Row, drop: Drop) -> None:
    """Writes the reason why it goes into a row."""
    row.update(stage=drop.stage, rule=drop.rule, figure=drop.figure, threshold=drop.threshold, detail=drop.detail)


def _between(records: Array, base: int, end: int) -> Array:
    first, last = np.searchsorted(records["document"], [base, end])
    return records[first:last]


def _place(names: Row) -> str:
    return f"{names['id']} ({names['source']} {names['path']})"


def _matches(repeated: Array, keys: Array, sites: Array) -> Iterator[tuple[int, Any]]:
    """(line, its record) of the lines that are repeated at these sites."""
    place = np.searchsorted(repeated["key"], keys)
    last = np.searchsorted(repeated["key"], keys, "right")
    for line in np.flatnonzero(last > place):
        group = repeated[place[line] : last[line]]
        at = np.searchsorted(group["site"], sites[line])
        if at < len(group) and group["site"][at] == sites[line]:
            yield int(line), group[at]
