"""What one rank holds of one weight, and its place in the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard

from ninthsky.train.cut.collectives import all_gather
from ninthsky.train.cut.grid import Grid
from ninthsky.train.cut.memory import bounds


class Region(NamedTuple):
    """Where a part of a tensor lies: its first element in each dimension, and the shape of the whole."""

    start: tuple[int, ...]
    whole: tuple[int, ...]


@dataclass
class Piece:
    """What one rank holds of one weight. `local` shares its storage with the module's parameter."""

    name: str
    parameter: nn.Parameter
    local: Tensor
    mesh: DeviceMesh | None = None  # None: the whole weight
    placements: tuple[Placement, ...] = ()  # one for each dimension of the mesh; a dimension cut twice is cut in their order
    shape: tuple[int, ...] = ()  # of the whole weight
    repeated: dist.ProcessGroup | None = None  # ranks over which FSDP2 does not sum the gradient and the trainer has to
    grid: Grid | None = None
    axes: tuple[tuple[str, ...], ...] = ()  # of the grid, for each dimension of the mesh

    @property
    def replicas(self) -> int:
        """Ranks of a pipeline stage that hold this very part."""
        count = 1
        for size, placement in zip(self.mesh.shape if self.mesh is not None else (), self.placements, strict=True):
            count *= size if placement.is_replicate() else 1
        return count

    def gradient(self) -> Tensor | None:
        """This rank's part of the gradient, summed over all ranks."""
        grad = self.parameter.grad
        return grad.to_local() if isinstance(grad, DTensor) else grad

    def distributed(self, local: Tensor) -> Tensor:
        """`local`, cut as this weight is, as a tensor that knows its place in the whole (same storage)."""
        if self.mesh is None:
            return local
        stride = torch.empty(self.shape, device="meta").stride()
        return DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=torch.Size(self.shape), stride=stride
        )

    def whole(self) -> Tensor:
        """The whole weight on every rank (collective among the ranks that hold parts of it)."""
        cut = [dim for dim, placement in enumerate(self.placements) if placement.is_shard()]
        group = self.group(cut)
        if group is None or self.mesh is None:
            return self.local
        boxes = [self._box((self.mesh.mesh == rank).nonzero()[0].tolist()) for rank in dist.get_process_group_ranks(group)]
        sizes = [math.prod(span.stop - span.start for span in box) for box in boxes]
        own = self.local.new_zeros(max(sizes))
        own[: self.local.numel()] = self.local.flatten()
        everyone = own.new_empty(len(boxes) * len(own))
        all_gather(everyone, own, group=group)
        whole = self.local.new_empty(self.shape)
        for box, size, part in zip(boxes, sizes, everyone.chunk(len(boxes)), strict=True):
            whole[box] = part[:size].view(whole[box].shape)
        return whole

    def region(self) -> Region:
        """Where the part of this rank lies."""
        return Region(tuple(span.start for span in self.box()), tuple(self.shape))

    def box(self, rank: int | None = None) -> tuple[slice, ...]:
        """Where in the whole weight the part of this rank, or of another `rank` of the mesh, lies."""
        if self.mesh is None:
            return self._box([])
        if rank is not None:
            return self._box((self.mesh.mesh == rank).nonzero()[0].tolist())
        return self._box([self.mesh.get_local_rank(dim) for dim in range(self.mesh.ndim)])

    def _box(self, place: Sequence[int]) -> tuple[slice, ...]:
        """Where the part of the rank at `place` of the mesh lies."""
        spans = [(0, length) for length in self.shape]
        for placement, size, at in zip(self.placements, self.mesh.shape if self.mesh is not None else (), place, strict=True):
            if isinstance(placement, Shard):
                start, end = spans[placement.dim]
                first, last = bounds(end - start, size, at)
                spans[placement.dim] = (start + first, start + last)
        return tuple(slice(*span) for span in spans)

    def group(self, dims: Sequence[int]) -> dist.ProcessGroup | None:
        """The ranks along these dimensions of the mesh together (collective among them when it is asked for first)."""
        return self.grid.group(*(axis for dim in dims for axis in self.axes[dim])) if self.grid is not None else None
