"""One rank's state out of the shards of another number of ranks: each part from whoever held it, no disk in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.cut.piece import Region
from ninthsky.train.state.shards import ShardError, ShardFile
from ninthsky.train.step.trainer import Trainer


@torch.no_grad()
def recut(trainer: Trainer, before: Mesh, rank: int, bring: Callable[[int], ShardFile]) -> dict[str, Any]:
    """Fills the trainer's state from shards of the mesh `before`; -> what they carry beside it, the same in all of them.

    `bring(rank of before)` is asked for one shard after another, the likeliest first, until nothing is missing.
    Raises ShardError where all of them together lack a part.
    """
    assert trainer.mesh is not None
    own, regions = trainer.state_shard(), trainer.regions()
    missing = {name: _Missing(tensor, regions.get(name)) for name, tensor in own.items()}
    missing = {name: part for name, part in missing.items() if part.left}
    extra: dict[str, Any] | None = None
    for other in likeliest(before, trainer.mesh, rank):
        shard = bring(other)
        extra = shard.extra if extra is None else extra
        for name in missing.keys() & shard.names:
            missing[name].take(shard, name)
        missing = {name: part for name, part in missing.items() if part.left}
        if not missing:
            break
    if missing or extra is None:
        raise ShardError(f"{before.ranks} shards lack parts of {', '.join(sorted(missing)[:3])}")
    trainer.step = int(own["step"])
    return extra


def likeliest(before: Mesh, after: Mesh, rank: int) -> Iterator[int]:
    """Ranks of `before`; first those that held most of what `rank` of `after` holds: its stage, its place in a replica."""
    replica = after.stage_ranks // after.dp_replicate
    stage, place = rank // after.stage_ranks, (rank % replica) / replica

    def distance(other: int) -> tuple[bool, int, float]:
        size = before.stage_ranks // before.dp_replicate
        at = other % size / size
        return other // before.stage_ranks != stage, other % before.stage_ranks // size, abs(at - place)

    yield from sorted(range(before.ranks), key=distance)


class _Missing:
    """One tensor of this rank's, filled box by box. Shards of one mesh hold the same box, or boxes that do not meet."""

    def __init__(self, own: Tensor, region: Region | None) -> None:
        self._own, self._region = own, region or Region((0,) * own.dim(), tuple(own.shape))
        self._seen: set[tuple[int, ...]] = set()
        self.left = own.numel()

    def take(self, shard: ShardFile, name: str) -> None:
        """Copies what the shard's part of the tensor has in common with this one. Raises ShardError for another tensor's."""
        region, shape = shard.region(name), shard.shape(name)
        if region.whole != self._region.whole:
            raise ShardError(f"{name} is of shape {region.whole}, here {self._region.whole}")
        if region.start in self._seen or 0 in shape:
            return
        spans = [
            (max(mine, theirs), min(mine + length, theirs + other))
            for mine, length, theirs, other in zip(self._region.start, self._own.shape, region.start, shape, strict=True)
        ]
        if any(start >= end for start, end in spans):
            return
        self._seen.add(region.start)
        target = tuple(slice(a - at, b - at) for (a, b), at in zip(spans, self._region.start, strict=True))
        source = tuple(slice(a - at, b - at) for (a, b), at in zip(spans, region.start, strict=True))
        part = shard.tensor(name)[source]
        self._own[target] = part
        self.left -= part.numel()
