"""Bytes that one rank hands to collectives in a step, by formula. Tests hold it against a process group that counts.

Counted is what a collective works on: the whole for gather, reduce-scatter and all-reduce, what this rank gives away for
all-to-all and send. On the wire a ring moves (n - 1) / n of that for gather and reduce-scatter and twice as much for all-reduce
(Patarasuk and Yuan 2009), an all-to-all (n - 1) / n under even routing.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from ninthsky.train.cut.grid import Place, axes_sizes
from ninthsky.train.cut.memory import before_sharding, elements, even, own_layers, weights
from ninthsky.train.cut.mesh import Mesh

if TYPE_CHECKING:
    from ninthsky.model.shape import Shape

GATHER, SCATTER, REDUCE, EXCHANGE, SEND = "gather", "reduce-scatter", "all-reduce", "all-to-all", "send"
VOTE = 5 * 8  # bytes of a Gate
COUNT = 8  # bytes of one expert's load


def traffic(
    shape: Shape, mesh: Mesh, rank: int, rows: int, sequence: int, micro_batches: int = 1, width: int = 4, again: bool = False
) -> Counter[tuple[str, int]]:
    """Bytes in one step of `rank`: {(kind of collective, ranks in its group): bytes}.

    `rows` are the sequences that this rank reads, all `micro_batches` together; `width` is the bytes of an activation;
    `again` is recomputation. What comes back from experts is counted as under even routing: of all ranks together it is exact.
    """
    place, found = Place.of(mesh, rank), Counter[tuple[str, int]]()
    layers = own_layers(shape, mesh, place.stage)
    _weights(found, shape, mesh, place, layers)
    passes = 3 if again else 2
    tokens = rows * sequence // mesh.sequence_parts  # positions of this rank
    for layer in layers:
        sparse = layer >= shape.dense_layers
        blocks = 2 if not sparse or shape.shared_experts else 1  # that tp cuts
        stream = tokens * mesh.tp * shape.dim * width
        found[GATHER, mesh.tp] += blocks * passes * stream
        # Recomputation stops where nothing more is needed: before the last block's answers are dealt out.
        found[SCATTER, mesh.tp] += (blocks * passes - (again and blocks == 2)) * stream
        heads = 2 * shape.heads + 2 * shape.kv_heads  # queries, keys, values there, answers back
        found[EXCHANGE, mesh.cp] += passes * tokens * heads * shape.head_dim * width
        if sparse:
            counts = (passes - 1) * micro_batches * COUNT * shape.experts  # go ahead of the tokens, in forward
            found[EXCHANGE, mesh.ep] += 2 * passes * tokens * shape.experts_per_token * shape.dim * width + counts
    found[SEND, mesh.pp] += _sends(mesh, place.stage) * tokens * shape.dim * 4
    found[GATHER, mesh.ranks] += VOTE * mesh.ranks
    found[REDUCE, mesh.ranks] += COUNT * shape.experts * shape.sparse_layers
    return Counter({key: count for key, count in found.items() if key[1] > 1 and count})


def sent(kind: str, ranks: int, count: float) -> float:
    """Bytes that leave a rank, of `count` counted ones: see above."""
    share = {GATHER: 1.0, SCATTER: 1.0, REDUCE: 2.0, EXCHANGE: 1.0}.get(kind)
    return count if share is None else share * count * (ranks - 1) / ranks


def _weights(found: Counter[tuple[str, int]], shape: Shape, mesh: Mesh, place: Place, layers: list[int]) -> None:
    """Weights are gathered once in a step, and gradients reduced once, in fp32 both."""
    repeated, _, _ = axes_sizes(mesh, ("expert_replicate", "expert_shard", "ep"))
    for weight in weights(shape, layers):
        left, shards = before_sharding(weight, mesh)
        copies = repeated if weight.kind == "experts" and mesh.ep > 1 else mesh.dp_replicate
        whole = 4 * math.prod(left)
        if shards > 1:
            if not even(left, shards):  # FSDP2 fills all shares up to the longest
                whole = 4 * -(-left[0] // shards) * shards * math.prod(left[1:])
            found[GATHER, shards] += whole
            found[SCATTER, shards] += whole
        found[REDUCE, copies] += whole // shards
        if weight.kind == "inside" and shards == mesh.dp_shard * mesh.cp > 1:
            found[REDUCE, mesh.tp] += 4 * elements(weight, mesh, place)


def _sends(mesh: Mesh, stage: int) -> int:
    """How often a rank of this stage hands on the positions it has: forward from all its parts but the last, and back."""
    parts = range(stage, mesh.pp * mesh.parts, mesh.pp)
    return sum((part < mesh.pp * mesh.parts - 1) + (part > 0) for part in parts) if mesh.pp > 1 else 0
