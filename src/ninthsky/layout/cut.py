"""A cut: how one model is divided over ranks. One cut is a small value; many are arrays, for a search in a few lines."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MESH_AXES = ("pp", "dp_replicate", "dp_shard", "ep", "cp", "tp")


@dataclass(frozen=True)
class Cut:
    """One way to divide a model, and how a step is run on it.

    The product pp x dp_replicate x dp_shard x cp x tp is the number of ranks; `ep` subdivides the data ranks and adds none.
    Ranks are numbered with pp outermost and tp innermost; the ranks that share a set of experts are neighbours.
    """

    pp: int = 1  # pipeline stages
    dp_replicate: int = 1  # whole copies of the sharded state
    dp_shard: int = 1  # FSDP shards of weights, gradients and optimizer
    ep: int = 1  # ranks that share one set of experts
    cp: int = 1  # ranks that share one sequence (Ulysses)
    tp: int = 1  # ranks that share each matrix
    interleave: int = 1  # virtual pipeline stages per rank
    micro_batch: int = 1  # sequences that one rank passes forward at once
    recompute: int = 0  # 1: a layer's activations are computed again in backward
    reshard: int = 1  # 1: gathered weights are freed after forward and gathered again for backward

    @property
    def ranks(self) -> int:
        return self.pp * self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def name(self) -> str:
        """Short and unique: axes of size 1 are left out. `dp_shard4.ep2.mb2.keep`"""
        parts = [self.mesh_name] if self.mesh_name != "whole" else []
        parts += [f"v{self.interleave}"] if self.interleave > 1 else []
        parts += [f"mb{self.micro_batch}"] if self.micro_batch > 1 else []
        parts += ["recompute"] if self.recompute else []
        parts += [] if self.reshard else ["keep"]
        return ".".join(parts) or "whole"

    @property
    def mesh_name(self) -> str:
        """The axes alone: `dp_shard4.ep2`"""
        return ".".join(f"{axis}{getattr(self, axis)}" for axis in MESH_AXES if getattr(self, axis) > 1) or "whole"

    def mesh(self) -> dict[str, int]:
        """The keys of a [mesh] block."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    def block(self) -> str:
        """The [mesh] block as it stands in run.toml."""
        return "\n".join(["[mesh]", *(f"{axis} = {size}" for axis, size in self.mesh().items())])


@dataclass(frozen=True)
class Cuts:
    """Many cuts: one int64 array [N] per field of Cut."""

    pp: Ints
    dp_replicate: Ints
    dp_shard: Ints
    ep: Ints
    cp: Ints
    tp: Ints
    interleave: Ints
    micro_batch: Ints
    recompute: Ints
    reshard: Ints

    def __len__(self) -> int:
        return len(self.pp)

    def __getitem__(self, index: int) -> Cut:
        return Cut(**{field.name: int(getattr(self, field.name)[index]) for field in fields(self)})

    def take(self, which: Ints | Bools) -> Cuts:
        """The cuts at these indices, or where the mask is true."""
        return Cuts(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    @staticmethod
    def of(*cuts: Cut) -> Cuts:
        return Cuts(**{field.name: np.array([getattr(cut, field.name) for cut in cuts], np.int64) for field in fields(Cuts)})

    @property
    def data(self) -> Ints:
        """Ranks that see different sequences."""
        return self.dp_replicate * self.dp_shard

    @property
    def shards(self) -> Ints:
        """Shards of a weight that is no expert's: FSDP goes over cp too, whose ranks hold the same weights."""
        return self.dp_shard * self.cp

    @property
    def expert_shards(self) -> Ints:
        """FSDP shards of one expert's weights: what `ep` leaves of dp_shard x cp."""
        return np.where(self.shards % self.ep == 0, self.shards // self.ep, 1)

    @property
    def expert_replicas(self) -> Ints:
        """Ranks that hold the same part of an expert: dp_replicate, or what an `ep` beyond dp_shard x cp leaves of it."""
        return np.where(self.shards % self.ep == 0, self.dp_replicate, np.maximum(1, self.data * self.cp // self.ep))
