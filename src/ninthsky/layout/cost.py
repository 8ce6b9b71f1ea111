"""Seconds of one training step: matrix products, attention, memory-bound work, collectives, bubble, optimizer.

The form is analytic; the numbers in `Fit` are fitted on published runs (`python -m benchmarks.layout`). Its domain is that
of those runs: widths of 3,072 and up, steps of a second and up. Below it, launch latency rules, and the order of cuts is
worth more than their seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ninthsky.layout.cluster import Cluster
from ninthsky.layout.cut import Cuts, Floats
from ninthsky.layout.memory import held, imbalance, memory, micro_batches, tokens_at_once
from ninthsky.layout.shape import Sizes, Work
from ninthsky.layout.traffic import collectives, egress, pipeline_seconds


@dataclass(frozen=True)
class Fit:
    """What cannot be read from a data sheet.

    Fitted by `benchmarks/layout.py` on 252 published runs (llm-foundry, Narayanan 2021, MegaScale, NeMo); `exposed_experts`
    rests on five of them and on its prior.
    """

    matmul: float = 1.1  # of the card's achievable share
    operands: float = 3.23  # weight of the time to move a product's operands
    attention: float = 0.47  # of the card's share of fused attention
    elementwise: float = 18.2  # activation widths moved per layer and token in forward
    # Time that collectives add, over their time at line rate: below 1 computation hides some, above 1 they run slower.
    exposed_tensor: float = 0.69
    exposed_experts: float = 1.64
    exposed_shards: float = 2.89
    launch_us: float = 139.0  # fixed time of a layer's forward


@dataclass(frozen=True)
class Estimate:
    """Arrays [N], one entry per cut."""

    memory: dict[str, Floats]  # bytes per rank
    seconds: dict[str, Floats]  # of a step, with "total"
    egress: dict[str, Floats]  # bytes leaving one host per step, with "total"
    mfu: Floats  # model FLOP/s over peak: 6 per active weight, causal attention, no recomputation


def matmul_seconds(rows: Floats, columns: Floats, inner: Floats, cluster: Cluster, fit: Fit, width: int) -> Floats:
    """One product [rows, inner] x [inner, columns]: arithmetic plus operands moved once."""
    chip = cluster.chip
    arithmetic = 2 * rows * columns * inner / (chip.tflops * 1e12 * chip.achievable * fit.matmul)
    moved = width * (rows * columns + rows * inner + columns * inner) / (chip.memory_tbs * 1e12)
    return arithmetic + fit.operands * moved


def layer_forward(cuts: Cuts, sizes: Sizes, work: Work, cluster: Cluster, fit: Fit) -> Floats:
    """Seconds of an average layer's forward on one micro-batch, without collectives."""
    tokens, width, chip = tokens_at_once(cuts, work), work.compute_bytes, cluster.chip
    query, key = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    dim = np.full(len(cuts), float(sizes.dim))

    def product(rows: Floats, columns: Floats, inner: Floats) -> Floats:
        return matmul_seconds(rows, columns, inner, cluster, fit, width)

    seconds = product(tokens, (query + 2 * key) / cuts.tp, dim) + product(tokens, dim, query / cuts.tp)
    # Two products of which the causal mask leaves half.
    seconds = seconds + 2 * tokens * work.sequence * query / cuts.tp / (chip.tflops * 1e12 * chip.attention * fit.attention)

    def feed_forward(rows: Floats, inside: float) -> Floats:
        wide = inside / cuts.tp
        return (sizes.matrices - 1) * product(rows, wide, dim) + product(rows, dim, wide)

    sparse = sizes.sparse_layers / sizes.layers
    if sparse < 1:
        seconds = seconds + (1 - sparse) * feed_forward(tokens, sizes.dense_dim)
    if sparse:
        rows = tokens * sizes.experts_per_token * imbalance(cuts, sizes) * cuts.ep / sizes.experts
        for number, inside in sizes.expert_sizes:
            seconds = seconds + sparse * number / cuts.ep * feed_forward(rows, inside)
        if sizes.shared_experts:
            seconds = seconds + sparse * feed_forward(tokens, sizes.shared_experts * sizes.expert_dim)
        seconds = seconds + sparse * 6 * tokens * sizes.experts_per_token * sizes.dim * width / cuts.tp / (
            chip.memory_tbs * 1e12
        )
    moved = fit.elementwise * tokens * sizes.dim * width / cuts.tp
    # A layer of experts launches about twice the kernels of a dense one.
    return seconds + moved / (chip.memory_tbs * 1e12) + fit.launch_us * 1e-6 * (1 + sparse)


def step(cuts: Cuts, sizes: Sizes, work: Work, cluster: Cluster, fit: Fit) -> dict[str, Floats]:
    """Seconds of one step of each cut, by term, with their total."""
    count, depth = micro_batches(cuts, work), np.ceil(sizes.layers / cuts.pp)
    forward = layer_forward(cuts, sizes, work, cluster, fit)
    passes = np.where(cuts.recompute == 1, 4.0, 3.0)  # backward costs two forwards
    tokens, dim = tokens_at_once(cuts, work), np.full(len(cuts), float(sizes.dim))
    head = 3 * matmul_seconds(tokens, sizes.vocab / cuts.tp, dim, cluster, fit, work.compute_bytes)
    # One stage has the head besides its layers; the slowest stage sets the pace.
    compute = count * (depth * passes * forward + head)
    comm = {name: c.seconds(cluster) for name, c in collectives(cuts, sizes, work, cluster).items()}
    tensor = fit.exposed_tensor * (comm["tensor"] + comm["sequence"])
    experts = fit.exposed_experts * comm["tokens to experts"]
    shards = comm["gather weights"] + comm["reduce gradients"] + comm["gather experts"] + comm["reduce expert gradients"]
    replicas = comm["reduce over replicas"] + comm["reduce experts over replicas"]
    # Gathering overlaps with computation as far as there is any; the share that starts and ends a step does not.
    shards = np.maximum(fit.exposed_shards * shards, shards - compute) + fit.exposed_shards * replicas
    sends = count * pipeline_seconds(cuts, sizes, work, cluster)
    bubble = (cuts.pp - 1) / cuts.interleave / count * (compute + tensor + experts + sends)
    # AdamW reads and writes the weight and two moments and reads the gradient.
    traffic = held(cuts, sizes, work).shard * (2 * work.master_bytes + 2 * work.optimizer_bytes + work.gradient_bytes)
    terms = {
        "compute": compute,
        "tensor": tensor,
        "experts": experts,
        "shards": shards,
        "pipeline": bubble + sends,
        "optimizer": traffic / (cluster.chip.memory_tbs * 1e12),
    }
    terms["total"] = np.sum(list(terms.values()), axis=0)
    return terms


def estimate(cuts: Cuts, sizes: Sizes, work: Work, cluster: Cluster, fit: Fit | None = None) -> Estimate:
    """Memory, time and traffic of each cut on a cluster."""
    seconds = step(cuts, sizes, work, cluster, fit or Fit())
    useful = sizes.flops_per_token(work.sequence) * work.tokens
    mfu = useful / (seconds["total"] * cluster.ranks * cluster.chip.tflops * 1e12)
    return Estimate(memory(cuts, sizes, work), seconds, egress(cuts, sizes, work, cluster), mfu)
