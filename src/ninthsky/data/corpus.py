"""Stage `data.corpus`: pages to documents, shard by shard over processes, then duplicates over all, then the funnel."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ninthsky.config.schema import Data
from ninthsky.data.duplicates import PERMUTATIONS, near_duplicates, signatures, text_hash
from ninthsky.data.extract import EXACT, NEAR, STEPS, Drop, Extractor, documents_of
from ninthsky.data.funnel import MASKED, report
from ninthsky.data.pages import raw_of
from ninthsky.data.personal import mask
from ninthsky.data.pool import Clock, map_shards
from ninthsky.run import StageContext

_SPAN = pa.struct([("first", pa.int32()), ("last", pa.int32())])  # blocks, the last one not included
DOCUMENTS = pa.schema([
    ("id", pa.string()), ("source", pa.string()), ("path", pa.string()), ("language", pa.string()), ("text", pa.string()),
    ("spans", pa.list_(_SPAN)), ("figures", pa.map_(pa.string(), pa.float64())), ("encoding", pa.string()),
    ("made", pa.bool_()), ("licence", pa.string()), ("robots", pa.string()),
])  # fmt: skip
DROPPED = pa.schema([
    ("id", pa.string()), ("source", pa.string()), ("path", pa.string()), ("stage", pa.string()), ("rule", pa.string()),
    ("figure", pa.float64()), ("threshold", pa.float64()), ("detail", pa.string()), ("language", pa.string()),
    ("figures", pa.map_(pa.string(), pa.float64())), ("made", pa.bool_()),
])  # fmt: skip
_PART = pa.schema(
    [
        *DOCUMENTS,
        *(f for f in DROPPED if f.name not in DOCUMENTS.names),
        ("hash", pa.string()),
        ("signature", pa.binary(PERMUTATIONS * 4)),
    ]
)


def part_of(shard: tuple[str, str, Data], skip: dict[int, str], clock: Clock) -> int:
    """Map: one shard of pages to one part file, written whole or not at all. Returns its number of rows."""
    source, target, data = shard
    extractor = Extractor(data)
    pages = pq.read_table(source).to_pylist()
    documents = documents_of(extractor, [raw_of(page) for page in pages], skip, clock)
    for document in documents:
        if document.drop is None:
            document.text, masked = mask(document.text, data.mask)
            document.figures.update({f"{MASKED}{kind}": count for kind, count in masked.items()})
    rows: list[dict[str, Any]] = []
    for page, document in zip(pages, documents, strict=True):
        drop = document.drop
        rows.append({
            **{key: page[key] for key in ("id", "source", "path", "made")},
            "language": document.language, "text": document.text, "encoding": document.encoding,
            "licence": document.licence, "robots": document.robots,
            "spans": [{"first": first, "last": last} for first, last in document.spans],
            "figures": list(document.figures.items()),
            "stage": drop.stage if drop else None, "rule": drop.rule if drop else None, "figure": drop.figure if drop else None,
            "threshold": drop.threshold if drop else None, "detail": drop.detail if drop else None,
            "hash": None if drop else text_hash(document.text),
        })  # fmt: skip
    kept = [row for row in rows if row["stage"] is None]
    for row, signature in zip(kept, signatures([row["text"] for row in kept]), strict=True):
        row["signature"] = signature.astype("<u4").tobytes()
    draft = Path(f"{target}.{os.getpid()}")
    pq.write_table(pa.Table.from_pylist(rows, _PART), draft, compression="zstd")
    draft.replace(target)
    return len(rows)


def run(ctx: StageContext) -> None:
    """Writes documents/*.parquet, dropped/*.parquet, funnel.json. Killed at any point, it goes on from the finished parts."""
    data = ctx.settings.data
    work = ctx.out / "work"
    work.mkdir(exist_ok=True)
    sources = sorted((ctx.inputs["data.pages"] / "pages").glob("*.parquet"))
    sizes = [pq.read_metadata(source).num_rows for source in sources]
    parts = [work / source.name for source in sources]
    missing = [index for index, part in enumerate(parts) if not part.exists()]
    shards = [(str(sources[index]), str(parts[index]), data) for index in missing]
    with ctx.progress("pages to documents", total=sum(sizes), unit="pages") as bar:
        bar.advance(sum(sizes) - sum(sizes[index] for index in missing))
        for _, rows in map_shards(part_of, shards, ctx.workers, data.page_seconds):
            bar.advance(rows)
    removed = _duplicates(parts, data.near_duplicate)
    counts: Counter[tuple[str, str]] = Counter()
    for number, part in enumerate(parts):
        documents, dropped = [], []
        for row in pq.read_table(part, columns=[f.name for f in _PART if f.name not in ("hash", "signature")]).to_pylist():
            drop = removed.get(row["id"])
            if drop is not None:
                row.update(stage=drop.stage, rule=drop.rule, figure=drop.figure, threshold=drop.threshold, detail=drop.detail)
            if row["stage"] is None:
                documents.append(row)
            else:
                dropped.append(row)
                counts[row["stage"], row["rule"]] += 1
        for folder, rows, schema in (("documents", documents, DOCUMENTS), ("dropped", dropped, DROPPED)):
            with ctx.open(f"{folder}/{number:05d}.parquet", rows=len(rows)) as file:
                pq.write_table(pa.Table.from_pylist(rows, schema), file, compression="zstd")
    report(ctx, sum(sizes), counts)
    shutil.rmtree(work)


def _duplicates(parts: list[Path], threshold: float) -> dict[str, Drop]:
    """Reduce: which documents go as duplicates. Only hashes, lengths and signatures are held, 0.6 kB a document.

    Of equal or near documents the one with the largest share of text in its own language stays (the original, not the page that
    was half translated from it), then the longest, then the first by source and path.
    """
    columns = ["id", "source", "path", "hash", "signature", "stage", "figures"]
    rows = [row for part in parts for row in pq.read_table(part, columns=columns).to_pylist() if row["stage"] is None]
    order = [_rank(row) for row in rows]
    removed: dict[str, Drop] = {}
    firsts: dict[str, int] = {}
    for index in sorted(range(len(rows)), key=order.__getitem__):
        first = firsts.setdefault(rows[index]["hash"], index)
        if first != index:
            detail = f"the same text as {rows[first]['id']} ({rows[first]['source']} {rows[first]['path']}), which stays"
            removed[rows[index]["id"]] = Drop(EXACT, "text_hash", 1.0, 1.0, detail)
    left = [index for index in range(len(rows)) if rows[index]["id"] not in removed]
    if not left:
        return removed
    sketches = np.frombuffer(b"".join(rows[index]["signature"] for index in left), "<u4").reshape(-1, PERMUTATIONS)
    for found in near_duplicates(sketches, [order[index] for index in left], threshold):
        row, stays, link = rows[left[found.index]], rows[left[found.survivor]], rows[left[found.linked]]
        detail = f"{stays['id']} ({stays['source']} {stays['path']}) stays: purer language, longer text, or first by path"
        if found.linked != found.survivor:
            detail += f"; linked to it through {link['id']} ({found.linked_similarity:.2f})"
        removed[row["id"]] = Drop(NEAR, "minhash", found.similarity, threshold, detail)
    return removed


def _rank(row: dict[str, Any]) -> tuple[Any, ...]:
    """The smallest of a cluster survives."""
    figures = dict(row["figures"])
    return -round(figures["language_share"], 2), -figures["min_words"], row["source"], row["path"], row["id"]


__all__ = ["DOCUMENTS", "DROPPED", "STEPS", "part_of", "run"]
