"""What a step sends: every collective with its group, where the group lies, its bytes and its time.

Bytes are exact for the algorithm named: rings for gather, scatter and reduce (Patarasuk and Yuan 2009), direct exchange for
all-to-all. A ring in rank order crosses from host to host once per host; its egress is what leaves one host, summed over the
groups on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ninthsky.layout.cluster import Cluster
from ninthsky.layout.cut import Cuts, Floats, Ints
from ninthsky.layout.memory import held, imbalance, micro_batches, tokens_at_once
from ninthsky.layout.shape import Sizes, Work

GATHER, ALL_REDUCE, EXCHANGE = "gather", "all-reduce", "all-to-all"  # reduce-scatter sends what gather sends


@dataclass(frozen=True)
class Collective:
    """One kind of collective over a whole step."""

    kind: str
    size: Ints  # ranks in the group
    near: Ints  # of these, on one host
    payload: Floats  # bytes of the whole (gather, all-reduce), or that a rank hands over (all-to-all), per step
    calls: Floats  # per step
    skew: Floats | float = 1.0  # the fullest rank's payload over the mean: it sets the time, not the bytes

    def sent(self) -> Floats:
        """Bytes that one rank sends per step."""
        passes = 2.0 if self.kind == ALL_REDUCE else 1.0
        return passes * self.payload * (self.size - 1) / self.size

    def egress(self, cluster: Cluster) -> Floats:
        """Bytes that leave one host per step."""
        if self.kind == EXCHANGE:
            return cluster.ranks_per_host * self.payload * (self.size - self.near) / self.size
        return np.where(self.size > self.near, cluster.ranks_per_host / self.near * self.sent(), 0.0)

    def seconds(self, cluster: Cluster) -> Floats:
        """Time per step when nothing hides it: the slower of host and network, and a latency per call."""
        chip = cluster.chip
        inside = self.sent() / (chip.link_gbs * 1e9)
        if self.kind == EXCHANGE:  # what stays on the host; a ring passes everything on
            inside = self.payload * (self.near - 1) / self.size / (chip.link_gbs * 1e9)
        between = self.egress(cluster) / (cluster.ranks_per_host * chip.network_gbs * 1e9)
        latency = self.calls * chip.latency_us * 1e-6 * np.log2(np.maximum(self.size, 1))
        return np.where(self.size > 1, np.maximum(inside, between) * self.skew + latency, 0.0)


def collectives(cuts: Cuts, sizes: Sizes, work: Work, cluster: Cluster) -> dict[str, Collective]:
    """All collectives of one step, by what they are for."""
    part, count = held(cuts, sizes, work), micro_batches(cuts, work)
    tokens, width = tokens_at_once(cuts, work), work.gather_bytes
    depth = np.ceil(sizes.layers / cuts.pp)
    sparse = np.minimum(depth, sizes.sparse_layers)
    one = np.ones(len(cuts), np.int64)

    def near(size: Ints, stride: Ints) -> Ints:
        return np.clip(cluster.ranks_per_host // stride, 1, size)

    def over(
        kind: str, size: Ints, stride: Ints, payload: Floats, calls: Floats | Ints, skew: Floats | float = 1.0
    ) -> Collective:
        active = size > 1
        return Collective(kind, size, near(size, stride), np.where(active, payload, 0.0), np.where(active, calls, 0.0), skew)

    # Freed weights are gathered for forward and for backward of each micro-batch and reduced after each; kept ones once a step.
    gathers = np.where(cuts.reshard == 1, 2 * count, 1)
    reduces = np.where(cuts.reshard == 1, count, 1)
    # Of the embedding, head and last norm forward's copy is kept for backward (FSDP2 does not reshard its root).
    gathered = part.common * gathers - part.ends * np.where(cuts.reshard == 1, count, 0)
    # Collectives per pass: units are layers, or several small ones together.
    units = np.minimum(depth, np.ceil((part.common + part.routed) * width / work.unit_bytes))
    summed = work.gradient_bytes * reduces
    stride = cuts.ep * cuts.tp
    copies = tokens * sizes.experts_per_token * sizes.dim * work.compute_bytes / cuts.tp
    border = tokens * sizes.dim * work.compute_bytes
    attention = tokens * (2 * sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim * work.compute_bytes / cuts.tp
    passes = np.where(cuts.recompute == 1, 3, 2)  # forward and backward, and forward again
    return {
        "gather weights": over(GATHER, cuts.shards, cuts.tp, width * gathered, units * gathers),
        "reduce gradients": over(GATHER, cuts.shards, cuts.tp, summed * part.common, units * reduces),
        "reduce over replicas": over(
            ALL_REDUCE, cuts.dp_replicate, cuts.shards * cuts.tp, summed * part.common_shard, units * reduces
        ),
        "gather experts": over(GATHER, cuts.expert_shards, stride, width * part.routed * gathers, units * gathers),
        "reduce expert gradients": over(GATHER, cuts.expert_shards, stride, summed * part.routed, units * reduces),
        "reduce experts over replicas": over(
            ALL_REDUCE, cuts.expert_replicas, cuts.expert_shards * stride, summed * part.routed_shard, units * reduces
        ),
        # Out and back, in forward and in backward; the counts go ahead in a call of their own.
        "tokens to experts": over(
            EXCHANGE,
            cuts.ep,
            cuts.tp,
            2 * copies * sparse * count * passes,
            sparse * count * (2 * passes + 1.0),
            imbalance(cuts, sizes),
        ),
        # Gather before and scatter after each of two blocks (sequence parallelism), per pass.
        "tensor": over(GATHER, cuts.tp, one, 4 * border * depth * count * passes, 4 * depth * count * passes),
        "sequence": over(EXCHANGE, cuts.cp, cuts.tp, attention * depth * count * passes, 4.0 * depth * count * passes),
    }


def pipeline_seconds(cuts: Cuts, sizes: Sizes, work: Work, cluster: Cluster) -> Floats:
    """Time of the sends between stages per micro-batch, forward and backward, on one rank."""
    border = tokens_at_once(cuts, work) * sizes.dim * work.compute_bytes / cuts.tp
    return np.where(
        cuts.pp > 1, 2 * cuts.interleave * (border / (cluster.chip.network_gbs * 1e9) + cluster.chip.latency_us * 1e-6), 0.0
    )


def egress(cuts: Cuts, sizes: Sizes, work: Work, cluster: Cluster) -> dict[str, Floats]:
    """Bytes that leave one host per step, on average over hosts: by collective, between stages, for copies, in all."""
    border = tokens_at_once(cuts, work) * sizes.dim * work.compute_bytes / cuts.tp
    stage = cluster.ranks // cuts.pp  # ranks of one pipeline stage
    # Passes from host to host on the way through all virtual stages; each rank sends forward, and gradients come back.
    places = np.where(stage >= cluster.ranks_per_host, cuts.pp, np.minimum(cluster.hosts, cuts.pp))
    crossings = np.where((cuts.pp > 1) & (cluster.hosts > 1), cuts.interleave * places - 1, 0)
    terms = {name: c.egress(cluster) for name, c in collectives(cuts, sizes, work, cluster).items()}
    terms["between stages"] = 2 * crossings * stage * border * micro_batches(cuts, work) / cluster.hosts
    # A peer on another host keeps each rank's weights and moments, so that a card's death loses nothing.
    state = (work.master_bytes + work.optimizer_bytes) * held(cuts, sizes, work).shard
    terms["copies of state"] = cluster.ranks_per_host * state * (1.0 if work.copies and cluster.hosts > 1 else 0.0)
    terms["total"] = np.sum(list(terms.values()), axis=0)
    return terms
