"""Extraction outside of a run: any HTML files, folders, WARCs or Parquet files to one record per page, in the order given."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ninthsky.config.schema import Data
from ninthsky.data.extract import Document, Extractor, documents_of
from ninthsky.data.formats import Raw, columns_of, files_of, read_file, row_of, suffix
from ninthsky.errors import UserError
from ninthsky.run.executor import Clock
from ninthsky.run.executor.local import Local

_PAGES = 16  # of one shard


@dataclass(frozen=True)
class Rows:
    """Pages by reference, for a local Parquet file: rows [start, stop) of a row group."""

    path: str
    group: int
    start: int
    stop: int


Shard = Rows | tuple[Raw, ...]


def shards_of(path: str) -> Iterator[Shard]:
    """Shards of a file, a folder or a URL, read as they are asked for. Raises UserError N9-DATA-001 when it holds no pages."""
    for url, name in files_of(path):
        local = url.removeprefix("file://")
        if suffix(url) == ".parquet" and "://" not in local:
            yield from _row_groups(local)
            continue
        raws = read_file(url, name)
        while part := tuple(itertools.islice(raws, _PAGES)):
            yield part


def _row_groups(path: str) -> Iterator[Rows]:
    """Raises UserError N9-DATA-001."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            "N9-DATA-001", f"not a Parquet file: {error}", path, "give HTML files, or a Parquet with columns id and html"
        ) from error
    columns_of(file, path)
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        for start in range(0, rows, _PAGES):
            yield Rows(path, group, start, min(start + _PAGES, rows))


@functools.lru_cache(maxsize=1)
def _group(path: str, group: int) -> list[Raw]:
    file = pq.ParquetFile(path)
    first = sum(file.metadata.row_group(before).num_rows for before in range(group))
    rows = file.read_row_group(group, columns=columns_of(file, path)).to_pylist()
    return [row_of(row, f"{Path(path).name}#{first + number}") for number, row in enumerate(rows, start=1)]


def records_of(job: tuple[Shard, Data], skip: dict[int, str], clock: Clock) -> list[dict[str, Any]]:
    """One record per page of a shard. The executor's task."""
    shard, data = job
    pages = _group(shard.path, shard.group)[shard.start : shard.stop] if isinstance(shard, Rows) else shard
    documents = documents_of(Extractor(data), pages, skip, clock)
    return [record(page.path, document) for page, document in zip(pages, documents, strict=True)]


def record(id: str, document: Document) -> dict[str, Any]:
    """id, language, text, spans kept (block ranges, last one not included), figures, licence, robots, decision, reason."""
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
        "licence": document.licence,
        "robots": document.robots,
        "decision": "kept" if drop is None else "dropped",
        "reason": reason,
    }


def extract(paths: Sequence[str], data: Data, workers: int) -> Iterator[dict[str, Any]]:
    """Records of all pages in the order of `paths` (files, folders, URLs), made by `workers` processes."""
    for path in paths:
        files_of(path)  # all paths are looked at before the first is read
    jobs = ((shard, data) for path in paths for shard in shards_of(path))
    early: dict[int, list[dict[str, Any]]] = {}
    following = 0
    for index, records in Local(data.page_seconds, workers).map(records_of, jobs):
        early[index] = records
        while following in early:
            yield from early.pop(following)
            following += 1
