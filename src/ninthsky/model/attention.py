"""Grouped-query attention with rotary positions, optional norm of queries and keys, and a cache for generation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ninthsky.model.fused import causal_attention, pays, rms_norm, rotate
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


class Attention(nn.Module):
    """Causal self-attention; `mask` [.., T, S], True where seeing is allowed, replaces the causal rule."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.dim, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.dim, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.dim, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.dim, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, cache: LayerCache | None, start: int) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        rows, length, _ = x.shape
        q = self.q_proj(x).view(rows, length, self.heads, self.head_dim)
        k = self.k_proj(x).view(rows, length, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(rows, length, self.kv_heads, self.head_dim)
        cos, sin = (table.to(q.dtype) for table in rope)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        if mask is None and cache is None and pays(q, length):
            y = causal_attention(q, k, v)
        else:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            if cache is not None:
                k, v = cache.extend(start, k, v)
            grouped = self.heads != self.kv_heads
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
            y = y.transpose(1, 2)
        return self.o_proj(y.reshape(rows, length, self.heads * self.head_dim))


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019, arXiv 1910.07467), fp32 inside."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim], in the dtype of the product that follows."""
        return rms_norm(x, self.weight, self.eps)
