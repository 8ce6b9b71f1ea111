"""Which row of the experts' work belongs to which token, and the two ways between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROUND = 32  # rows


@dataclass(frozen=True)
class Deal:
    """Rows sorted by expert for N tokens that chose k experts each. R is N x k, more where shares are filled up.

    On a CPU each new size of a bf16 product costs the making of a kernel, more than the product itself at small sizes;
    shares filled up to a multiple of ROUND come again. A filler is a copy of token 0 whose answer nobody takes.
    """

    source: Tensor  # [R]: the token in each row
    place: Tensor  # [N, k]: the row of each choice
    counts: Tensor  # [experts]: rows of each
    filled: bool  # whether there are fillers

    @classmethod
    def of(cls, chosen: Tensor, counts: Tensor, fill: bool) -> Deal:
        """For `chosen` [N, k] experts, `counts` [experts] of each among them; order within an expert is that of the tokens."""
        order = chosen.flatten().argsort(stable=True)
        rows = torch.arange(len(order), device=chosen.device)
        shares = counts
        if fill:
            shares = (counts + ROUND - 1).div(ROUND, rounding_mode="floor") * ROUND
            moved = (shares - counts).cumsum(0) - (shares - counts)
            rows = rows + moved.repeat_interleave(counts)
        place = torch.empty_like(order)
        place[order] = rows
        token = order // chosen.shape[1]
        source = token if not fill else token.new_zeros(int(shares.sum())).index_copy_(0, rows, token)
        return cls(source, place.view(chosen.shape), shares, fill)

    def spread(self, x: Tensor) -> Tensor:
        """Tokens [N, dim] -> rows [R, dim]."""
        out: Tensor = _Spread.apply(x, self.source, self.place)
        return out

    def collect(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Rows [R, dim] -> tokens [N, dim]: the sum over a token's choices, each times its weight of [N, k] where given."""
        if weights is None:
            weights = torch.ones_like(self.place, dtype=rows.dtype)
        out: Tensor = _Collect.apply(rows, weights, self.source, self.place)
        return out


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        first, *others = place.unbind(1)
        into = grads[0].index_select(0, first)
        for other in others:
            into += grads[0].index_select(0, other)
        return into, None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, source, place)
        parts = zip(place.unbind(1), weights.to(rows.dtype).unbind(1), strict=True)
        out = None
        for chosen, weight in parts:
            part = rows.index_select(0, chosen)
            out = part.mul_(weight[:, None]) if out is None else out.addcmul_(part, weight[:, None])
        assert out is not None
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        rows, weights, source, place = ctx.saved_tensors
        grad = grads[0].index_select(0, source)
        into_weights = (grad * rows).sum(1, dtype=torch.float32)[place].to(weights.dtype) if ctx.needs_input_grad[1] else None
        by_row = weights.new_zeros(len(rows)).index_copy_(0, place.flatten(), weights.flatten())  # 0 in front of a filler
        return grad.mul_(by_row.to(grad.dtype)[:, None]), into_weights, None, None
