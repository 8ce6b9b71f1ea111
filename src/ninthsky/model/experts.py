"""Routed and shared experts: how tokens travel to their experts and back, and what they meet there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ninthsky.model.deal import Deal
from ninthsky.model.fused import compute_dtype, gated_silu
from ninthsky.model.router import Router
from ninthsky.model.shape import Shape


class GateUp(nn.Module):
    """Gate and up projection in one product; the weight [2, hidden, dim] keeps them apart: a rank can hold a part of both."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., 2 x hidden], gate first."""
        return F.linear(x, self.weight.flatten(0, 1))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = GateUp(dim, hidden)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.down(gated_silu(self.gate_up(x)))


class _Exchange(torch.autograd.Function):
    """Rows [N, dim] to other ranks and, for the gradient, the same way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        arrived = rows.new_empty(sum(receive), rows.shape[1])
        dist.all_to_all_single(arrived, rows.contiguous(), receive, send, group=group)
        return arrived

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        back = grads[0].new_empty(sum(ctx.send), grads[0].shape[1])
        dist.all_to_all_single(back, grads[0].contiguous(), ctx.send, ctx.receive, group=ctx.group)
        return back, None, None, None


class Experts(nn.Module):
    """Feed-forward experts of equal size, multiplied group by group: rows sorted by expert, one call for all.

    `group` is the expert-parallel process group; this rank then holds the slice of experts of its place in it.
    """

    group: dist.ProcessGroup | None = None

    def __init__(self, experts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.experts = experts
        self.gate_up = nn.Parameter(torch.empty(experts, dim, 2 * hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, dim))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Rows [N, dim] sorted by expert, `counts` [experts] rows for each -> [N, dim] in the same order."""
        if self.group is None:
            return self._multiply(x, counts)
        ranks = self.group.size()
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.group)
        arriving = arriving.view(ranks, -1)  # [from rank, own expert]
        send, receive = counts.view(ranks, -1).sum(1).tolist(), arriving.sum(1).tolist()
        rows = _Exchange.apply(x, send, receive, self.group)
        # Rows come by sender, then by expert; the product wants them by expert.
        expert_of = torch.arange(arriving.shape[1], device=x.device).repeat(ranks).repeat_interleave(arriving.flatten())
        deal = Deal.of(expert_of[:, None], arriving.sum(0), fills(rows))
        done = deal.collect(self._multiply(deal.spread(rows), deal.counts))
        return _Exchange.apply(done, receive, send, self.group)

    @property
    def here(self) -> bool:
        """Whether all experts are on this rank."""
        return self.group is None

    def place(self, expert: int) -> tuple[Experts, int]:
        """Where the expert of this number is: here, at that index."""
        return self, expert

    def _multiply(self, x: Tensor, counts: Tensor) -> Tensor:
        dtype, ends = compute_dtype(x), counts.cumsum(0, dtype=torch.int32)
        hidden = gated_silu(F.grouped_mm(x.to(dtype), self.gate_up.to(dtype), offs=ends))
        return F.grouped_mm(hidden, self.down.to(dtype), offs=ends)


class UnequalExperts(nn.Module):
    """Experts of several sizes: each size is a group of its own, and is dealt to expert-parallel ranks by itself.

    So every rank holds as many experts of each size as any other, and the same work under an even load.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], dim: int) -> None:
        super().__init__()
        self.of_size = nn.ModuleList(Experts(number, dim, hidden) for number, hidden in sizes)
        self.numbers = [number for number, _ in sizes]

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """As `Experts.forward`."""
        shares = counts.split(self.numbers)
        rows = x.split([int(share.sum()) for share in shares])
        return torch.cat([experts(part, share) for experts, part, share in zip(self.of_size, rows, shares, strict=True)])

    @property
    def here(self) -> bool:
        """Whether all experts are on this rank."""
        return all(experts.group is None for experts in self.of_size)

    def place(self, expert: int) -> tuple[Experts, int]:
        """Where the expert of this number is."""
        for experts, number in zip(self.of_size, self.numbers, strict=True):
            if expert < number:
                assert isinstance(experts, Experts)
                return experts, expert
            expert -= number
        raise IndexError(expert)


def fills(x: Tensor) -> bool:
    """Whether rows of `x` are better multiplied in shares of rounded size (see `Deal`)."""
    return x.device.type == "cpu" and compute_dtype(x) == torch.bfloat16


class SparseFeedForward(nn.Module):
    """Each token's k routed experts, weighted by the router, plus experts that every token passes."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.router = Router(shape)
        sizes = shape.expert_sizes
        self.experts: Experts | UnequalExperts = (
            Experts(shape.experts, shape.dim, shape.expert_dim) if len(sizes) == 1 else UnequalExperts(sizes, shape.dim)
        )
        self.shared = FeedForward(shape.dim, shape.shared_experts * shape.expert_dim) if shape.shared_experts else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen, counts = self.router(flat)
        deal = Deal.of(chosen, counts, fills(flat) and self.experts.here)  # else they are filled where they arrive
        out = deal.collect(self.experts(deal.spread(flat), deal.counts), weights)
        if self.shared is not None:
            out = out + self.shared(flat)
        return out.view(x.shape)
