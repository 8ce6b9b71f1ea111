"""The model as the layout search sees it: sizes and closed forms. A test holds them against the real decoder's parameters."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from ninthsky.config.schema import Model, Train
from ninthsky.errors import UserError


@dataclass(frozen=True)
class Sizes:
    """A sparse decoder in numbers (the Glm4Moe family: grouped-query attention, gated feed-forward, routed and shared experts).

    With experts = 0 every layer is dense.
    """

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    experts: int
    experts_per_token: int
    expert_dim: int
    shared_experts: int
    dense_layers: int  # the first layers, which have one dense feed-forward instead of experts
    dense_dim: int
    qk_norm: bool = True
    gated: bool = True  # three matrices per feed-forward instead of two
    tied: bool = False  # the output head is the embedding
    attention_bias: bool = False  # of queries, keys and values
    expert_dims: tuple[int, ...] = ()  # of each routed expert, where they differ

    @staticmethod
    def of(model: Model, vocab: int) -> Sizes:
        """From the [model] block of settings that `size` has filled in."""
        filled = {key: value for key, value in model.model_dump().items() if value is not None}
        dim, heads = filled["dim"], filled["heads"]
        return Sizes(
            layers=filled["layers"],
            dim=dim,
            heads=heads,
            kv_heads=filled["kv_heads"],
            head_dim=filled.get("head_dim", dim // heads),
            vocab=vocab,
            experts=filled["experts"],
            experts_per_token=filled["experts_per_token"],
            expert_dim=filled["expert_dim"],
            shared_experts=filled["shared_experts"],
            dense_layers=filled["dense_layers"],
            dense_dim=filled["dense_dim"],
            qk_norm=filled["qk_norm"],
            attention_bias=filled["attention_bias"],
            expert_dims=tuple(filled["expert_dims"]),
        )

    @staticmethod
    def of_config(config: dict[str, Any], where: str) -> Sizes:
        """From a Hugging Face config.json of a dense or sparse decoder. Raises UserError N9-LAY-002 naming what is missing."""

        def first(*keys: str, default: int | None = None) -> int:
            for key in keys:
                if isinstance(config.get(key), int):
                    return int(config[key])
            if default is None:
                raise UserError(
                    "N9-LAY-002",
                    f"the model file has no whole number under {' or '.join(keys)}",
                    where,
                    "give the config.json of a decoder in Hugging Face layout",
                )
            return default

        dim, heads, layers = first("hidden_size"), first("num_attention_heads"), first("num_hidden_layers")
        experts = first("n_routed_experts", "num_experts", "num_local_experts", default=0)
        dense_dim = first("intermediate_size", default=0) if experts else first("intermediate_size")
        return Sizes(
            layers=layers,
            dim=dim,
            heads=heads,
            kv_heads=first("num_key_value_heads", default=heads),
            head_dim=first("head_dim", default=dim // heads),
            vocab=first("vocab_size"),
            experts=experts,
            experts_per_token=first("num_experts_per_tok") if experts else 0,
            expert_dim=first("moe_intermediate_size", "intermediate_size") if experts else 0,
            shared_experts=first("n_shared_experts", default=0),
            dense_layers=first("first_k_dense_replace", default=0) if experts else layers,
            dense_dim=dense_dim,
            qk_norm=bool(config.get("use_qk_norm", False)),
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
        )

    @property
    def sparse_layers(self) -> int:
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def attention(self) -> int:
        """Weights of one layer's attention: query, key, value, output."""
        return self.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def norms(self) -> int:
        """Weights of one layer's norms and biases."""
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim if self.attention_bias else 0
        return 2 * self.dim + (2 * self.head_dim if self.qk_norm else 0) + biases

    @property
    def matrices(self) -> int:
        return 3 if self.gated else 2

    @property
    def dense(self) -> int:
        """Weights of a dense layer's feed-forward."""
        return self.matrices * self.dim * self.dense_dim

    @property
    def expert_sizes(self) -> tuple[tuple[int, int], ...]:
        """(number of experts, their width) for each size; each size is dealt to ep ranks by itself."""
        widths = self.expert_dims or (self.expert_dim,) * self.experts
        return tuple((len(list(same)), width) for width, same in itertools.groupby(widths))

    @property
    def widths(self) -> int:
        """Of all routed experts of one layer together."""
        return sum(self.expert_dims) or self.experts * self.expert_dim

    @property
    def expert(self) -> int:
        """Weights of one routed expert, of the mean one where they differ."""
        return self.matrices * self.dim * self.widths // max(self.experts, 1)

    @property
    def shared(self) -> int:
        """Weights of one layer's shared experts."""
        return self.shared_experts * self.matrices * self.dim * self.expert_dim

    @property
    def router(self) -> int:
        """Weights of one layer's router, without its balancing bias, which no gradient trains."""
        return self.experts * self.dim

    @property
    def layer_common(self) -> float:
        """Weights of an average layer that every token uses, whichever experts it takes."""
        sparse, dense = self.sparse_layers, self.layers - self.sparse_layers
        return self.attention + self.norms + (sparse * (self.shared + self.router) + dense * self.dense) / self.layers

    @property
    def embedding(self) -> int:
        return self.vocab * self.dim

    @property
    def common(self) -> int:
        """All weights but the routed experts'."""
        sparse, dense = self.sparse_layers, self.layers - self.sparse_layers
        layers = self.layers * (self.attention + self.norms) + sparse * (self.shared + self.router) + dense * self.dense
        return layers + self.embedding * (1 if self.tied else 2) + self.dim

    @property
    def routed(self) -> int:
        """Weights of all routed experts."""
        return self.sparse_layers * self.matrices * self.dim * self.widths

    @property
    def parameters(self) -> int:
        return self.common + self.routed

    @property
    def active(self) -> int:
        """Weights that one token passes through (its embedding row counts as the whole table, as is usual)."""
        met = self.experts_per_token * self.widths // max(self.experts, 1)
        return self.common + self.sparse_layers * self.matrices * self.dim * met

    def flops_per_token(self, sequence: int) -> float:
        """Floating-point operations to train on one token: 6 per active matrix weight, plus causal attention.

        PaLM (arXiv 2204.02311), appendix B, over the (sequence + 1) / 2 positions that a token sees on average. The
        embedding look-up multiplies nothing.
        """
        matrices = self.active - self.embedding * (0 if self.tied else 1) - self.layers * self.norms - self.dim
        return 6.0 * matrices + 6.0 * self.layers * self.heads * self.head_dim * (sequence + 1)


