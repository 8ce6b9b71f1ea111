from __future__ import annotations

import pytest

from ninthsky.config.schema import Mesh as MeshBlock
from ninthsky.errors import UserError
from ninthsky.model.shape import Shape
from ninthsky.train.cut.mesh import Mesh

SHAPE = Shape(97, 3, 32, 4, 2, 8, 2, 24, dense_layers=1, dense_dim=48)


def test_a_block_of_settings_becomes_a_mesh() -> None:
    assert Mesh.of(MeshBlock(dp_shard=4, ep=2)) == Mesh.of({"dp_shard": 4, "ep": 2}) == Mesh(dp_shard=4, ep=2)


@pytest.mark.parametrize(
    ("mesh", "cut"),
    [
        (Mesh(dp_shard=4), (1, 4, 1)),
        (Mesh(dp_shard=4, ep=4), (1, 1, 4)),
        (Mesh(dp_shard=8, ep=2), (1, 4, 2)),
        (Mesh(dp_replicate=2, dp_shard=4, ep=2), (2, 2, 2)),
        (Mesh(dp_replicate=4, dp_shard=2, ep=4), (2, 1, 4)),
        (Mesh(pp=2, dp_shard=2, cp=2, tp=2, ep=4), (1, 2, 4)),
        (Mesh(dp_replicate=3, tp=2, ep=2), (3, 1, 2)),
    ],
)
def test_experts_are_dealt_over_all_ranks_of_a_stage(mesh: Mesh, cut: tuple[int, int, int]) -> None:
    mesh.check(mesh.ranks, Shape(97, 4, 32, 4, 4, 8, 2, 24, dense_layers=1, dense_dim=48), sequence=16)
    assert mesh.expert_cut() == cut
    assert cut[0] * cut[1] * cut[2] == mesh.stage_ranks


@pytest.mark.parametrize(
    ("mesh", "world", "message"),
    [
        (Mesh(dp_shard=4), 2, "4 ranks, the job 2"),
        (Mesh(dp_shard=6, ep=4), 6, "one must divide the other"),
        (Mesh(dp_shard=2, dp_replicate=3, ep=4), 6, "does not divide the 6"),
        (Mesh(dp_shard=3, ep=3), 3, "ep = 3 does not divide the 8 experts"),
        (Mesh(dp_shard=5), 5, ""),  # rows need not come out even
        (Mesh(dp_shard=10, ep=2), 10, "5 ranks cannot share experts of 32 x 24 evenly"),
        (Mesh(pp=4), 4, "pp x parts = 4 for 3 layers"),
        (Mesh(pp=2, parts=2, schedule="interleaved"), 2, "pp x parts = 4 for 3 layers"),
        (Mesh(cp=3), 3, "cp x tp = 3 does not divide the 16 positions"),
        (Mesh(cp=8), 8, "cp x tp = 8 does not divide the 4 heads"),
        (Mesh(cp=2, tp=2), 4, "cp x tp = 4 does not divide the 2 key-value heads"),
        (Mesh(cp=2, dp_shard=2), 4, ""),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(mesh: Mesh, world: int, message: str) -> None:
    if not message:
        mesh.check(world, SHAPE, sequence=16)
        return
    with pytest.raises(UserError, match=message) as refused:
        mesh.check(world, SHAPE, sequence=16)
    assert refused.value.code == "N9-CFG-013" and refused.value.next


def test_widths_that_tp_cannot_cut_are_refused() -> None:
    for shape, message in (
        (Shape(97, 3, 32, 4, 4, 8, 2, 24, dense_layers=1, dense_dim=50), "dense_dim = 50"),
        (Shape(97, 3, 32, 4, 4, 8, 2, 26, dense_layers=0), "shared experts' width 26"),
    ):
        with pytest.raises(UserError, match=message):
            Mesh(tp=4).check(4, shape)
    Mesh(tp=4).check(4, Shape(97, 3, 32, 4, 4, 8, 2, 20, shared_experts=0, dense_layers=0))
