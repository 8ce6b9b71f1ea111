from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ninthsky.layout.cluster import CHIPS, Cluster
from ninthsky.layout.cost import estimate
from ninthsky.layout.cut import Cut, Cuts
from ninthsky.layout.memory import memory
from ninthsky.layout.search import RULES, Problem, divisors, first_broken, meshes, search, usable_bytes
from ninthsky.layout.shape import Sizes, Work

LARGE = Sizes(
    layers=48, dim=5120, heads=40, kv_heads=8, head_dim=128, vocab=152_064, experts=128, experts_per_token=8, expert_dim=1536,
    shared_experts=1, dense_layers=1, dense_dim=12_288,
)  # fmt: skip
CARDS = Cluster(2304, 8, CHIPS["ascend-910b"], 64)


def small(hosts: int, per_host: int, experts: int, heads: int, batch: int, memory_gb: float = 2.0) -> Problem:
    sizes = Sizes(
        layers=4, dim=8 * heads, heads=heads, kv_heads=heads, head_dim=8, vocab=64, experts=experts,
        experts_per_token=1, expert_dim=12, shared_experts=1, dense_layers=1, dense_dim=32,
    )  # fmt: skip
    return Problem(sizes, Work(64, batch), Cluster(hosts, per_host, CHIPS["cpu"], memory_gb))


def legal(cut: Cut, problem: Problem) -> bool:
    """The rules once more, in plain Python, straight from their sentences."""
    sizes, shards = problem.sizes, cut.dp_shard * cut.cp
    data = cut.dp_replicate * cut.dp_shard
    expert_shards = shards // cut.ep if shards % cut.ep == 0 else 1
    even = sizes.dim % expert_shards == 0 and sizes.expert_dim % expert_shards == 0
    return (
        cut.ranks == problem.cluster.ranks
        and sizes.heads % (cut.tp * cut.cp) == 0
        and sizes.kv_heads % cut.tp == 0
        and cut.tp <= problem.cluster.ranks_per_host
        and cut.pp <= sizes.layers
        and sizes.experts % cut.ep == 0
        and (shards % cut.ep == 0 or (cut.ep % shards == 0 and (data * cut.cp) % cut.ep == 0))
        and (even or (cut.ep == 1 and expert_shards <= sizes.experts))
        and problem.work.sequence % cut.cp == 0
        and problem.work.batch % data == 0
        and problem.work.batch // data >= cut.pp
    )


@settings(max_examples=25, deadline=None)
@given(
    hosts=st.sampled_from([1, 2, 3]), per_host=st.sampled_from([1, 2, 4]), experts=st.sampled_from([2, 4, 6]),
    heads=st.sampled_from([2, 4, 6]), batch=st.sampled_from([6, 8, 24]),
)  # fmt: skip
def test_the_search_finds_every_legal_mesh_and_no_other(
    hosts: int, per_host: int, experts: int, heads: int, batch: int
) -> None:
    problem = small(hosts, per_host, experts, heads, batch, memory_gb=1000)
    axes = [int(d) for d in divisors(problem.cluster.ranks)]
    expected = {
        cut.mesh_name
        for pp, replicate, shard, ep, cp, tp in product(axes, axes, axes, axes, axes, axes)
        if legal(cut := Cut(pp=pp, dp_replicate=replicate, dp_shard=shard, ep=ep, cp=cp, tp=tp), problem)
    }
    found = search(problem, micro=(1,), interleave=(1,))
    assert {found.cuts[i].mesh_name for i in range(len(found.cuts))} == expected
    assert found.tried == len(found.cuts) + sum(rejection.count for rejection in found.rejected)


def test_18432_cards_are_searched_whole_and_ranked() -> None:
    found = search(Problem(LARGE, Work(4096, 18_432), CARDS))
    assert found.tried > 100_000 and len(found.cuts) > 1000
    assert (np.diff(found.estimate.seconds["total"]) >= 0).all()
    assert (found.estimate.memory["total"] <= usable_bytes(CARDS)).all()
    assert all((found.cuts.take(np.arange(100)))[i].ranks == 18_432 for i in range(100))
    assert 0.05 < found.estimate.mfu[0] < 0.8
    assert 1 <= found.alike() < len(found.cuts)


