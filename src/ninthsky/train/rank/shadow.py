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
from torch._C._distributed_c10d import Store


class _Done(dist.Work):
    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


class MirrorGroup(dist.ProcessGroup):
    """Each peer is a copy of this rank. Knows the collectives that a training step of ours is made of."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self.place, self.peers = rank, size

    def _set_group_name(self, name: str) -> None:
        """The wrapping group hands its name on; nothing here needs one."""


def _all_reduce(group: MirrorGroup, tensors: Sequence[Tensor], *_: Any) -> dist.Work:
    for tensor in tensors:
        tensor.mul_(group.peers)
    return _Done()


def _nothing(group: MirrorGroup, *_: Any) -> dist.Work:
    return _Done()


def _receive(group: MirrorGroup, tensors: Sequence[Tensor], *_: Any) -> dist.Work:
    """What a neighbouring stage would send: nothing that moves a weight."""
    for tensor in tensors:
        tensor.zero_()
    return _Done()


def _all_gather(group: MirrorGroup, output: Tensor, input: Tensor, *_: Any) -> dist.Work:
    output.view(group.peers, -1).copy_(input.view(1, -1).expand(group.peers, -1))
    return _Done()


def _reduce_scatter(group: MirrorGroup, output: Tensor, input: Tensor, *_: Any) -> dist.Work:
    torch.mul(input.view(group.peers, -1)[group.place], group.peers, out=output.view(-1))
    return _Done()


def _all_to_all(
    group: MirrorGroup, output: Tensor, input: Tensor, output_sizes: list[int], input_sizes: list[int], *_: Any
) -> dist.Work:
    own = input.split(input_sizes)[group.place] if input_sizes else input.chunk(group.peers)[group.place]
    # A real peer would send as much as was agreed; a mirror sends what it has, and nothing where that is too short.
    for place in output.split(output_sizes) if output_sizes else output.chunk(group.peers):
        count = min(len(place), len(own))
        place[:count].copy_(own[:count])
        place[count:].zero_()
    return _Done()


# Under the names of torch 2.11 and of 2.13.
for _names, _method in (
    (("allreduce",), _all_reduce),
    (("broadcast", "barrier", "send"), _nothing),
    (("recv",), _receive),
    (("_allgather_base", "all_gather_single"), _all_gather),
    (("_reduce_scatter_base", "reduce_scatter_single"), _reduce_scatter),
    (("alltoall_base", "all_to_all_single"), _all_to_all),
):
    for _name in _names:
        setattr(MirrorGroup, _name, _method)


def mirror(store: Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroup:
    """The `inner` of a probe while it practises."""
    return MirrorGroup(rank, size)
