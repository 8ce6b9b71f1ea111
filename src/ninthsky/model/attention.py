"""Grouped-query attention with rotary positions, optional norm of queries and keys, and a cache for generation."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ninthsky.model.fused import causal_attention, norm_rotate, pays, rms_norm, rotate
from ninthsky.model.shape import Shape

Rope = tuple[Tensor, Tensor]


def rope_table(positions: Tensor, head_dim: int, theta: float) -> Rope:
    """Cosines and sines of rotary positions (Su et al. 2021, arXiv 2104.09864), first half turned against the second.

    `positions` LongTensor [..., T] -> two FloatTensors [..., T, 1, head_dim / 2].
    """
    half = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angle = (positions[..., None].float() * (1.0 / theta**half)).unsqueeze(-2)
    return angle.cos(), angle.sin()


class LayerCache:
    """Keys and values of the positions already seen by one layer, in a buffer of fixed length."""

    def __init__(self, rows: int, length: int, kv_heads: int, head_dim: int, like: Tensor) -> None:
        self.keys = like.new_empty(rows, kv_heads, length, head_dim)
        self.values = like.new_empty(rows, kv_heads, length, head_dim)

    def extend(self, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes [B, kv_heads, T, head_dim] at `start`; returns all up to there."""
        end = start + keys.shape[2]
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class Exchange(Protocol):
    """How ranks that each have some positions of a sequence come to have some heads of all its positions, and back."""

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, own positions, heads, head_dim] each -> [B, T, own heads, head_dim] each."""
        ...

    def to_positions(self, y: Tensor) -> Tensor:
        """[B, T, own heads, head_dim] -> [B, own positions, heads, head_dim]."""
        ...


class Documents:
    """Documents packed into one window, which do not see each other: `begins` [B, T], the first position of each one's own."""

    def __init__(self, numbers: Tensor) -> None:
        """`numbers` [B, T]: which document a position is of, neighbours of one document having the same."""
        positions = torch.arange(numbers.shape[1], device=numbers.device)
        new = torch.ones_like(numbers, dtype=torch.bool)
        new[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        self.begins = (positions * new).cummax(1).values

    @cached_property
    def mask(self) -> Tensor:
        """[B, 1, T, T], True where row t may see column s."""
        columns = torch.arange(self.begins.shape[1], device=self.begins.device)
        return (columns >= self.begins[:, None, :, None]) & (columns <= columns[:, None])


class Attention(nn.Module):
    """Causal self-attention; `mask` [.., T, S], True where seeing is allowed, replaces the causal rule.

    With an `exchange` its input has only some of the T positions that `rope` and `mask` are for.
    """

    exchange: Exchange | None = None

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.rotary_dim = shape.rotary_dim
        self.q_proj = nn.Linear(shape.dim, shape.heads * shape.head_dim, bias=shape.attention_bias)
        self.k_proj = nn.Linear(shape.dim, shape.kv_heads * shape.head_dim, bias=shape.attention_bias)
        self.v_proj = nn.Linear(shape.dim, shape.kv_heads * shape.head_dim, bias=shape.attention_bias)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.dim, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: Rope, mask: Mask, cache: LayerCache | None, start: int) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        rows, length, _ = x.shape
        q = self.q_proj(x).view(rows, length, self.heads, self.head_dim)
        k = self.k_proj(x).view(rows, length, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(rows, length, self.kv_heads, self.head_dim)
        q_norm, k_norm = self.q_norm, self.k_norm
        plain = self.exchange is None and self.rotary_dim == self.head_dim
        if plain and isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm):
            q = norm_rotate(q, q_norm.weight, q_norm.eps, *rope)
            k = norm_rotate(k, k_norm.weight, k_norm.eps, *rope)
        else:
            q, k = q_norm(q), k_norm(k)
            if self.exchange is not None:
                q, k, v = self.exchange.to_heads(q, k, v)
            cos, sin = (table.to(q.dtype) for table in rope)
            q, k = self._turned(q, cos, sin), self._turned(k, cos, sin)
        if not isinstance(mask, Tensor) and cache is None and pays(q, q.shape[1]):
            y = causal_attention(q, k, v, mask.begins if mask is not None else None)
        else:
            mask = mask.mask if isinstance(mask, Documents) else mask
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            if cache is not None:
                k, v = cache.extend(start, k, v)
            grouped = self.heads != self.kv_heads
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
            y = y.transpose(1, 2)
        if self.exchange is not None:
            y = self.exchange.to_positions(y)
        return self.o_proj(y.reshape(rows, length, self.heads * self.head_dim))

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.rotary_dim == self.head_dim:
            return rotate(x, cos, sin)
        return torch.cat((rotate(x[..., : self.rotary_dim], cos, sin), x[..., self.rotary_dim :]), -1)


Mask = Tensor | Documents | None  # None: the causal rule alone


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019, arXiv 1910.07467), fp32 inside."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim], in the dtype of the product that follows."""
        return rms_norm(x, self.weight, self.eps)