@dataclass(frozen=True)
class Work:
    """What one step trains on, and in how many bytes."""

    sequence: int  # tokens
    batch: int  # sequences per step over all ranks
    compute_bytes: int = 2  # of a weight or activation in forward and backward: 2 for bf16, 4 for fp32
    master_bytes: int = 4  # of a weight as it is kept
    gradient_bytes: int = 4  # of a gradient as it is kept and reduced
    optimizer_bytes: int = 8  # AdamW: two fp32 moments per weight
    gather_bytes: int = 2  # of a weight as it is gathered, and of its gradient before it is reduced
    unit_bytes: int = 32 << 20  # layers are gathered together up to this size, as `train.parallel` does
    keeps_scores: bool = False  # attention's probabilities are kept for backward, as `model.fused` does on a CPU where it pays
    copies: bool = False  # each rank's state goes to another host after every step, as `guard.agent` ships it

    @staticmethod
    def of(train: Train, chip_computes_in: int, on_cpu: bool) -> Work:
        """A step as `train.pretrain` makes it: weights are gathered as they are kept, bf16 is autocast, copies are shipped.

        precision "auto" means the bytes that the card is listed with.
        """
        width = {"auto": chip_computes_in, "fp32": 4, "bf16": 2}[train.precision]
        assert train.sequence is not None and train.batch is not None, "size fills in both"
        keeps_scores = on_cpu and train.sequence <= 1024 and (width == 2 or train.sequence >= 256)
        return Work(train.sequence, train.batch, width, gather_bytes=4, keeps_scores=keeps_scores, copies=True)

    @property
    def tokens(self) -> int:
        return self.sequence * self.batch
