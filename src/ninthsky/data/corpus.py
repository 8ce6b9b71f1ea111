"""Stage `data.corpus`: pages to documents, shard by shard over processes, then duplicates over all, then the funnel."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ninthsky.config.schema import Data
from ninthsky.data.decide import Decisions, decontaminate
from ninthsky.data.decontaminate import Evaluation, read_sets
from ninthsky.data.duplicates.blocks import site_of
from ninthsky.data.duplicates.find import find
from ninthsky.data.duplicates.runs import Shards
from ninthsky.data.duplicates.shard import leave, rank
from ninthsky.data.extract import STEPS, Extractor, documents_of
from ninthsky.data.funnel import MASKED, report
from ninthsky.data.pages import raw_of
from ninthsky.data.personal import mask
from ninthsky.data.safety import hooks
from ninthsky.run import StageContext
from ninthsky.run.executor import Clock, executor

_SPAN = pa.struct([("first", pa.int32()), ("last", pa.int32())])  # blocks, the last one not included
_CUT = pa.struct([("text", pa.string()), ("why", pa.string())])  # blocks that were taken out afterwards
DOCUMENTS = pa.schema([
    ("id", pa.string()), ("source", pa.string()), ("path", pa.string()), ("language", pa.string()), ("text", pa.string()),
    ("spans", pa.list_(_SPAN)), ("figures", pa.map_(pa.string(), pa.float64())), ("encoding", pa.string()),
    ("made", pa.bool_()), ("licence", pa.string()), ("robots", pa.string()), ("cut", pa.list_(_CUT)),
])  # fmt: skip
DROPPED = pa.schema([
    ("id", pa.string()), ("source", pa.string()), ("path", pa.string()), ("stage", pa.string()), ("rule", pa.string()),
    ("figure", pa.float64()), ("threshold", pa.float64()), ("detail", pa.string()), ("language", pa.string()),
    ("figures", pa.map_(pa.string(), pa.float64())), ("made", pa.bool_()), ("cut", pa.list_(_CUT)),
])  # fmt: skip
_PART = pa.schema([*DOCUMENTS, *(field for field in DROPPED if field.name not in DOCUMENTS.names)])
_EVALUATION, _SKETCHES, _REDUCE = "evaluation.npz", "sketches", "reduce"  # under work/


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
            "cut": [],
        })  # fmt: skip
    work = Path(target).parent
    if data.decontaminate:
        decontaminate(rows, Evaluation.load(work / _EVALUATION), extractor, data.contaminated)
    kept = [index for index, row in enumerate(rows) if row["stage"] is None]
    texts = [rows[index]["text"] for index in kept]
    figures = [dict(rows[index]["figures"]) for index in kept]
    ranks = [rank(each["language_share"], each["min_words"]) for each in figures]
    sites = [site_of(rows[index]["source"], rows[index]["path"]) for index in kept]
    leave(work / _SKETCHES / Path(target).stem, kept, texts, ranks, sites)
    draft = Path(f"{target}.{os.getpid()}")
    pq.write_table(pa.Table.from_pylist(rows, _PART), draft, compression="zstd")
    draft.replace(target)
    return len(rows)


def run(ctx: StageContext) -> None:
    """Writes documents/*.parquet, dropped/*.parquet, funnel.json. Killed at any point, it goes on from the finished parts."""
    data = ctx.settings.data
    hooks(data.safety)  # what is wrong with them is told before the first page is read
    work = ctx.out / "work"
    work.mkdir(exist_ok=True)
    sources = sorted((ctx.inputs["data.pages"] / "pages").glob("*.parquet"))
    sizes = [pq.read_metadata(source).num_rows for source in sources]
    parts = [work / source.name for source in sources]
    if data.decontaminate and not (work / _EVALUATION).exists():
        sets = read_sets(data.decontaminate)
        Evaluation.of(sets, data.decontaminate_words, data.decontaminate_characters).save(work / _EVALUATION)
    missing = [index for index, part in enumerate(parts) if not part.exists()]
    shards = [(str(sources[index].resolve()), str(parts[index].resolve()), data) for index in missing]
    workers = executor(ctx.settings.where, data.page_seconds)
    with ctx.progress("pages to documents", total=sum(sizes), unit="pages") as bar:
        bar.advance(sum(sizes) - sum(sizes[index] for index in missing))
        for _, rows in workers.map(part_of, shards):
            bar.advance(rows)
    folders = [(work / _SKETCHES / part.stem).resolve() for part in parts]
    found = find(folders, (work / _REDUCE).resolve(), data.near_duplicate, data.repeat_pages, data.repeat_share, workers)
    decisions = Decisions(parts, Shards(folders), found, data.near_duplicate, Extractor(data))
    counts: Counter[tuple[str, str]] = Counter()
    for number, part in enumerate(parts):
        documents, dropped = [], []
        everything = pq.read_table(part).to_pylist()
        decisions.apply(number, everything)
        for row in everything:
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


__all__ = ["DOCUMENTS", "DROPPED", "STEPS", "part_of", "run"]
