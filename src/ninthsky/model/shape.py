"""The decoder's shape, and what can be counted from it alone: parameters and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from ninthsky.config.schema import Model
from ninthsky.errors import UserError


@dataclass(frozen=True)
class Shape:
    """Sizes of a sparse decoder. The first `dense_layers` layers have one wide feed-forward block instead of experts."""

    vocab: int
    layers: int
    dim: int
    heads: int
    kv_heads: int
    experts: int
    experts_per_token: int
    expert_dim: int
    shared_experts: int = 1
    dense_layers: int = 1
    dense_dim: int = 0
    qk_norm: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Raises UserError N9-CFG-013 where sizes contradict each other."""
        wrong = [
            (self.dim % self.heads, f"dim = {self.dim} is no multiple of heads = {self.heads}"),
            (self.heads % self.kv_heads, f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}"),
            ((self.dim // self.heads) % 2, f"dim / heads = {self.dim // self.heads} is odd; rotary positions turn pairs"),
            (self.experts_per_token > self.experts, f"experts_per_token = {self.experts_per_token} of {self.experts} experts"),
            (self.dense_layers > self.layers, f"dense_layers = {self.dense_layers} of {self.layers} layers"),
            (self.dense_layers and not self.dense_dim, "dense_layers without dense_dim"),
        ]
        for bad, what in wrong:
            if bad:
                raise UserError("N9-CFG-013", f"the model's shape cannot be: {what}", "[model]", "n9 config schema")

    @classmethod
    def of(cls, model: Model, vocab: int) -> Shape:
        """The shape that a `[model]` block stands for, all values of which `size` has filled in."""
        names = (
            "layers",
            "dim",
            "heads",
            "kv_heads",
            "experts",
            "experts_per_token",
            "expert_dim",
            "shared_experts",
            "dense_layers",
            "dense_dim",
        )
        sizes = {name: getattr(model, name) for name in names}
        missing = [name for name, value in sizes.items() if value is None]
        if missing:
            raise UserError("N9-CFG-012", f"[model] lacks {', '.join(missing)}", "[model]", "name a `size`, which derives them")
        return cls(vocab=vocab, qk_norm=model.qk_norm, rope_theta=model.rope_theta, **sizes)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    @property
    def sparse_layers(self) -> int:
        """Layers with a router and experts."""
        return self.layers - self.dense_layers

    def parameters(self) -> int:
        """All weights, embedding and output layer included."""
        return self._count(self.experts)

    def active_parameters(self) -> int:
        """Weights that one token meets: its own experts instead of all. The embedding is looked up and counts as met."""
        return self._count(self.experts_per_token)

    def flops_per_token(self, sequence: int) -> float:
        """Floating-point operations of forward and backward for one token.

        6 per weight that multiplies (Kaplan et al. 2020, arXiv 2001.08361, 2.1), plus causal attention: 2 products of
        `dim` x (sequence + 1) / 2 on average, forward once and backward twice, 2 operations per multiply-add.
        """
        weights = self.active_parameters() - self.vocab * self.dim - self._norms()
        return 6.0 * weights + 12.0 * self.layers * self.dim * (sequence + 1) / 2

    def _norms(self) -> int:
        per_layer = 2 * self.dim + (2 * self.head_dim if self.qk_norm else 0)
        return self.layers * per_layer + self.dim

    def _count(self, experts_met: int) -> int:
        attention = self.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        dense = 3 * self.dim * self.dense_dim
        sparse = self.dim * self.experts + 3 * self.dim * self.expert_dim * (experts_met + self.shared_experts)
        body = self.layers * attention + self.dense_layers * dense + self.sparse_layers * sparse
        return body + self._norms() + 2 * self.vocab * self.dim
