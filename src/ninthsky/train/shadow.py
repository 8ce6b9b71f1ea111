"""A throw-away mesh on which one process is every rank: what a spare practises on before it is needed.

The first FSDP2 wrap, the first backward and the first optimizer step cost over half a second each of imports and allocations.
A spare pays them here: the group below answers each collective as if all peers held and did the same as this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Done(dist.Work):
    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


class MirrorGroup(dist.ProcessGroup):
    """Each peer is a copy of this rank. Knows the collectives that a training step of ours is made of."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self._place, self._peers = rank, size

    def _set_group_name(self, name: str) -> None:
        """The wrapping group hands its name on; nothing here needs one."""

    def allreduce(self, tensors: Sequence[Tensor], *_: Any) -> dist.Work:
        for tensor in tensors:
            tensor.mul_(self._peers)
        return _Done()

    def broadcast(self, tensors: Sequence[Tensor], *_: Any) -> dist.Work:
        return _Done()

    def barrier(self, *_: Any) -> dist.Work:
        return _Done()

    def all_gather_single(self, output: Tensor, input: Tensor, *_: Any) -> dist.Work:
        output.view(self._peers, -1).copy_(input.view(1, -1).expand(self._peers, -1))
        return _Done()

    def allgather(self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], *_: Any) -> dist.Work:
        for copies, tensor in zip(outputs, inputs, strict=True):
            for copy in copies:
                copy.copy_(tensor)
        return _Done()

    def reduce_scatter_single(self, output: Tensor, input: Tensor, *_: Any) -> dist.Work:
        torch.mul(input.view(self._peers, -1)[self._place], self._peers, out=output.view(-1))
        return _Done()

    def all_to_all_single(self, output: Tensor, input: Tensor, output_sizes: list[int], input_sizes: list[int], *_: Any) -> dist.Work:
        own = input.split(input_sizes)[self._place] if input_sizes else input.chunk(self._peers)[self._place]
        places = output.split(output_sizes) if output_sizes else output.chunk(self._peers)
        # A real peer would send as much as was agreed; a mirror sends what it has, and nothing where that is too short.
        for place in places:
            count = min(len(place), len(own))
            place[:count].copy_(own[:count])
            place[count:].zero_()
        return _Done()

    # The names that torch 2.11 calls.
    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single
    alltoall_base = all_to_all_single


def mirror(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroup:
    """The `inner` of a probe while it practises."""
    return MirrorGroup(rank, size)
