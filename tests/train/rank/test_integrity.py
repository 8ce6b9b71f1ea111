from __future__ import annotations

import pytest

pytest.importorskip("torch")

from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.rank.integrity import FAR, outstanding, outvoted, replica_groups


def test_a_rank_stands_out_against_itself_and_its_peers() -> None:
    assert outstanding([0.1, FAR + 1, 0.3, 0.2]) == (1,)
    assert outstanding([0.1, FAR - 0.5, 0.3, 0.2]) == ()
    assert outstanding([FAR + 1] * 4) == (), "where all gradients grow, no card is at fault"
    assert outstanding([FAR + 1, FAR + 1, 0.0, 0.0]) == ()
    assert outstanding([FAR + 1]) == (), "alone there is nobody to be held against"


def test_most_replicas_name_the_one_that_differs_and_of_two_nobody_is_named() -> None:
    assert outvoted([1.0, 1.0, 1.0, 1.0], [[0, 1], [2, 3]]) is None
    three = outvoted([5.0, 7.0, 5.0, 2.0], [[0, 1, 2]])
    assert three is not None and three.ranks == (1,)
    two = outvoted([5.0, 7.0, 5.0, 5.0], [[0, 1], [2, 3]])
    assert two is not None and two.ranks == () and two.suspects == (0, 1)


def test_who_holds_the_same_weights() -> None:
    dense, experts = replica_groups(Mesh(dp_replicate=2, dp_shard=2, ep=2))
    assert dense == experts == [[0, 2], [1, 3]]
    dense, experts = replica_groups(Mesh(dp_replicate=2, dp_shard=2, ep=4))
    assert dense == [[0, 2], [1, 3]] and experts == [], "each rank has experts of its own"
    dense, experts = replica_groups(Mesh(dp_replicate=4))
    assert dense == [[0, 1, 2, 3]]
    assert replica_groups(Mesh(dp_shard=4, ep=2)) == ([], [])
    dense, _ = replica_groups(Mesh(pp=2, dp_replicate=2))
    assert dense == [[0, 1], [2, 3]]
