"""Extraction outside of a run: any HTML files, folders, WARCs or Parquet files to one record per page, in the order given."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ninthsky.config.schema import Data
from ninthsky.data.extract import READING, Document, Drop, Extractor
from ninthsky.data.pool import Clock, map_shards
from ninthsky.data.sources import from_path
from ninthsky.errors import UserError

_PAGES = 16  # of one shard


@dataclass(frozen=True)
class Shard:
    """Pages by reference: rows [start, stop) of a Parquet row group, or names within another kind of source."""

    path: str
    group: int = -1
    start: int = 0
    stop: int = 0
    names: tuple[str, ...] = ()


def shards_of(path: Path) -> Iterator[Shard]:
    """Shards of a file or folder. Raises UserError N9-DATA-001 when it holds no pages."""
    if path.suffix.lower() == ".parquet" and path.is_file():
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                "N9-DATA-001",
                f"not a Parquet file: {error}",
                str(path),
                "give HTML files, or a Parquet with columns id and html",
            ) from error
        if not {"id", "html"} <= set(file.schema_arrow.names):
            have = ", ".join(file.schema_arrow.names)
            raise UserError(
                "N9-DATA-001", f"the Parquet has no columns id and html; it has {have}", str(path), "rename its columns"
            )
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            for start in range(0, rows, _PAGES):
                yield Shard(str(path), group, start, min(start + _PAGES, rows))
        return
    source = from_path(str(path))
    names = [entry.path for entry in source.entries]
    for start in range(0, len(names), _PAGES):
        yield Shard(str(path), names=tuple(names[start : start + _PAGES]))


@functools.lru_cache(maxsize=1)
def _group(path: str, group: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read_row_group(group, columns=["id", "html"]).to_pylist()
    return rows


def _pages(shard: Shard) -> Iterator[tuple[str, bytes]]:
    if shard.group >= 0:
        for row in _group(shard.path, shard.group)[shard.start : shard.stop]:
            html = row["html"] or b""
            yield str(row["id"]), html.encode() if isinstance(html, str) else html
        return
    yield from from_path(shard.path).read(list(shard.names))


def records_of(job: tuple[Shard, Data], skip: dict[int, str], clock: Clock) -> list[dict[str, Any]]:
    """One record per page of a shard. The pool's task."""
    shard, data = job
    extractor = Extractor(data)
    ids: list[str] = []
    documents: list[Document] = []
    for index, (id, html) in enumerate(_pages(shard)):
        ids.append(id)
        if index in skip:
            documents.append(Document(drop=Drop(READING, "page_seconds", data.page_seconds, data.page_seconds, skip[index])))
        else:
            clock(index)
            documents.append(extractor(html))
    clock(-1)
    extractor.judge(documents)
    return [record(id, document) for id, document in zip(ids, documents, strict=True)]


def record(id: str, document: Document) -> dict[str, Any]:
    """id, language, text, spans kept (block ranges, last one not included), figures, decision, reason."""
    drop = document.drop
    reason = None
    if drop is not None:
        reason = {
            "stage": drop.stage,
            "rule": drop.rule,
            "figure": drop.figure,
            "threshold": drop.threshold,
            "detail": drop.detail,
        }
    return {
        "id": id,
        "language": document.language,
        "text": document.text,
        "spans": [list(span) for span in document.spans],
        "figures": document.figures,
        "encoding": document.encoding,
        "decision": "kept" if drop is None else "dropped",
        "reason": reason,
    }


def extract(paths: Sequence[Path], data: Data, workers: int) -> Iterator[dict[str, Any]]:
    """Records of all pages in the order of `paths`, made by `workers` processes."""
    jobs = [(shard, data) for path in paths for shard in shards_of(path)]
    early: dict[int, list[dict[str, Any]]] = {}
    following = 0
    for index, records in map_shards(records_of, jobs, workers, data.page_seconds):
        early[index] = records
        while following in early:
            yield from early.pop(following)
            following += 1
