"""One rank's state after one step, as a file: what survives the rank and what a spare starts from.

    8 bytes   length of the header
    header    msgpack: {"format", "rank", "step", "extra", "tensors": [[name, dtype, shape], ...],
              "regions": {name: [start, shape of the whole]} of those that are parts}
    tensors   raw bytes, one after the other, in the header's order
    16 bytes  xxh3-128 of all that stands before

No pickle: a shard comes over the network and is only ever read as numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import xxhash

from ninthsky.train.cut.piece import Region

FORMAT = 1
_LENGTH = 8
_TRAILER = 16
_SPARE = ".spare"
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float64", "int64", "int32", "uint8", "bool")}


class ShardError(RuntimeError):
    """A shard file is cut, altered or another's."""


@dataclass(frozen=True)
class Written:
    """A shard file: its size in bytes and the xxh3-64 of the whole file, as agents check it."""

    path: Path
    size: int
    xxh3: str


def shard_path(folder: Path, rank: int, step: int) -> Path:
    """Where rank's state after `step` lies."""
    return folder / f"shard-{rank}-{step}"


def write(
    folder: Path,
    rank: int,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    extra: dict[str, Any],
    regions: Mapping[str, Region] | None = None,
    visible: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Written:
    """Writes the shard under a draft's name and renames it inside `visible()`. The same state gives the same bytes.

    Where `remove_before` has left a file that nobody else holds a link to, its memory is used again: new pages cost five times
    as much as the copy into them.
    """
    entries = [(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in tensors.items()]
    described = {"format": FORMAT, "rank": rank, "step": step, "extra": extra, "tensors": entries, "regions": regions or {}}
    header = msgspec.msgpack.encode(described)
    target = shard_path(folder, rank, step)
    draft = folder / f".{target.name}.{os.getpid()}"
    inner, whole, size = xxhash.xxh3_128(), xxhash.xxh3_64(), 0
    with draft.open("r+b" if _spare(folder, draft) else "wb") as file:
        for part in (len(header).to_bytes(_LENGTH, "little"), header, *map(_bytes, tensors.values())):
            inner.update(part)
            whole.update(part)
            size += file.write(part)
        trailer = inner.digest()
        file.write(trailer)
        file.truncate()
        whole.update(trailer)
    with visible():
        draft.replace(target)
    return Written(target, size + _TRAILER, whole.hexdigest())


class ShardFile:
    """A shard's file, whole in memory; its tensors are copied out one by one. Raises ShardError where its checksum is wrong."""

    def __init__(self, folder: Path, rank: int, step: int) -> None:
        path = shard_path(folder, rank, step)
        try:
            self._raw = bytearray(path.read_bytes())
        except OSError as error:
            raise ShardError(f"cannot read {path.name}: {error}") from error
        raw = self._raw
        if len(raw) < _LENGTH + _TRAILER or xxhash.xxh3_128_digest(memoryview(raw)[:-_TRAILER]) != bytes(raw[-_TRAILER:]):
            raise ShardError(f"{path.name} was cut or altered: its checksum is wrong")
        start = _LENGTH + int.from_bytes(raw[:_LENGTH], "little")
        header = msgspec.msgpack.decode(memoryview(raw)[_LENGTH:start])
        if (header["format"], header["rank"], header["step"]) != (FORMAT, rank, step):
            raise ShardError(f"{path.name} holds rank {header['rank']} after step {header['step']}, format {header['format']}")
        self.extra: dict[str, Any] = header["extra"]
        self._regions: dict[str, Any] = header["regions"]
        self._entries: dict[str, tuple[torch.dtype, tuple[int, ...], int]] = {}
        for name, dtype, shape in header["tensors"]:
            self._entries[name] = (DTYPES[dtype], tuple(shape), start)
            start += torch.Size(shape).numel() * DTYPES[dtype].itemsize

    @property
    def names(self) -> Iterable[str]:
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the part that lies here."""
        return self._entries[name][1]

    def region(self, name: str) -> Region:
        """Where this part lies in the whole."""
        if name in self._regions:
            start, whole = self._regions[name]
            return Region(tuple(start), tuple(whole))
        shape = self.shape(name)
        return Region((0,) * len(shape), shape)

    def tensor(self, name: str) -> torch.Tensor:
        """A copy, so that it is aligned and owns its memory."""
        kind, shape, start = self._entries[name]
        count = torch.Size(shape).numel()
        if not count:
            return torch.empty(shape, dtype=kind)
        raw = torch.frombuffer(self._raw, dtype=torch.uint8, count=count * kind.itemsize, offset=start)
        return raw.clone().view(kind).reshape(shape)


def read(folder: Path, rank: int, step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and `extra` of a shard, after its checksum was found right. Raises ShardError."""
    shard = ShardFile(folder, rank, step)
    return {name: shard.tensor(name) for name in shard.names}, shard.extra


def remove_before(folder: Path, rank: int, step: int) -> None:
    """Removes this rank's shards of steps before `step`. One file is left, without a shard's name, for the next `write`."""
    for path in folder.glob(f"shard-{rank}-*"):
        if int(path.name.rsplit("-", 1)[1]) < step:
            path.replace(folder / _SPARE)


def _spare(folder: Path, draft: Path) -> bool:
    """Whether the file that is left became `draft`. Under its name nobody links to it any more, so that links only go."""
    spare = folder / _SPARE
    try:
        alone = spare.stat().st_nlink == 1
        spare.replace(draft)
    except FileNotFoundError:
        return False
    if not alone:
        draft.unlink()
    return alone


def _bytes(tensor: torch.Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
