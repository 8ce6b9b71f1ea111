"""Bytes between hosts against a simulation that places every rank and counts every message."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ninthsky.layout.cluster import CHIPS, Cluster
from ninthsky.layout.cut import Cut, Cuts
from ninthsky.layout.memory import imbalance
from ninthsky.layout.shape import Sizes, Work
from ninthsky.layout.traffic import ALL_REDUCE, EXCHANGE, GATHER, Collective, collectives, egress

SIZES = Sizes(
    layers=4, dim=16, heads=4, kv_heads=4, head_dim=4, vocab=64, experts=8, experts_per_token=2, expert_dim=16,
    shared_experts=1, dense_layers=0, dense_dim=0,
)  # fmt: skip
WORK = Work(sequence=32, batch=16, compute_bytes=4, gather_bytes=4)


def cluster(hosts: int, per_host: int) -> Cluster:
    return Cluster(hosts, per_host, CHIPS["cpu"], 2.0)


def counted(kind: str, size: int, stride: int, hosts: int, per_host: int, payload: float) -> float:
    """Bytes that leave a host, on average: groups of `size` ranks `stride` apart, messages sent one by one."""
    ranks = hosts * per_host
    leaving = 0.0
    for start in range(ranks):
        if (start // stride) % size:
            continue  # the first rank of its group only
        group = [start + stride * i for i in range(size)]
        place = [rank // per_host for rank in group]
        for i in range(size):
            if kind == EXCHANGE:
                leaving += sum(payload / size for j in range(size) if place[j] != place[i])
            elif place[i] != place[(i + 1) % size]:
                leaving += payload * (size - 1) / size * (2 if kind == ALL_REDUCE else 1)
    return leaving / hosts


@pytest.mark.parametrize("kind", [GATHER, ALL_REDUCE, EXCHANGE])
@pytest.mark.parametrize(("hosts", "per_host"), [(1, 4), (2, 2), (2, 4), (4, 2), (4, 4)])
def test_egress_is_what_a_count_of_messages_gives(kind: str, hosts: int, per_host: int) -> None:
    ranks = hosts * per_host
    powers = [1 << i for i in range(ranks.bit_length()) if 1 << i <= ranks]
    checked = 0
    for size, stride in product(powers, powers):
        if size * stride > ranks:
            continue
        near = np.clip(np.array([per_host // stride]), 1, size)
        one = Collective(kind, np.array([size]), near, np.array([1000.0]), np.array([1.0]))
        assert one.egress(cluster(hosts, per_host))[0] == pytest.approx(counted(kind, size, stride, hosts, per_host, 1000.0))
        checked += 1
    assert checked >= 6


def test_an_uncut_model_sends_nothing_and_one_host_lets_nothing_out() -> None:
    assert egress(Cuts.of(Cut(micro_batch=16)), SIZES, WORK, cluster(1, 1))["total"][0] == 0
    inside = Cuts.of(Cut(dp_shard=4, ep=2), Cut(pp=2, tp=2), Cut(cp=2, dp_replicate=2))
    assert egress(inside, SIZES, WORK, cluster(1, 4))["total"].tolist() == [0, 0, 0]


def test_kept_weights_travel_less_than_freed_ones() -> None:
    both = Cuts.of(Cut(dp_shard=4, micro_batch=1, reshard=1), Cut(dp_shard=4, micro_batch=1, reshard=0))
    freed, kept = egress(both, SIZES, WORK, cluster(2, 2))["total"]
    assert freed > 3 * kept  # four micro-batches: each gathers twice and reduces once


def test_whole_experts_stay_where_ep_uses_up_the_shards() -> None:
    found = collectives(Cuts.of(Cut(dp_shard=4, ep=4, reshard=0)), SIZES, WORK, cluster(2, 2))
    assert found["gather experts"].sent()[0] == 0 and found["tokens to experts"].sent()[0] > 0


def test_pipeline_sends_are_counted_at_host_borders_only() -> None:
    """Two stages of two ranks on two hosts: each micro-batch's activations go over, gradients come back, halved per host."""
    cut = Cut(pp=2, dp_shard=2, micro_batch=2, reshard=0)
    border = 2 * WORK.sequence * SIZES.dim * WORK.compute_bytes
    sent = egress(Cuts.of(cut), SIZES, WORK, cluster(2, 2))["between stages"][0]
    assert sent == 2 * 2 * border * (16 // 4) / 2
    four = egress(Cuts.of(Cut(pp=4, micro_batch=2, reshard=0)), SIZES, WORK, cluster(2, 2))["between stages"][0]
    assert four == 2 * 1 * border * (16 // 2) / 2  # of three borders one lies between the hosts


def test_copies_are_the_states_of_a_host() -> None:
    work = Work(sequence=32, batch=16, copies=True)
    cuts = Cuts.of(Cut(dp_shard=4, ep=2, reshard=0), Cut(dp_replicate=2, dp_shard=2, reshard=0))
    sent = egress(cuts, SIZES, work, cluster(2, 2))["copies of state"]
    assert sent[0] == pytest.approx(12 * SIZES.parameters / 2)
    assert sent[1] == pytest.approx(2 * sent[0])  # replicas are copied too


def test_imbalance_grows_with_ep_and_is_none_without() -> None:
    values = imbalance(Cuts.of(*(Cut(dp_shard=8, ep=ep) for ep in (1, 2, 4, 8))), SIZES)
    assert values[0] == 1.0 and (np.diff(values) > 0).all()


def test_imbalance_agrees_with_draws() -> None:
    """The expected fullest rank of normal expert loads of the stated spread, by simulation."""
    rng = np.random.default_rng(0)
    loads = 1 + 0.3 * rng.standard_normal((40_000, 64))
    sizes = Sizes(**{**SIZES.__dict__, "experts": 64})
    for ep in (2, 4, 8, 16, 32):
        ranks = loads.reshape(len(loads), ep, -1).mean(-1)
        ranks /= ranks.mean(-1, keepdims=True)
        predicted = imbalance(Cuts.of(Cut(dp_shard=64, ep=ep)), sizes)[0]
        assert predicted == pytest.approx(ranks.max(-1).mean(), abs=0.015)
