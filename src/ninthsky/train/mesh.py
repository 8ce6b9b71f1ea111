"""How ranks are cut: one small frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ninthsky.errors import UserError

LATER = ("pp", "cp", "tp")  # cuts that this release knows by name only


@dataclass(frozen=True)
class Mesh:
    """Ranks = pp x dp_replicate x dp_shard x cp x tp. Experts are spread over `ep` of the data-parallel ranks.

    Dense weights are sharded over `dp_shard` and repeated over `dp_replicate`. Experts are dealt to `ep` ranks, neighbours
    first, and each rank's experts are sharded and repeated over the data-parallel ranks that remain.
    """

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    ep: int = 1
    cp: int = 1
    tp: int = 1

    @classmethod
    def of(cls, block: Any) -> Mesh:
        """From a `[mesh]` block of settings, or a mapping with the same keys."""
        names = ("pp", "dp_replicate", "dp_shard", "ep", "cp", "tp")
        if isinstance(block, dict):
            return cls(**{name: int(block.get(name, 1)) for name in names})
        return cls(**{name: int(getattr(block, name)) for name in names})

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.pp * self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def data_ranks(self) -> int:
        """Ranks that each read samples of their own."""
        return self.dp_replicate * self.dp_shard

    def expert_cut(self) -> tuple[int, int, int]:
        """(repeated, sharded, ep): how the data-parallel ranks are arranged for experts. Its product is `data_ranks`."""
        if self.dp_shard % self.ep == 0:
            return self.dp_replicate, self.dp_shard // self.ep, self.ep
        return self.data_ranks // self.ep, 1, self.ep

    def check(self, experts: int, world: int) -> None:
        """Raises UserError N9-CFG-013 where this cut cannot be applied, and says why."""
        problem = ""
        if self.ranks != world:
            problem = f"the mesh has {self.ranks} ranks, the job {world}"
        elif any(getattr(self, name) > 1 for name in LATER):
            cuts = ", ".join(f"{name} = {getattr(self, name)}" for name in LATER if getattr(self, name) > 1)
            problem = f"{cuts}: pipeline, context and tensor cuts come later; this release has dp_replicate, dp_shard, ep"
        elif self.dp_shard % self.ep and self.ep % self.dp_shard:
            problem = f"ep = {self.ep} and dp_shard = {self.dp_shard}: one must divide the other"
        elif self.data_ranks % self.ep:
            problem = f"ep = {self.ep} does not divide the {self.data_ranks} data-parallel ranks"
        elif experts % self.ep:
            problem = f"ep = {self.ep} does not divide the {experts} experts"
        if problem:
            raise UserError("N9-CFG-013", problem, "[mesh]", "n9 layout: proposes a mesh for [layout]'s ranks")
