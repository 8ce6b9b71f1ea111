"""One rank's state after one step, as a file: what survives the rank and what a spare starts from.

    8 bytes   length of the header
    header    msgpack: {"format", "rank", "step", "extra", "tensors": [[name, dtype, shape], ...]}
    tensors   raw bytes, one after the other, in the header's order
    16 bytes  xxh3-128 of all that stands before

No pickle: a shard comes over the network and is only ever read as numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import xxhash

FORMAT = 1
_LENGTH = 8
_TRAILER = 16
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
    visible: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Written:
    """Writes the shard under a draft's name and renames it inside `visible()`. The same state gives the same bytes."""
    entries = [(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in tensors.items()]
    header = msgspec.msgpack.encode({"format": FORMAT, "rank": rank, "step": step, "extra": extra, "tensors": entries})
    target = shard_path(folder, rank, step)
    draft = folder / f".{target.name}.{os.getpid()}"
    inner, whole, size = xxhash.xxh3_128(), xxhash.xxh3_64(), 0
    with draft.open("wb") as file:
        for part in (len(header).to_bytes(_LENGTH, "little"), header, *map(_bytes, tensors.values())):
            inner.update(part)
            whole.update(part)
            size += file.write(part)
        trailer = inner.digest()
        file.write(trailer)
        whole.update(trailer)
    with visible():
        draft.replace(target)
    return Written(target, size + _TRAILER, whole.hexdigest())


def read(folder: Path, rank: int, step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and `extra` of a shard, after its checksum was found right. Raises ShardError."""
    path = shard_path(folder, rank, step)
    try:
        raw = bytearray(path.read_bytes())
    except OSError as error:
        raise ShardError(f"cannot read {path.name}: {error}") from error
    if len(raw) < _LENGTH + _TRAILER or xxhash.xxh3_128_digest(memoryview(raw)[:-_TRAILER]) != bytes(raw[-_TRAILER:]):
        raise ShardError(f"{path.name} was cut or altered: its checksum is wrong")
    start = _LENGTH + int.from_bytes(raw[:_LENGTH], "little")
    header = msgspec.msgpack.decode(memoryview(raw)[_LENGTH:start])
    if (header["format"], header["rank"], header["step"]) != (FORMAT, rank, step):
        raise ShardError(f"{path.name} holds rank {header['rank']} after step {header['step']}, format {header['format']}")
    tensors: dict[str, torch.Tensor] = {}
    for name, dtype, shape in header["tensors"]:
        kind = DTYPES[dtype]
        count = torch.Size(shape).numel()
        # Copied, so that each tensor is aligned and owns its memory.
        tensors[name] = (
            torch.frombuffer(raw, dtype=torch.uint8, count=count * kind.itemsize, offset=start).clone().view(kind)
            if count
            else torch.empty(0, dtype=kind)
        ).reshape(shape)
        start += count * kind.itemsize
    return tensors, header["extra"]


def remove_before(folder: Path, rank: int, step: int) -> None:
    """Removes this rank's shards of steps before `step`."""
    for path in folder.glob(f"shard-{rank}-*"):
        if int(path.name.rsplit("-", 1)[1]) < step:
            path.unlink(missing_ok=True)


def _bytes(tensor: torch.Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
