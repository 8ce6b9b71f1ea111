"""Positions of a sequence spread over ranks: how they come together for attention and feed-forward, and part again.

Over tp the positions are gathered before a block whose weights are cut, and the block's partial sums are added up and dealt
out again after it (Korthikanti et al. 2022, arXiv 2205.05198). Over cp positions are exchanged for heads (Ulysses, Jacobs et
al. 2023, arXiv 2309.14509), so that each rank sees all positions for some heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ninthsky.train.cut.collectives import all_gather, all_to_all, reduce_scatter

POSITIONS = -2  # the dimension of positions in [..., positions, dim]


Move = Callable[[Tensor, dist.ProcessGroup], Tensor]


class _Across(torch.autograd.Function):
    """`there(x)` over a group, and `back` for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, there: Move, back: Move) -> Tensor:
        ctx.group, ctx.back = group, back
        return there(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(grads[0], ctx.group), None, None, None


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[..., own positions, dim] -> [..., all, dim]."""
    whole = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    all_gather(whole, x.contiguous(), group=group)
    return whole.unflatten(0, (group.size(), -1)).movedim(0, POSITIONS - 1).flatten(POSITIONS - 1, POSITIONS)


def _dealt(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Partial sums [..., all positions, dim] -> their sum over ranks at own positions."""
    parts = x.unflatten(POSITIONS, (group.size(), -1)).movedim(POSITIONS - 1, 0).contiguous()
    own = torch.empty_like(parts[0])
    reduce_scatter(own, parts.flatten(0, 1), group=group)
    return own


def gather_around(block: nn.Module, group: dist.ProcessGroup) -> None:
    """From now on `block` is given own positions in its first argument, works on those of all ranks of `group`, and returns
    own ones, summed over ranks."""

    def gather(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return _Across.apply(arguments[0], group, _gathered, _dealt), *arguments[1:]

    def deal(_: nn.Module, __: tuple[Any, ...], answer: Tensor) -> Tensor:
        own: Tensor = _Across.apply(answer, group, _dealt, _gathered)
        return own

    block.register_forward_pre_hook(gather)
    block.register_forward_hook(deal)


def _to_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, own positions, parts x heads, D] -> [B, all positions, heads, D]."""
    given = x.unflatten(2, (group.size(), -1)).movedim(2, 0).contiguous()  # [to rank, B, own positions, heads, D]
    taken = torch.empty_like(given)
    all_to_all(taken, given, group=group)
    return taken.movedim(0, 1).flatten(1, 2)


def _to_positions(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The other way round."""
    given = x.unflatten(1, (group.size(), -1)).movedim(1, 0).contiguous()  # [to rank, B, its positions, heads, D]
    taken = torch.empty_like(given)
    all_to_all(taken, given, group=group)
    return taken.movedim(0, 2).flatten(2, 3)


class HeadExchange:
    """`model.attention.Exchange` over the ranks of one group. Heads of every kind must be a multiple of its ranks."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, own positions, heads, D] each -> [B, all positions, own heads, D] each, in one exchange."""
        parts = self.group.size()
        counts = [x.shape[2] // parts for x in (q, k, v)]
        together = torch.cat([x.unflatten(2, (parts, -1)) for x in (q, k, v)], 3).flatten(2, 3)
        taken: Tensor = _Across.apply(together, self.group, _to_heads, _to_positions)
        q, k, v = taken.split(counts, 2)
        return q, k, v

    def to_positions(self, y: Tensor) -> Tensor:
        """[B, all positions, own heads, D] -> [B, own positions, heads, D]."""
        own: Tensor = _Across.apply(y, self.group, _to_positions, _to_heads)
        return own
