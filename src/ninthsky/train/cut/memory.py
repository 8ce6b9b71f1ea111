"""What one rank holds between steps, by formula: no tensor is made. Tests hold it against ranks that were built.

A weight's share follows the table in docs/train.md: first its cut over ep or tp, then FSDP2's over what remains, whose shares
are equal but for the last ones, which may be shorter or empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ninthsky.train.cut.grid import Place
from ninthsky.train.cut.mesh import Mesh

if TYPE_CHECKING:
    from ninthsky.model.shape import Shape

# How a weight is cut before FSDP2 cuts it: by expert; along its first or second dimension over tp; inside a block that tp cuts,
# and whole there; or not at all.
Kind = Literal["experts", "first", "second", "inside", "whole"]

WEIGHT = 4  # bytes: fp32
MOMENTS = 8  # of AdamW, two in fp32
COUNT = 4  # AdamW counts steps for each weight
STEP = 8  # the rank's own


@dataclass(frozen=True)
class Weight:
    """One weight of the uncut model."""

    kind: Kind
    shape: tuple[int, ...]


def bounds(length: int, parts: int, part: int) -> tuple[int, int]:
    """(start, end) of one of `parts` shares of `length`, as FSDP2 deals them out: equal ones, the last shorter or empty."""
    share = -(-length // parts)
    return min(part * share, length), min((part + 1) * share, length)


def own_layers(shape: Shape, mesh: Mesh, stage: int) -> list[int]:
    """Numbers of the layers of one pipeline stage: every `pp`-th part of the model is its own."""
    parts = mesh.pp * mesh.parts
    ends = [shape.layers * number // parts for number in range(parts + 1)]
    return [layer for part in range(stage, parts, mesh.pp) for layer in range(ends[part], ends[part + 1])]


def weights(shape: Shape, layers: list[int]) -> Iterator[Weight]:
    """Every weight of these layers; the embedding with the first layer, last norm and head with the last one."""
    dim, queries, keys = shape.dim, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if 0 in layers:
        yield Weight("whole", (shape.vocab, dim))
    for layer in layers:
        yield from (Weight("whole", (dim,)), Weight("whole", (dim,)))
        for rows in (queries, keys, keys):
            yield Weight("first", (rows, dim))
            if shape.attention_bias:
                yield Weight("first", (rows,))
        yield Weight("second", (dim, queries))
        if shape.qk_norm:
            yield from (Weight("inside", (shape.head_dim,)), Weight("inside", (shape.head_dim,)))
        width = shape.dense_dim
        if layer >= shape.dense_layers:
            yield Weight("whole", (shape.experts, dim))  # the router
            for number, expert in shape.expert_sizes:
                yield from (Weight("experts", (number, dim, 2 * expert)), Weight("experts", (number, expert, dim)))
            width = shape.shared_experts * shape.expert_dim
        if width:
            yield from (Weight("second", (2, width, dim)), Weight("second", (dim, width)))
    if shape.layers - 1 in layers:
        yield from (Weight("whole", (dim,)), Weight("whole", (shape.vocab, dim)))


def before_sharding(weight: Weight, mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """(shape that is left of a weight on one rank before FSDP2 shards it, over how many ranks that is sharded)."""
    few, tp, ep = mesh.dp_shard * mesh.cp, mesh.tp, mesh.ep
    shape = list(weight.shape)
    if weight.kind == "experts" and ep > 1:
        return (shape[0] // ep, *shape[1:]), mesh.expert_cut()[1]
    if tp > 1 and weight.kind in ("first", "second"):
        shape[weight.kind == "second"] //= tp
        return tuple(shape), few
    if tp > 1 and weight.kind == "inside" and few > 1:
        return tuple(shape), few
    return tuple(shape), few * tp


def elements(weight: Weight, mesh: Mesh, place: Place) -> int:
    """How many numbers of this weight the rank at `place` holds."""
    shape, shards = before_sharding(weight, mesh)
    if even(shape, shards):
        return math.prod(shape) // shards
    if weight.kind == "experts" and mesh.ep > 1:
        number = place.expert_shard
    else:
        number = place.dp_shard * mesh.cp + place.cp
        number = number * mesh.tp + place.tp if shards == mesh.dp_shard * mesh.sequence_parts else number
    start, end = bounds(shape[0], shards, number)
    return (end - start) * math.prod(shape[1:])


def even(shape: tuple[int, ...], shards: int) -> bool:
    """Whether stacked matrices have a dimension along which all shares are equal. Other weights are cut by rows in any case."""
    return len(shape) > 2 and any(size % shards == 0 for size in shape)


def state_bytes(shape: Shape, mesh: Mesh, rank: int) -> int:
    """Bytes of all that `rank` holds and the next step depends on: weights and AdamW's state, router biases, step."""
    place = Place.of(mesh, rank)
    layers = own_layers(shape, mesh, place.stage)
    held = [elements(weight, mesh, place) for weight in weights(shape, layers)]
    biases = sum(layer >= shape.dense_layers for layer in layers) * shape.experts * WEIGHT
    return sum(held) * (WEIGHT + MOMENTS) + sum(count > 0 for count in held) * COUNT + biases + STEP
