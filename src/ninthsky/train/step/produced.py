"""Whether a rank's own gradients are, when they are about to be reduced, what autograd put down.

Between the two they rest: for the whole backward where the model is one unit of FSDP2, over many micro-batches where there are
some. They are laid out anew on the way, so the digest is a sum of words modulo 2^64, which no order changes; every flipped bit
does. Of 64-bit words where pairs of neighbours stay together (as fast as memory is read), else of 32-bit ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ninthsky.train.cut.parallel import Own

_NARROW = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Produced:
    """Of one trainer: `begin` before a pass, `see` as a hook in `Trainer.own_gradients`, `changed` at the gate.

    A weight is known from the second pass on, since FSDP2 makes the parameter that autograd sees in the first. Where gradients
    are put down by something else than autograd (a backward in two halves) it must not be used.
    """

    def __init__(self) -> None:
        self._paired: dict[int, bool] = {}  # by id of the parameter
        self._sums: dict[int, Tensor] = {}
        self._differences: list[Tensor] = []

    def begin(self) -> None:
        self._sums, self._differences = {}, []

    def see(self, own: Sequence[Own]) -> None:
        """No synchronisation with a device."""
        if any(one.parameter is None for one in own):
            return
        known = [self._sums.pop(id(one.parameter)) for one in own if id(one.parameter) in self._sums]
        for one in own:
            if one.parameter is not None and id(one.parameter) not in self._paired:
                self._paired[id(one.parameter)] = one.paired
                one.parameter.register_post_accumulate_grad_hook(self._put_down)
        if len(known) == len(own):
            now = [word_sum(one.gradient, one.paired) for one in own]
            self._differences.append(torch.stack(known).sum() != torch.stack(now).sum())

    def accept(self, own: Sequence[Own]) -> None:
        """What lies there now is what was put down: by a card that computes wrongly, and keeps what it computed."""
        for one in own:
            if id(one.parameter) in self._sums:
                self._sums[id(one.parameter)] = word_sum(one.gradient, one.paired)

    @property
    def compared(self) -> int:
        """Buffers that could be compared in this pass."""
        return len(self._differences)

    def changed(self) -> int:
        """Buffers in this pass that are not what was put down."""
        return int(torch.stack(self._differences).sum()) if self._differences else 0

    def _put_down(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._sums[id(parameter)] = word_sum(parameter.grad, self._paired[id(parameter)])


def word_sum(tensor: Tensor, paired: bool) -> Tensor:
    """int64 scalar where the tensor is. `paired` promises that pairs of fp32 neighbours are whole."""
    values = tensor.detach()
    if values.element_size() != 4 or not paired:
        return values.contiguous().view(_NARROW[values.element_size()]).sum(dtype=torch.int64)
    rows = values if values.dim() and values.stride(-1) == 1 else values.contiguous()
    odd = [*rows.stride()[:-1], rows.storage_offset(), rows.shape[-1]]
    if any(length % 2 for length in odd):
        rows = values.contiguous().view(-1)
    return rows.view(torch.int64).sum()
