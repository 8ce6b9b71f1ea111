"""The model as the layout search sees it: sizes and closed forms. A test holds them against the real decoder's parameters."""

from __future__ import annotations

from dataclasses import dataclass

from ninthsky.config.schema import Model, Settings


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

    @staticmethod
    def of(model: Model, vocab: int) -> Sizes:
        """From the [model] block of settings that `size` has filled in."""
        filled = {key: value for key, value in model.model_dump().items() if value is not None}
        dim, heads = filled["dim"], filled["heads"]
        return Sizes(
            layers=filled["layers"], dim=dim, heads=heads, kv_heads=filled["kv_heads"], head_dim=dim // heads, vocab=vocab,
            experts=filled["experts"], experts_per_token=filled["experts_per_token"], expert_dim=filled["expert_dim"],
            shared_experts=filled["shared_experts"], dense_layers=filled["dense_layers"], dense_dim=filled["dense_dim"],
            qk_norm=filled["qk_norm"],
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
        """Weights of one layer's norms."""
        return 2 * self.dim + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def matrices(self) -> int:
        return 3 if self.gated else 2

    @property
    def dense(self) -> int:
        """Weights of a dense layer's feed-forward."""
        return self.matrices * self.dim * self.dense_dim

    @property
    def expert(self) -> int:
        """Weights of one routed expert."""
        return self.matrices * self.dim * self.expert_dim

    @property
    def shared(self) -> int:
        """Weights of one layer's shared experts."""
        return self.shared_experts * self.expert

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
        return self.sparse_layers * self.experts * self.expert

    @property
    def parameters(self) -> int:
        return self.common + self.routed

    @property
    def active(self) -> int:
        """Weights that one token passes through (its embedding row counts as the whole table, as is usual)."""
        return self.common + self.sparse_layers * self.experts_per_token * self.expert

    def flops_per_token(self, sequence: int) -> float:
        """Floating-point operations to train on one token: 6 per active matrix weight, plus causal attention (PaLM, arXiv 2204.02311,
        appendix B, halved for the causal mask). The embedding look-up multiplies nothing."""
        matrices = self.active - self.embedding * (0 if self.tied else 1) - self.layers * self.norms - self.dim
        return 6.0 * matrices + 6.0 * self.layers * self.heads * self.head_dim * sequence


@dataclass(frozen=True)
class Work:
    """What one step trains on, and in how many bytes."""

    sequence: int  # tokens
    batch: int  # sequences per step over all ranks
    compute_bytes: int = 2  # of a weight or activation in forward and backward: 2 for bf16, 4 for fp32
    master_bytes: int = 4  # of a weight as it is kept
    gradient_bytes: int = 4  # of a gradient as it is kept and reduced
    optimizer_bytes: int = 8  # AdamW: two fp32 moments per weight

    @staticmethod
    def of(settings: Settings, chip_computes_in: int) -> Work:
        """From [train]; precision "auto" means the bytes that the chip is listed with."""
        precision = settings.train.precision
        width = {"auto": chip_computes_in, "fp32": 4, "bf16": 2}[precision]
        assert settings.train.sequence is not None and settings.train.batch is not None
        return Work(settings.train.sequence, settings.train.batch, compute_bytes=width)

    @property
    def tokens(self) -> int:
        return self.sequence * self.batch
