"""The decoder's shape, and what can be counted from it alone: parameters and arithmetic."""

from __future__ import annotations

import itertools
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
    expert_dim: int  # width of a routed expert (of the widest where they differ), and of each shared one
    shared_experts: int = 1
    dense_layers: int = 1
    dense_dim: int = 0
    qk_norm: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    head_dim: int = 0  # 0: dim / heads
    expert_dims: tuple[int, ...] = ()  # of each routed expert, where they differ; equal ones stand together
    attention_bias: bool = False  # of queries, keys and values
    rotary: float = 1.0  # share of a head that rotary positions turn, its first part
    norm_topk: bool = True  # a token's expert weights are scaled to sum to 1
    routed_scaling: float = 1.0  # and then multiplied by this

    def __post_init__(self) -> None:
        """Raises UserError N9-CFG-013 where sizes contradict each other."""
        if not self.head_dim and self.heads > 0 and self.dim % self.heads == 0:
            object.__setattr__(self, "head_dim", self.dim // self.heads)
        object.__setattr__(self, "expert_dims", tuple(self.expert_dims))
        changes = sum(one != other for one, other in itertools.pairwise(self.expert_dims))
        wrong = [
            (not self.head_dim, f"dim = {self.dim} is no multiple of heads = {self.heads}, and there is no head_dim"),
            (self.heads % self.kv_heads, f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}"),
            (self.head_dim % 2, f"head_dim = {self.head_dim} is odd; rotary positions turn pairs"),
            (
                not 0 < self.rotary <= 1 or self.rotary_dim % 2,
                f"rotary = {self.rotary} of head_dim = {self.head_dim} is no even number of dimensions",
            ),
            (self.experts_per_token > self.experts, f"experts_per_token = {self.experts_per_token} of {self.experts} experts"),
            (self.dense_layers > self.layers, f"dense_layers = {self.dense_layers} of {self.layers} layers"),
            (self.dense_layers and not self.dense_dim, "dense_layers without dense_dim"),
            (
                self.expert_dims and (len(self.expert_dims), max(self.expert_dims)) != (self.experts, self.expert_dim),
                f"expert_dims are {len(self.expert_dims)} up to {max(self.expert_dims, default=0)}, "
                f"beside experts = {self.experts} and expert_dim = {self.expert_dim}",
            ),
            (
                self.expert_dims and changes + 1 != len(set(self.expert_dims)),
                f"expert_dims = {list(self.expert_dims)}: experts of one size must stand together",
            ),
        ]
        for bad, what in wrong:
            if bad:
                raise UserError("N9-CFG-013", f"the model's shape cannot be: {what}", "[model]", "n9 config schema")

    @classmethod
    def of(cls, model: Model, vocab: int) -> Shape:
        """The shape that a `[model]` block stands for, all values of which `size` or `preset` has filled in."""
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
        rest = ("qk_norm", "rope_theta", "norm_eps", "expert_dims", "attention_bias", "rotary", "norm_topk", "routed_scaling")
        given = {name: getattr(model, name) for name in rest}
        return cls(vocab=vocab, head_dim=model.head_dim or 0, **sizes, **given)

    def block(self) -> dict[str, object]:
        """The `[model]` block that this is the shape of; the vocabulary is the tokenizer's."""
        found = {name: getattr(self, name) for name in Model.model_fields if name != "preset"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that rotary positions turn."""
        return int(self.head_dim * self.rotary)

    @property
    def expert_sizes(self) -> tuple[tuple[int, int], ...]:
        """(number of experts, their width) for each size, in order."""
        widths = self.expert_dims or (self.expert_dim,) * self.experts
        return tuple((len(list(same)), width) for width, same in itertools.groupby(widths))

    @property
    def sparse_layers(self) -> int:
        """Layers with a router and experts."""
        return self.layers - self.dense_layers

    def parameters(self) -> int:
        """All weights, embedding and output layer included."""
        return self._count(sum(number * width for number, width in self.expert_sizes))

    def active_parameters(self) -> int:
        """Weights that one token meets: its own experts instead of all. The embedding is looked up and counts as met.

        Of experts of different sizes it meets the mean, as it does where their load is kept even.
        """
        whole = sum(number * width for number, width in self.expert_sizes)
        return self._count(self.experts_per_token * whole // self.experts)

    def flops_per_token(self, sequence: int) -> float:
        """Floating-point operations of forward and backward for one token.

        6 per weight that multiplies (Kaplan et al. 2020, arXiv 2001.08361, 2.1), plus causal attention: 2 products of
        `heads` x `head_dim` x (sequence + 1) / 2 on average, forward once and backward twice, 2 operations per multiply-add.
        """
        weights = self.active_parameters() - self.vocab * self.dim - self._vectors()
        return 6.0 * weights + 12.0 * self.layers * self.heads * self.head_dim * (sequence + 1) / 2

    def _vectors(self) -> int:
        """Weights of norms and biases, which multiply no matrix."""
        per_layer = 2 * self.dim + (2 * self.head_dim if self.qk_norm else 0)
        per_layer += (self.heads + 2 * self.kv_heads) * self.head_dim if self.attention_bias else 0
        return self.layers * per_layer + self.dim

    def _count(self, widths_met: int) -> int:
        attention = self.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        dense = 3 * self.dim * self.dense_dim
        sparse = self.dim * self.experts + 3 * self.dim * (widths_met + self.expert_dim * self.shared_experts)
        body = self.layers * attention + self.dense_layers * dense + self.sparse_layers * sparse
        return body + self._vectors() + 2 * self.vocab * self.dim
