from __future__ import annotations

import math

import pytest

from benchmarks.parity import GREAT, GREAT_MESH, build_great
from ninthsky.model import Decoder, Shape
from ninthsky.train.cut.grid import Place
from ninthsky.train.cut.memory import elements, own_layers, state_bytes, weights
from ninthsky.train.cut.mesh import Mesh

SHAPES = [
    Shape(97, 3, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48),
    Shape(101, 4, 48, 8, 4, 8, 2, 24, dense_layers=0, shared_experts=0, qk_norm=False, attention_bias=True),
    Shape(64, 2, 32, 4, 4, 6, 2, 24, dense_layers=1, dense_dim=40, expert_dims=(24, 24, 16, 16, 16, 16)),
]
MESHES = [
    Mesh(dp_shard=3),
    Mesh(dp_replicate=2, dp_shard=2, ep=2),
    Mesh(dp_shard=2, cp=2, tp=2, ep=2),
    Mesh(pp=2, dp_replicate=3, tp=2, ep=2),
    Mesh(dp_replicate=2, dp_shard=4, tp=2, ep=2),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_list_of_weights_is_the_decoders(shape: Shape) -> None:
    listed = sorted(weight.shape for weight in weights(shape, list(range(shape.layers))))
    assert listed == sorted(tuple(parameter.shape) for parameter in Decoder(shape, held=False).parameters())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mesh", MESHES)
def test_every_number_is_held_as_often_as_it_is_repeated(shape: Shape, mesh: Mesh) -> None:
    repeated, _, _ = mesh.expert_cut()
    few = mesh.dp_shard * mesh.cp
    for stage in range(mesh.pp):
        for weight in weights(shape, own_layers(shape, mesh, stage)):
            ranks = range(stage * mesh.stage_ranks, (stage + 1) * mesh.stage_ranks)
            held = sum(elements(weight, mesh, Place.of(mesh, rank)) for rank in ranks)
            copies = repeated if weight.kind == "experts" and mesh.ep > 1 else mesh.dp_replicate
            copies *= mesh.tp if weight.kind == "inside" and few > 1 else 1
            assert held == copies * math.prod(weight.shape), weight


def test_stages_share_the_layers() -> None:
    shape, mesh = SHAPES[1], Mesh(pp=2, parts=2, schedule="interleaved")
    assert [own_layers(shape, mesh, stage) for stage in range(2)] == [[0, 2], [1, 3]]


@pytest.mark.slow
def test_119_billion_weights_on_one_rank_of_18432() -> None:
    """Only what this rank holds gets memory: 0.6 GiB of 1.3 TiB of weights and AdamW's state."""
    assert GREAT_MESH.ranks == 18_432 and 119e9 < GREAT.parameters() < 120e9
    found = build_great(12_345)
    assert found["held"] == state_bytes(GREAT, GREAT_MESH, 12_345) == found["formula"]
    assert found["held"] < 0.7 * 2**30
