"""Routed and shared experts: who gets a token, how tokens travel to their experts and back, and how load is kept even."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ninthsky.model.fused import compute_dtype, gated_silu
from ninthsky.model.shape import Shape

ROUND = 32  # rows


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202). `gate_up` holds both, gate first."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.down(gated_silu(self.gate_up(x)))


class Router(nn.Module):
    """Sigmoid scores; the top k of score + bias are chosen, weighted by score alone (DeepSeek-V3, arXiv 2412.19437, 2.1.2).

    The bias is no parameter: after each step it moves by the sign of (mean load - load), counted over all ranks
    (`balance`), so that no auxiliary loss pulls at the weights. `load` counts choices since then, in training only.
    """

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.experts_per_token = shape.experts_per_token
        self.weight = nn.Parameter(torch.empty(shape.experts, shape.dim))
        self.register_buffer("e_score_correction_bias", torch.zeros(shape.experts))
        self.register_buffer("load", torch.zeros(shape.experts, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, dim] -> weights [N, k] in fp32 that sum to 1, chosen experts [N, k], choices per expert [experts]."""
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
        chosen = (scores.detach() + self.e_score_correction_bias).topk(self.experts_per_token, -1, sorted=False).indices
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.load))
        if self.training and torch.is_grad_enabled():
            self.load += counts
        return weights, chosen, counts

    @torch.no_grad()
    def balance(self, load: Tensor, rate: float) -> None:
        """Moves the bias by the global `load` [experts], mean-centred so that it cannot drift, and counts anew."""
        wanted = load.double().mean()
        move = torch.sign(wanted - load).to(self.e_score_correction_bias.dtype)
        self.e_score_correction_bias += rate * (move - move.mean())
        self.load.zero_()


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
        order = expert_of.argsort(stable=True)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=x.device)
        done = self._multiply(rows[order], arriving.sum(0))[back]
        return _Exchange.apply(done, receive, send, self.group)

    def _multiply(self, x: Tensor, counts: Tensor) -> Tensor:
        dtype, places = compute_dtype(x), None
        if dtype == torch.bfloat16 and x.device.type == "cpu":
            places, counts = _spaced(counts, len(x))
            x = x.new_zeros(int(counts.sum()), x.shape[1]).index_put((places,), x)
        ends = counts.cumsum(0, dtype=torch.int32)
        hidden = gated_silu(F.grouped_mm(x.to(dtype), self.gate_up.to(dtype), offs=ends))
        answers = F.grouped_mm(hidden, self.down.to(dtype), offs=ends)
        return answers if places is None else answers[places]


def _spaced(counts: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Where each of `rows` sorted rows goes when every expert's share is filled up to a multiple of ROUND; the new shares.

    On a CPU each new size of a bf16 product costs the making of a kernel, more than the product itself at small sizes;
    rounded sizes come again.
    """
    rounded = (counts + ROUND - 1).div(ROUND, rounding_mode="floor") * ROUND
    moved = (rounded - counts).cumsum(0).roll(1)
    moved[0] = 0
    return torch.arange(rows, device=counts.device) + moved.repeat_interleave(counts), rounded


class SparseFeedForward(nn.Module):
    """Each token's k routed experts, weighted by the router, plus experts that every token passes."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.router = Router(shape)
        self.experts = Experts(shape.experts, shape.dim, shape.expert_dim)
        self.shared = FeedForward(shape.dim, shape.shared_experts * shape.expert_dim) if shape.shared_experts else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, dim] -> [B, T, dim]."""
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen, counts = self.router(flat)
        order = chosen.flatten().argsort(stable=True)
        token = order // chosen.shape[1]
        answers = self.experts(flat[token], counts)
        weighted = answers * weights.flatten()[order, None].to(answers.dtype)
        out = torch.zeros_like(flat, dtype=weighted.dtype).index_add(0, token, weighted)
        if self.shared is not None:
            out = out + self.shared(flat)
        return out.view(x.shape)
