from __future__ import annotations

from collections import Counter

import pytest

from ninthsky.train.cut.grid import DENSE, EXPERT, Place, axes_sizes, companions
from ninthsky.train.cut.mesh import Mesh

GREAT = Mesh(pp=2, dp_replicate=2, dp_shard=3, cp=2, tp=2, ep=4)
MESHES = [GREAT, Mesh(dp_shard=4, ep=2), Mesh(pp=4, tp=2), Mesh(dp_replicate=3, dp_shard=2, ep=6)]


def test_the_order_of_ranks() -> None:
    assert Place.of(GREAT, 0) == Place(0, 0, 0, 0, 0, 0, 0, 0)
    assert Place.of(GREAT, 1).tp == 1 and Place.of(GREAT, 2).cp == 1 and Place.of(GREAT, 4).dp_shard == 1
    assert Place.of(GREAT, 24).stage == 1
    assert Place.of(GREAT, 47) == Place(1, 1, 2, 1, 1, 1, 2, 3)


@pytest.mark.parametrize("mesh", MESHES)
def test_groups_part_the_ranks(mesh: Mesh) -> None:
    for axes in ((axis,) for axis in dict.fromkeys((*DENSE, *EXPERT))):
        groups = {tuple(companions(mesh, rank, *axes).flatten().tolist()) for rank in range(mesh.ranks)}
        assert Counter(rank for group in groups for rank in group) == Counter(range(mesh.ranks))
        assert {len(group) for group in groups} == {axes_sizes(mesh, axes)[0]}
    whole = companions(mesh, 0, *DENSE)
    assert whole.flatten().tolist() == list(range(mesh.ranks))


def test_dimensions_come_in_the_order_asked_for() -> None:
    assert companions(GREAT, 5, "tp", "dp_shard").tolist() == [[0, 4, 8], [1, 5, 9]]
    assert companions(GREAT, 5, "ep").tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("mesh", MESHES)
def test_each_share_of_a_batch_is_read_by_the_ranks_of_its_sequences(mesh: Mesh) -> None:
    read = Counter(mesh.data_rank(rank) for rank in range(mesh.ranks))
    assert read == dict.fromkeys(range(mesh.data_ranks), mesh.pp * mesh.sequence_parts)
    counted = Counter(mesh.data_rank(rank) for rank in range(mesh.ranks) if Place.of(mesh, rank).counts)
    assert counted == dict.fromkeys(range(mesh.data_ranks), mesh.pp)
