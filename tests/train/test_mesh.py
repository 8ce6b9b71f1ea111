from __future__ import annotations

import pytest

from ninthsky.config.schema import Mesh as MeshBlock
from ninthsky.errors import UserError
from ninthsky.train.mesh import Mesh


def test_a_settings_block_and_a_json_block_are_the_same_mesh() -> None:
    assert Mesh.of(MeshBlock(dp_shard=4, ep=2)) == Mesh.of({"dp_shard": 4, "ep": 2}) == Mesh(dp_shard=4, ep=2)


@pytest.mark.parametrize(
    ("mesh", "cut"),
    [
        (Mesh(dp_shard=4), (1, 4, 1)),
        (Mesh(dp_shard=4, ep=4), (1, 1, 4)),
        (Mesh(dp_shard=8, ep=2), (1, 4, 2)),
        (Mesh(dp_replicate=2, dp_shard=4, ep=2), (2, 2, 2)),
        (Mesh(dp_replicate=4, dp_shard=2, ep=4), (2, 1, 4)),
    ],
)
def test_experts_are_dealt_over_all_data_ranks(mesh: Mesh, cut: tuple[int, int, int]) -> None:
    mesh.check(experts=8, world=mesh.ranks)
    assert mesh.expert_cut() == cut
    assert cut[0] * cut[1] * cut[2] == mesh.data_ranks


@pytest.mark.parametrize(
    ("mesh", "world", "experts", "words"),
    [
        (Mesh(dp_shard=4), 2, 8, "4 ranks, the job 2"),
        (Mesh(pp=2, dp_shard=2), 4, 8, "pp = 2.*come later"),
        (Mesh(tp=2, cp=2), 4, 8, "cp = 2, tp = 2.*come later"),
        (Mesh(dp_shard=6, ep=4), 6, 8, "one must divide the other"),
        (Mesh(dp_shard=2, dp_replicate=3, ep=4), 6, 8, "does not divide the 6"),
        (Mesh(dp_shard=4, ep=4), 4, 6, "does not divide the 6 experts"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(mesh: Mesh, world: int, experts: int, words: str) -> None:
    with pytest.raises(UserError, match=f"(?s)N9-CFG-013.*{words}"):
        mesh.check(experts, world)
