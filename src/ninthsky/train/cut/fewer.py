"""Meshes that a job can go on with when cards are lost for good: fewer replicas or shards, everything else as it is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ninthsky.errors import UserError
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.cut.schedule import Schedule

if TYPE_CHECKING:
    from ninthsky.model.shape import Shape


def fewer(mesh: Mesh, shape: Shape, sequence: int, batch: int, micro_batches: int, least: int) -> list[Mesh]:
    """For each number of ranks below the mesh's, down to `least`, the one mesh to take: largest first.

    Stages, cp and tp stay. Of several cuts into as many ranks the one that keeps most of ep is taken, then the one with most
    shards, which needs the least memory on each rank. Whether the memory suffices is not asked.
    """
    best: dict[int, Mesh] = {}
    for replicas in range(mesh.dp_replicate, 0, -1):
        for shards in range(mesh.dp_shard, 0, -1):
            for ep in (size for size in range(mesh.ep, 0, -1) if mesh.ep % size == 0):
                cut = replace(mesh, dp_replicate=replicas, dp_shard=shards, ep=ep)
                if not least <= cut.ranks < mesh.ranks or not _fits(cut, shape, sequence, batch, mesh, micro_batches):
                    continue
                other = best.get(cut.ranks)
                if other is None or (cut.ep, cut.dp_shard) > (other.ep, other.dp_shard):
                    best[cut.ranks] = cut
    return [best[ranks] for ranks in sorted(best, reverse=True)]


def micro_batches_at(mesh: Mesh, whole: Mesh, micro_batches: int) -> int:
    """So many that each is no larger than with the whole mesh, though each rank reads more of the batch."""
    return -(-micro_batches * whole.data_ranks // mesh.data_ranks)


def _fits(cut: Mesh, shape: Shape, sequence: int, batch: int, whole: Mesh, micro_batches: int) -> bool:
    number = micro_batches_at(cut, whole, micro_batches)
    if cut.data_ranks * number > batch:
        return False
    try:
        cut.check(cut.ranks, shape, sequence)
        Schedule.of(cut.schedule, cut.pp, cut.parts, number)
    except UserError:
        return False
    return True
