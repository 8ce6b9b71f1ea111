"""Where a rank stands in a mesh, and the process groups in which it meets the others.

Ranks are numbered with pp outermost, then dp_replicate, dp_shard, cp, tp innermost. The ranks of one pipeline stage are
numbered a second time for its experts: expert_replicate, expert_shard, ep innermost, so that ranks that share a set of experts
are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ninthsky.train.cut.mesh import Mesh

DENSE = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
EXPERT = ("pp", "expert_replicate", "expert_shard", "ep")
STAGE = DENSE[1:]  # the axes of one pipeline stage


@dataclass(frozen=True)
class Place:
    """Coordinates of one rank, each counted from 0."""

    stage: int
    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int
    expert_replicate: int
    expert_shard: int
    ep: int

    @property
    def counts(self) -> bool:
        """Whether this rank, of those that share a sequence, is the one that reports how many tokens it has."""
        return self.cp == 0 and self.tp == 0

    @classmethod
    def of(cls, mesh: Mesh, rank: int) -> Place:
        """The place of `rank`."""
        dense = np.unravel_index(rank, axes_sizes(mesh, DENSE))
        expert = np.unravel_index(rank, axes_sizes(mesh, EXPERT))
        return cls(*map(int, dense), *map(int, expert[1:]))


def axes_sizes(mesh: Mesh, axes: tuple[str, ...]) -> tuple[int, ...]:
    """How many ranks each of these axes has."""
    sizes = dict(zip(EXPERT[1:], mesh.expert_cut(), strict=True))
    return tuple(sizes[axis] if axis in sizes else getattr(mesh, axis) for axis in axes)


def companions(mesh: Mesh, rank: int, *axes: str) -> np.ndarray:
    """The ranks that differ from `rank` along `axes` only, itself among them: int64, one dimension for each of the axes."""
    order = DENSE if set(axes) <= set(DENSE) else EXPERT
    sizes = axes_sizes(mesh, order)
    place = np.unravel_index(rank, sizes)
    chosen = tuple(slice(None) if axis in axes else int(at) for axis, at in zip(order, place, strict=True))
    found = np.arange(mesh.ranks).reshape(sizes)[chosen]
    kept = [axis for axis in order if axis in axes]
    return found.transpose([kept.index(axis) for axis in axes])


class Grid:
    """The groups of this process in the default process group. Each is made when it is first asked for and kept.

    Making one is collective among its own members only: every rank must ask for the same axes in the same order.
    """

    def __init__(self, mesh: Mesh, device: torch.device) -> None:
        self.mesh, self.device = mesh, device
        self.rank = dist.get_rank()
        self.place = Place.of(mesh, self.rank)
        self._groups: dict[tuple[str, ...], dist.ProcessGroup] = {}
        self._meshes: dict[tuple[tuple[str, tuple[str, ...]], ...], DeviceMesh] = {}

    def size(self, *axes: str) -> int:
        """Ranks along these axes together."""
        return int(np.prod(axes_sizes(self.mesh, axes)))

    def group(self, *axes: str) -> dist.ProcessGroup | None:
        """This rank's group along these axes (in any order), ranks by their numbers; None where it would be alone in it."""
        kept = tuple(axis for axis in dict.fromkeys((*DENSE, *EXPERT)) if axis in axes and self.size(axis) > 1)
        if not kept:
            return None
        if kept not in self._groups:
            ranks = sorted(companions(self.mesh, self.rank, *kept).flatten().tolist())
            made = dist.group.WORLD
            if len(ranks) < self.mesh.ranks:
                made = dist.new_group(ranks, use_local_synchronization=True, group_desc=".".join(kept))
            assert made is not None, "every rank is a member of its own group"
            self._groups[kept] = made
        return self._groups[kept]

    def device_mesh(self, **dims: tuple[str, ...]) -> DeviceMesh | None:
        """A mesh over this rank's own groups: name of a dimension -> the axes that are folded into it, in ascending order.

        Dimensions of size 1 are left out; None where none remains.
        """
        kept = {name: tuple(a for a in axes if self.size(a) > 1) for name, axes in dims.items() if self.size(*axes) > 1}
        if not kept:
            return None
        key = tuple(kept.items())
        if key not in self._meshes:
            self._meshes[key] = self._made(kept)
        return self._meshes[key]

    def _made(self, kept: dict[str, tuple[str, ...]]) -> DeviceMesh:
        groups = [group for axes in kept.values() if (group := self.group(*axes)) is not None]
        every = companions(self.mesh, self.rank, *(axis for axes in kept.values() for axis in axes))
        ranks = torch.from_numpy(every.reshape([self.size(*axes) for axes in kept.values()]).copy())
        if len(groups) == 1:
            return DeviceMesh.from_group(groups[0], self.device.type, mesh_dim_names=tuple(kept))
        return DeviceMesh.from_group(groups, self.device.type, mesh=ranks, mesh_dim_names=tuple(kept))
