"""Bytes that a rank holds at its fullest, term by term.

States follow ZeRO (arXiv 1910.02054) as FSDP2 carries it out; activations are counted per saved tensor of a pre-norm decoder
with fused attention (the counting of Korthikanti et al., arXiv 2205.05198, section 4, for this layer). The fullest stage of a
pipeline is meant: the first, which keeps the most micro-batches, with the last one's logits and the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ninthsky.layout.cut import Cuts, Floats, Ints
from ninthsky.layout.shape import Sizes, Work

# Part of a card's memory that a plan leaves free: allocator fragments and the communication library's buffers. Assumed.
RESERVE = 0.08

# Tokens whose logits exist at once, as in `model.fused.output_loss`.
LOGIT_ROWS = 1024

# Queries that a CPU's attention works on together, as in `model.fused`, by bytes of what it computes in.
QUERY_BLOCK = {2: 128, 4: 64}

# Coefficient of variation of the tokens that one expert of a balanced router gets in one micro-batch. Assumed; for 64
# experts over 8 ranks it gives the fullest rank 1.14 of the mean.
EXPERT_SPREAD = 0.3


@dataclass(frozen=True)
class Held:
    """Weights per rank, in elements: those of the stage, and of one layer as it is gathered."""

    common: Floats  # of a stage, all but routed experts, cut by tp, not yet by FSDP
    routed: Floats  # of a stage, routed experts, cut by ep and tp, not yet by FSDP
    common_shard: Floats  # what of `common` stays on the rank
    routed_shard: Floats  # what of `routed` stays on the rank
    unit: Floats  # what is gathered at once: a layer, or several small ones
    ends: Floats  # embedding, head and last norm as far as this stage has them, gathered

    @property
    def shard(self) -> Floats:
        """All that stays on the rank."""
        return self.common_shard + self.routed_shard


def held(cuts: Cuts, sizes: Sizes, work: Work) -> Held:
    """Elements of weights on the fullest rank of each cut."""
    depth = np.ceil(sizes.layers / cuts.pp)
    embeddings = np.where(cuts.pp > 1, 1, 1 if sizes.tied else 2) * sizes.embedding + sizes.dim
    ends = embeddings / cuts.tp
    common = depth * sizes.layer_common / cuts.tp + ends
    own = sizes.experts * sizes.expert / (cuts.ep * cuts.tp)
    routed = np.minimum(depth, sizes.sparse_layers) * own
    layer: Floats = (
        max(sizes.layer_common, sizes.attention + sizes.norms + sizes.dense if sizes.dense_layers else 0.0) / cuts.tp
    )
    sparse_layer = (sizes.attention + sizes.norms + sizes.shared + sizes.router) / cuts.tp + own
    if sizes.sparse_layers:
        layer = np.maximum(layer if sizes.dense_layers else 0.0, sparse_layer)
    unit = np.minimum(np.maximum(layer, work.unit_bytes / work.gather_bytes), common + routed - ends)
    # With ep = 1 FSDP shards experts by their number and pads where no side of their matrices comes out even: over more shards
    # than experts, the full ones hold one each.
    experts = max(sizes.experts, 1)
    padded = np.ceil(experts / cuts.expert_shards) * cuts.expert_shards / experts
    padding = np.where((cuts.ep == 1) & (sizes.dim % cuts.expert_shards > 0), padded, 1.0)
    return Held(common, routed, common / cuts.shards, routed / cuts.expert_shards * padding, unit, ends)


def imbalance(cuts: Cuts, sizes: Sizes) -> Floats:
    """Tokens of the fullest of `ep` ranks over the mean.

    A rank's load is a mean over experts / ep experts, so its spread shrinks with their number. The largest of n normal draws
    is expected at the quantile (n - 3/8) / (n + 1/4) (Blom 1958). Loads sum to a constant, hence the factor sqrt(1 - 1 / ep).
    """
    if not sizes.sparse_layers:
        return np.ones(len(cuts))
    ranks, place = np.unique(cuts.ep, return_inverse=True)
    largest = np.array([NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) for n in ranks.tolist()])[place]
    return 1.0 + EXPERT_SPREAD * np.sqrt(cuts.ep / sizes.experts) * np.sqrt(1 - 1 / cuts.ep) * largest


def micro_batches(cuts: Cuts, work: Work) -> Ints:
    """Micro-batches that one rank passes per step."""
    return np.maximum(1, work.batch // (cuts.data * cuts.micro_batch))


def tokens_at_once(cuts: Cuts, work: Work) -> Floats:
    """Tokens of one micro-batch on one rank (all tp ranks of a group see the same ones)."""
    return cuts.micro_batch * work.sequence / cuts.cp


def layer_activations(cuts: Cuts, sizes: Sizes, work: Work) -> Floats:
    """Bytes that an average layer keeps for backward, per micro-batch, cut by tp with sequence parallelism.

    In widths per token, as our decoder saves them: inputs of two norms, as wide as the stream (`master_bytes`), and their
    outputs, of which the router keeps an fp32 copy; query and key raw and turned (turned alone without qk-norm), value,
    attention's output; three per feed-forward width (gate, up, their product); and of each copy that goes to an expert its
    input and its answer. With `work.keeps_scores` attention's probabilities up to the diagonal come on
    top, in blocks of queries.
    """
    query, key = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    sparse = sizes.sparse_layers / sizes.layers
    forward = sizes.matrices
    fixed: float = 2 * sizes.dim + (3 if sizes.qk_norm else 2) * (query + key)
    fixed += forward * ((1 - sparse) * sizes.dense_dim + sparse * sizes.shared_experts * sizes.expert_dim)
    fixed += sizes.heads * (work.sequence + QUERY_BLOCK[work.compute_bytes]) / 2 if work.keeps_scores else 0
    mean = sizes.widths / max(sizes.experts, 1)
    copies = sparse * sizes.experts_per_token * (2 * sizes.dim + forward * mean) * imbalance(cuts, sizes)
    stream = 2 * sizes.dim * work.master_bytes + (4 * sparse * sizes.dim if work.compute_bytes < 4 else 0)
    return tokens_at_once(cuts, work) * (work.compute_bytes * (fixed + copies) + stream) / cuts.tp


def memory(cuts: Cuts, sizes: Sizes, work: Work) -> dict[str, Floats]:
    """Bytes per rank of each cut: weights, gradients, optimizer, gathered, activations, logits, total."""
    part = held(cuts, sizes, work)
    count = micro_batches(cuts, work)
    whole = part.common + part.routed
    # Kept weights: the whole stage. Freed ones: the unit at work and the one fetched ahead. The ends are never freed.
    gathered = work.gather_bytes * np.where(cuts.reshard == 1, np.minimum(2 * part.unit + part.ends, whole), whole)
    # Autocast keeps a copy of every weight in the type that products are done in.
    gathered = gathered + (work.compute_bytes * whole if work.compute_bytes < work.gather_bytes else 0.0)
    # Gradients before they are reduced: of one unit, or of the whole stage where they are summed over micro-batches first.
    summed = (cuts.reshard == 0) & (count > 1)
    gathered = gathered + np.where(
        summed, work.gradient_bytes * whole, work.gather_bytes * np.minimum(part.unit + part.ends, whole)
    )
    layer = layer_activations(cuts, sizes, work)
    depth = np.ceil(sizes.layers / cuts.pp)
    waiting = np.where(cuts.pp > 1, np.minimum(count, cuts.pp * (1 + (cuts.pp - 1) / (cuts.pp * cuts.interleave))), 1)
    border = work.compute_bytes * tokens_at_once(cuts, work) * sizes.dim / cuts.tp
    activations = np.where(cuts.recompute == 1, depth * border * waiting + layer, depth * layer * waiting)
    # The last norm's input and the gradient into it; the head's gradient and a part of it; a chunk's logits and their gradient.
    tokens = tokens_at_once(cuts, work)
    chunk = np.minimum(tokens, LOGIT_ROWS) * sizes.vocab * (4 + work.compute_bytes)
    logits = (2 * 4 * sizes.embedding + chunk + tokens * 2 * work.master_bytes * sizes.dim) / cuts.tp
    terms = {
        "weights": work.master_bytes * part.shard,
        "gradients": work.gradient_bytes * part.shard,
        "optimizer": work.optimizer_bytes * part.shard,
        "gathered": gathered,
        "activations": activations,
        "logits": logits,
    }
    terms["total"] = np.sum(list(terms.values()), axis=0)
    return terms