def test_a_factor_of_nine_cannot_shard_experts() -> None:
    """18,432 = 2^11 x 9 ranks: FSDP2 refuses uneven rows, so the 9 has to be replicas (traps 4)."""
    cuts = Cuts.of(Cut(dp_shard=18_432, ep=64), Cut(dp_replicate=9, dp_shard=2048, ep=64))
    broken = first_broken(cuts, Problem(LARGE, Work(4096, 18_432), CARDS), RULES)
    assert RULES[broken.rule[0]].name == "uneven" and broken.figure[0] > 0
    assert broken.rule[1] == -1


@pytest.mark.parametrize(
    ("cut", "rule"),
    [
        (Cut(tp=3, dp_shard=6144), "heads"),
        (Cut(tp=8, dp_shard=2304, cp=3), "heads"),
        (Cut(pp=64, dp_replicate=9, dp_shard=32), "layers"),
        (Cut(pp=4, dp_replicate=36, dp_shard=128, interleave=5), "interleave"),
        (Cut(dp_replicate=144, dp_shard=128, interleave=2), "interleave"),
        (Cut(dp_replicate=72, dp_shard=256, ep=3), "experts"),
        (Cut(dp_replicate=18, dp_shard=1024, ep=8, micro_batch=2), "batch"),
        (Cut(pp=2, dp_replicate=9, dp_shard=1024, ep=8, micro_batch=2), "bubble"),
    ],
)
def test_each_rule_speaks(cut: Cut, rule: str) -> None:
    broken = first_broken(Cuts.of(cut), Problem(LARGE, Work(4096, 18_432), CARDS), RULES)
    assert RULES[broken.rule[0]].name == rule
    assert broken.figure[0] > broken.threshold[0]


def test_tensor_cuts_stay_in_the_host() -> None:
    problem = small(4, 2, 4, 4, 8)
    broken = first_broken(Cuts.of(Cut(tp=4, dp_shard=2)), problem, RULES)
    assert RULES[broken.rule[0]].name == "host" and broken.threshold[0] == 2


def test_what_does_not_fit_is_told_with_the_leanest() -> None:
    problem = small(2, 2, 4, 4, 8, memory_gb=1e-4)
    found = search(problem)
    assert not len(found.cuts)
    rejection = next(r for r in found.rejected if r.rule == "memory")
    assert rejection.figure > rejection.threshold == usable_bytes(problem.cluster)


def test_memory_terms_add_up_and_shards_shrink_states() -> None:
    problem = small(2, 2, 4, 4, 8)
    held = memory(Cuts.of(Cut(dp_replicate=4), Cut(dp_shard=4), Cut(dp_shard=4, ep=2)), problem.sizes, problem.work)
    assert np.allclose(held["total"], sum(term for name, term in held.items() if name != "total"))
    for name, width in (("weights", 4), ("gradients", 4), ("optimizer", 8)):
        assert held[name].tolist() == pytest.approx([width * problem.sizes.parameters / shards for shards in (1, 4, 4)])


def test_recomputation_trades_memory_for_time() -> None:
    problem = Problem(LARGE, Work(4096, 18_432), CARDS)
    plain, again = Cut(dp_replicate=9, dp_shard=2048, ep=16), Cut(dp_replicate=9, dp_shard=2048, ep=16, recompute=1)
    found = estimate(Cuts.of(plain, again), problem.sizes, problem.work, problem.cluster)
    assert found.memory["activations"][1] < found.memory["activations"][0]
    assert found.seconds["compute"][1] > found.seconds["compute"][0]


def test_interleaving_shrinks_the_bubble() -> None:
    problem = Problem(LARGE, Work(4096, 18_432), CARDS)
    base = dict(pp=4, dp_replicate=9, dp_shard=512, ep=16, reshard=0)
    found = estimate(Cuts.of(Cut(**base), Cut(**base, interleave=4)), problem.sizes, problem.work, problem.cluster)
    assert found.seconds["pipeline"][1] < found.seconds["pipeline"][0]


def test_whole_meshes_multiply_to_the_ranks() -> None:
    every = meshes(small(3, 4, 6, 6, 24))
    assert (every.pp * every.dp_replicate * every.dp_shard * every.cp * every.tp == 12).all()
    assert len({every[i].mesh_name for i in range(len(every))}) == len(every)
