"""What the map leaves for the reduce, one folder a shard: sorted runs of (key, record), and what is looked up by document.

A range of keys of a sorted run is one piece of the file, found by bisection. Each partition of the reduce merges its pieces
of all runs: it holds about `PARTITION` records, however many shards and documents there are. Partitions are cut by the amount
of data alone, so their results do not depend on who works on them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

PARTITION = 2_000_000  # records
TEXTS = np.dtype([("row", "<u4"), ("second", "<u8"), ("rank", "<u8")])  # by the first half of the text's hash
BANDS = np.dtype([("row", "<u4")])  # by the band's hash
BLOCKS = np.dtype([("row", "<u4"), ("site", "<u8")])  # by the block's hash
ROWS = np.dtype(
    [("row", "<u4"), ("rank", "<u8"), ("site", "<u8"), ("first", "<i8"), ("last", "<i8")]
)  # its shingles: sets[first:last]
_RUNS = {"texts": TEXTS, "bands": BANDS, "blocks": BLOCKS}


def write(folder: Path, rows: Array, sets: Array, runs: dict[str, tuple[Array, Array]]) -> None:
    """Writes a shard's folder, whole or not at all: `rows` of ROWS, `sets` uint32, and per name (keys uint64, records)."""
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    rows.astype(ROWS).tofile(draft / "rows")
    sets.astype("<u4").tofile(draft / "sets")
    for name, (keys, records) in runs.items():
        order = np.argsort(keys, kind="stable")
        keys[order].astype("<u8").tofile(draft / f"{name}.keys")
        records[order].astype(_RUNS[name]).tofile(draft / name)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        draft.replace(folder)
    except OSError:  # another worker, which was given the same shard, was here first
        if not folder.is_dir():
            raise
        shutil.rmtree(draft)


class Shards:
    """All shards of a corpus. A document's number is its row here, shard after shard; rows that were dropped have none."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        counts = [(folder / "rows").stat().st_size // ROWS.itemsize for folder in self.folders]
        self.base = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.base[-1])

    def rows(self, shard: int) -> Array:
        """ROWS of a shard."""
        return np.fromfile(self.folders[shard] / "rows", ROWS)

    def partitions(self, name: str) -> int:
        """How many parts a kind of run is merged in."""
        records = sum((folder / name).stat().st_size for folder in self.folders) // _RUNS[name].itemsize
        return max(-(-records // PARTITION), 1)

    def merged(self, name: str, part: int, parts: int) -> tuple[Array, Array, Array]:
        """(keys, documents, records) of one of `parts` equal ranges of keys, by key and document."""
        low, high = (part << 64) // parts, ((part + 1) << 64) // parts - 1
        keys, documents, records = [], [], []
        for shard, folder in enumerate(self.folders):
            path = folder / f"{name}.keys"
            if not path.stat().st_size:
                continue
            run = np.memmap(path, "<u8", "r")
            first = int(np.searchsorted(run, np.uint64(low), "left"))
            last = int(np.searchsorted(run, np.uint64(high), "right"))
            if first == last:
                continue
            kind = _RUNS[name]
            piece = np.fromfile(folder / name, kind, last - first, offset=first * kind.itemsize)
            keys.append(np.array(run[first:last]))
            records.append(piece)
            documents.append(piece["row"] + self.base[shard])
        if not keys:
            return np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, _RUNS[name])
        all_keys = np.concatenate(keys)
        order = np.argsort(all_keys, kind="stable")  # runs come in the order of documents
        return all_keys[order], np.concatenate(documents)[order], np.concatenate(records)[order]

    def ranks(self, documents: Array) -> Array:
        """Ranks of sorted documents, uint64."""
        out = np.empty(len(documents), np.uint64)
        for shard, first, last in self.split(documents):
            out[first:last] = self.rows(shard)["rank"][documents[first:last] - self.base[shard]]
        return out

    def sets(self, documents: Array) -> tuple[Array, Array]:
        """Shingles of sorted documents: uint32, and int64 [documents + 1] where each begins."""
        spans = np.empty((len(documents), 2), np.int64)
        pieces = list(self.split(documents))
        for shard, first, last in pieces:
            rows = self.rows(shard)[documents[first:last] - self.base[shard]]
            spans[first:last, 0], spans[first:last, 1] = rows["first"], rows["last"]
        starts = np.zeros(len(documents) + 1, np.int64)
        np.cumsum(spans[:, 1] - spans[:, 0], out=starts[1:])
        out = np.empty(starts[-1], np.uint32)
        for shard, first, last in pieces:
            if starts[last] > starts[first]:
                stored = np.memmap(self.folders[shard] / "sets", "<u4", "r")
                _gather(stored, spans[first:last], out[starts[first] : starts[last]])
        return out, starts

    def split(self, documents: Array) -> list[tuple[int, int, int]]:
        """(shard, first, last): which of sorted documents are a shard's."""
        bounds = np.searchsorted(documents, self.base)
        return [(int(s), int(bounds[s]), int(bounds[s + 1])) for s in np.flatnonzero(np.diff(bounds))]


@njit(cache=True)
def _gather(stored, spans, out):  # type: ignore[no-untyped-def]
    at = 0
    for i in range(len(spans)):
        for k in range(spans[i, 0], spans[i, 1]):
            out[at] = stored[k]
            at += 1
