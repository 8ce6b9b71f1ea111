"""What one rank writes of a checkpoint: planned with the others once, then written, read back and described by itself.

DCP plans collectively (who writes which part, and where it belongs in the whole); that is done in the foreground, once for each
structure of state. Writing, reading back and sealing need no collective: ranks leave receipts in the unfinished folder, and
rank 0 puts them together. So a background thread needs no process group of its own, and cannot stand in a collective that the
guard would take for a hang.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
import xxhash
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from ninthsky.train.state.checkpoint.seal import Files

State = Mapping[str, torch.Tensor]


class Item(msgspec.Struct, frozen=True, array_like=True):
    """Where one tensor, or one part of it, lies."""

    name: str
    offset: list[int] | None  # of the part in the whole
    index: int | None
    file: str
    start: int  # byte
    length: int


class Receipt(msgspec.Struct, frozen=True):
    """What a rank has written and read back, or why it has not."""

    problem: str = ""
    files: Files = {}
    items: list[Item] = []


class PlanError(Exception):
    """What the ranks hold does not fit together to one whole. Raised on every rank alike."""


class Part:
    """One rank's part of every checkpoint with the same structure of state. Construction is collective where `world` > 1.

    `state` is the distributed tree (DTensors know their place in the whole). Raises PlanError.
    """

    def __init__(self, state: State, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        planner = DefaultSavePlanner()
        planner.set_up_planner(dict(state), None, rank == 0)
        own = planner.create_local_plan()
        self._metadata: Metadata | None = None
        found: list[Any] = [None]
        if world == 1:
            found = self._global(planner, [own])
        else:
            plans: list[Any] = [None] * world
            dist.gather_object(own, plans if rank == 0 else None)
            dist.scatter_object_list(found, self._global(planner, plans) if rank == 0 else None)
        if isinstance(found[0], str):
            raise PlanError(found[0])
        self._plan: SavePlan = planner.finish_plan(found[0])

    def _global(self, planner: DefaultSavePlanner, plans: list[SavePlan]) -> list[Any]:
        """Every rank's plan, or in place of each why there is none."""
        try:
            planned, self._metadata = planner.create_global_plan(plans)
        except ValueError as error:
            return [str(error)] * len(plans)
        return _Writer(".").prepare_global_plan(planned)

    def write(self, staged: State, folder: Path) -> Receipt:
        """Writes and syncs this rank's file, lets go of its pages, reads it back and compares it bit by bit.

        Raises OSError where the disk does not give back what was written, RuntimeError where torch cannot write.
        """
        if problem := self._not_finite(staged):
            return Receipt(problem)
        results = _Writer(folder).write_data(self._plan, _Staged(staged)).wait()
        items = [
            Item(
                result.index.fqn,
                None if result.index.offset is None else list(result.index.offset),
                result.index.index,
                result.storage_data.relative_path,
                result.storage_data.offset,
                result.storage_data.length,
            )
            for result in results
        ]
        files = {
            name: _read_back(folder / name, [i for i in items if i.file == name], staged) for name in {i.file for i in items}
        }
        return Receipt("", files, items)

    def finish(self, folder: Path, receipts: list[Receipt]) -> Files:
        """Writes DCP's metadata (rank 0); -> all files of all ranks. Raises OSError."""
        assert self._metadata is not None, "rank 0 plans for all"
        results = [
            WriteResult(
                MetadataIndex(item.name, None if item.offset is None else torch.Size(item.offset), item.index),
                item.length,
                _StorageInfo(item.file, item.start, item.length),
            )
            for receipt in receipts
            for item in receipt.items
        ]
        _Writer(folder).finish(self._metadata, [results])
        return {name: entry for receipt in receipts for name, entry in receipt.files.items()}

    def _not_finite(self, staged: State) -> str:
        for name, tensor in staged.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return f"rank {self.rank}: state is not finite ({name})"
        return ""


def leave_receipt(folder: Path, rank: int, receipt: Receipt) -> None:
    """Puts a receipt where rank 0 looks for it, whole or not at all. Raises OSError."""
    draft = folder / f".receipt-{rank}.draft"
    draft.write_bytes(msgspec.json.encode(receipt))
    draft.rename(_receipt(folder, rank))


def take_receipts(folder: Path, missing: set[int]) -> dict[int, Receipt]:
    """Those of the missing that have come; they are removed. Raises OSError or msgspec.DecodeError."""
    found = {}
    for rank in missing:
        path = _receipt(folder, rank)
        if path.exists():
            found[rank] = msgspec.json.decode(path.read_bytes(), type=Receipt)
            path.unlink()
    return found


def _receipt(folder: Path, rank: int) -> Path:
    return folder / f".receipt-{rank}.json"


def _read_back(path: Path, items: list[Item], staged: State) -> dict[str, Any]:
    """The file's size and checksum, of the bytes that were compared. Raises OSError where one differs."""
    hasher, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, where the kernel can be told so
        for item in sorted(items, key=lambda item: item.start):
            raw = file.read(item.length)
            if item.start != size or len(raw) != item.length:
                raise OSError(f"{path.name} is cut")
            hasher.update(raw)
            size += len(raw)
            if not torch.equal(torch.load(io.BytesIO(raw), weights_only=True), staged[item.name]):
                raise OSError(f"{item.name} came back from the disk otherwise than it was written")
        rest = file.read()
    hasher.update(rest)
    return {"size": size + len(rest), "xxh3": hasher.hexdigest()}


class _Staged(DefaultSavePlanner):
    """Gives the writer plain copies of what this rank holds of the distributed tensors that were planned with."""

    def __init__(self, staged: State) -> None:
        super().__init__()
        self.staged = staged

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.staged[index.fqn]


class _Writer(FileSystemWriter):
    def storage_meta(self) -> StorageMeta:
        return StorageMeta(save_id=self.save_id)  # without the folder's name, which changes
