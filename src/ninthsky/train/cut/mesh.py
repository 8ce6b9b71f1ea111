"""How ranks are cut: one small frozen value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ninthsky.errors import UserError
from ninthsky.train.cut.schedule import Name

if TYPE_CHECKING:  # a mesh is a value: it needs no torch
    from ninthsky.model.shape import Shape


@dataclass(frozen=True)
class Mesh:
    """Ranks = pp x dp_replicate x dp_shard x cp x tp. `ep` adds none: it arranges the ranks of a stage anew for experts.

    Layers are dealt to `pp` stages. The positions of a sequence are spread over cp x tp ranks; attention brings them together,
    over tp by gathering them for its own share of the heads, over cp by exchanging positions for heads. Weights that tp does
    not cut are sharded over dp_shard x cp x tp, those that it cuts over dp_shard x cp, all are repeated over dp_replicate.
    Experts are dealt to `ep` ranks of the stage, neighbours first, and each rank's experts are sharded and repeated over
    what remains. Which weight is cut by what stands in docs/train.md.
    """

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    ep: int = 1
    cp: int = 1
    tp: int = 1
    schedule: Name = "1f1b"  # of micro-batches over pipeline stages
    parts: int = 1  # pieces of the model on each stage, for the schedules that deal them out

    @classmethod
    def of(cls, block: Any) -> Mesh:
        """From a `[mesh]` block of settings, or a mapping with the same keys."""
        names = [field.name for field in fields(cls)]
        given = block if isinstance(block, dict) else {name: getattr(block, name) for name in names}
        known: dict[str, Any] = {name: given[name] for name in names if name in given}
        return cls(**known)

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.pp * self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def data_ranks(self) -> int:
        """Ranks that each read samples of their own. The cp x tp ranks of one sequence, and all pp stages, read the same."""
        return self.dp_replicate * self.dp_shard

    @property
    def stage_ranks(self) -> int:
        """Ranks of one pipeline stage."""
        return self.ranks // self.pp

    @property
    def sequence_parts(self) -> int:
        """Ranks over which the positions of one sequence are spread."""
        return self.cp * self.tp

    def data_rank(self, rank: int) -> int:
        """Which of the `data_ranks` shares of each batch `rank` reads."""
        return rank % self.stage_ranks // self.sequence_parts

    def expert_cut(self) -> tuple[int, int, int]:
        """(repeated, sharded, ep): how the ranks of a stage are arranged for experts. Its product is `stage_ranks`."""
        shards = self.dp_shard * self.sequence_parts
        if shards % self.ep == 0:
            return self.dp_replicate, shards // self.ep, self.ep
        return self.stage_ranks // self.ep, 1, self.ep

    def check(self, world: int, shape: Shape | None = None, sequence: int | None = None) -> None:
        """Raises UserError N9-CFG-013 where this cut cannot be applied to `world` ranks, or to this model, and says why."""
        problem = self._problem(world, shape, sequence)
        if problem:
            raise UserError("N9-CFG-013", *problem)

    def _problem(self, world: int, shape: Shape | None, sequence: int | None) -> tuple[str, str, str] | None:
        """(what, where, what to do) of the first thing that cannot be."""
        shards, parts = self.dp_shard * self.sequence_parts, self.sequence_parts
        other, lower, both = "n9 layout: proposes a mesh for the ranks", "lower cp or tp, raise dp_shard", f"cp x tp = {parts}"
        rules: list[tuple[object, str, str]] = [
            (self.ranks != world, f"the mesh has {self.ranks} ranks, the job {world}", other),
            (
                shards % self.ep and self.ep % shards,
                f"ep = {self.ep} and dp_shard x cp x tp = {shards}: one must divide the other",
                other,
            ),
            (self.stage_ranks % self.ep, f"ep = {self.ep} does not divide the {self.stage_ranks} ranks of a stage", other),
        ]
        if sequence is not None:
            long = f"set [train] sequence to a multiple of {parts}"
            rules.append((sequence % parts, f"{both} does not divide the {sequence} positions of a sequence", long))
        if shape is not None:
            shared = shape.shared_experts * shape.expert_dim if shape.sparse_layers else 0
            dense = shape.dense_dim if shape.dense_layers else 0
            stages = self.pp * self.parts
            rules += [
                (stages > shape.layers, f"pp x parts = {stages} for {shape.layers} layers", "lower pp, raise dp_shard"),
                (shape.heads % parts, f"{both} does not divide the {shape.heads} heads", lower),
                (shape.kv_heads % parts, f"{both} does not divide the {shape.kv_heads} key-value heads", lower),
                (dense % self.tp, f"tp = {self.tp} does not divide dense_dim = {dense}", lower),
                (shared % self.tp, f"tp = {self.tp} does not divide the shared experts' width {shared}", lower),
            ]
            _, sharded, _ = self.expert_cut()
            for number, width in shape.expert_sizes if shape.sparse_layers and self.ep > 1 else ():
                uneven = f"{sharded} ranks cannot share experts of {shape.dim} x {width} evenly"
                rules += [
                    (number % self.ep, f"ep = {self.ep} does not divide the {number} experts of width {width}", "lower ep"),
                    (shape.dim % sharded or width % sharded, uneven, "raise ep, or dp_replicate in place of dp_shard"),
                ]
        return next(((what, "[mesh]", advice) for wrong, what, advice in rules if wrong), None)
