"""The reduce: from the shards' folders to what goes, in files of one record a decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ninthsky.data.duplicates.blocks import REPEATED, repeated, site_sizes
from ninthsky.data.duplicates.candidates import EDGES, edges
from ninthsky.data.duplicates.components import clusters
from ninthsky.data.duplicates.equal import EQUAL, equal
from ninthsky.data.duplicates.runs import Shards
from ninthsky.run.executor import Clock, Executor

Array = NDArray[Any]
Job = tuple[str, list[Path], Path, int, int, tuple[float, ...]]  # kind, shards, folder, part, parts, settings


class Found(NamedTuple):
    """Decisions, sorted by document or key: EQUAL, NEAR, REPEATED."""

    equal: Array
    near: Array
    repeated: Array


def find(
    folders: list[Path], work: Path, threshold: float, pages: int, share: float, executor: Executor | None = None
) -> Found:
    """What goes of the documents whose shards `write` left in `folders`.

    Equal texts go first, then near ones among the rest (Jaccard of at least `threshold`); blocks are counted over what then is
    left (`pages` and `share` as `repeated` has them; 0 pages: not counted). `work` gets the partitions' files: those that
    are there are not made again. Partitions are worked on here, or by `executor` where there are several.
    """
    shards = Shards(folders)
    work.mkdir(parents=True, exist_ok=True)
    same = np.sort(_all("equal", EQUAL, shards, work, shards.partitions("texts"), (), executor), order="document")
    alive = np.ones(len(shards), bool)
    alive[same["document"]] = False
    _save(work / "distinct", alive)
    parts = shards.partitions("bands")
    _all("edges", EDGES, shards, work, parts, (threshold,), executor, read=False)
    near = clusters(shards, [_file(work, "edges", part) for part in range(parts)])
    alive[near["document"]] = False
    _save(work / "kept", alive)
    if not pages:
        return Found(same, near, np.empty(0, REPEATED))
    for name, values in zip(("sites", "site-sizes"), site_sizes(shards, alive), strict=True):
        _save(work / name, values)
    over = _all("repeated", REPEATED, shards, work, shards.partitions("blocks"), (pages, share), executor)
    return Found(same, near, np.sort(over, order=("key", "site")))


def _all(
    kind: str,
    record: Any,
    shards: Shards,
    work: Path,
    parts: int,
    settings: tuple[float, ...],
    executor: Executor | None,
    read: bool = True,
) -> Array:
    missing = [part for part in range(parts) if not _file(work, kind, part).exists()]
    jobs = [(kind, shards.folders, work, part, parts, settings) for part in missing]
    if executor is not None and len(jobs) > 1:
        for _ in executor.map(partition, jobs):
            pass
    else:
        for job in jobs:
            partition(job, {}, lambda item: None)
    pieces = [np.fromfile(_file(work, kind, part), record) for part in range(parts)] if read else []
    return np.concatenate(pieces) if pieces else np.empty(0, record)


def partition(job: Job, skip: dict[int, str], clock: Clock) -> None:
    """Makes one partition's file, whole or not at all. The executor's task; it has no items that could be left out."""
    kind, folders, work, part, parts, settings = job
    shards = Shards(folders)
    if kind == "equal":
        found = equal(shards, part, parts)
    elif kind == "edges":
        found = edges(shards, np.load(work / "distinct.npy"), settings[0], part, parts)
    else:
        sizes = np.load(work / "sites.npy"), np.load(work / "site-sizes.npy")
        found = repeated(shards, np.load(work / "kept.npy"), sizes, int(settings[0]), settings[1], part, parts)
    draft = _file(work, kind, part).with_suffix(".draft")
    found.tofile(draft)
    draft.replace(_file(work, kind, part))


def _file(work: Path, kind: str, part: int) -> Path:
    return work / f"{kind}-{part:05d}"


def _save(path: Path, values: Array) -> None:
    draft = path.with_name(f"{path.name}.draft.npy")
    np.save(draft, values)
    draft.replace(path.with_name(f"{path.name}.npy"))
