"""Faults that a run inflicts on itself, addressed by (step, attempt) and rank, each once in the life of a run.

kill, freeze, nan, slow strike a process. bad_card: this process's gradients are `factor` times what they should be, from then
on. flip_gradient, flip_weight: bit `bit` of one element is flipped, of this process's own gradients before they are reduced, or
of its state (weights and the optimizer's) while it rests between two steps. wrong_matmul: from then on one kind of matrix
product comes out wrong in this process, by the share `error` in one column.
bad_data: the samples that `rank` reads in that step are noise, whoever reads them. rate: the learning rate is `factor`
times what was set, from that step on, for every rank.

A redo, a replacement or a resumed job must not meet the same fault again, and the process that met it may be dead. So a fault
leaves a marker file before it strikes, and says in the run's events that it is injected.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ninthsky.run.folder import append_line


class Fault(msgspec.Struct, frozen=True):
    """One fault. `factor`: how many times longer a slow rank computes, or what gradients or rate are multiplied by.

    `number` also decides which element a flipped bit is of, and which product comes out wrong.
    """

    number: int
    kind: str
    rank: int
    step: int
    attempt: int = 0
    factor: float = 1.0
    bit: int = 30  # 31 is an fp32's sign, 30 to 23 its exponent
    error: float = 1e-3


class Injector:
    """Holds a rank's faults. `folder` keeps the markers, `events` is the run's event log."""

    def __init__(self, faults: list[Fault], folder: Path, events: Path) -> None:
        self.faults, self.folder, self.events = faults, folder, events
        self.slow_factor = 1.0  # of this process, from the step on where a "slow" fault struck
        self.gradient_factor = 1.0  # of this process, from the step on where a "bad_card" struck
        self.wrong: WrongProduct | None = None  # of this process, from the step on where a "wrong_matmul" struck
        self._flip: Fault | None = None
        self.rank = -1

    def due(self, step: int, attempt: int, *kinds: str) -> Fault | None:
        """The fault of one of these kinds that strikes this rank now. Marked as having struck, and announced."""
        for fault in self.faults:
            here = (fault.rank, fault.step, fault.attempt) == (self.rank, step, attempt)
            if fault.kind in kinds and here and self._announce(fault):
                return fault
        return None

    def strike(self, step: int, attempt: int) -> None:
        """In the middle of a step: dies, freezes, or becomes slow, where that is due."""
        fault = self.due(step, attempt, "kill", "freeze", "slow")
        if fault is None:
            return
        if fault.kind == "slow":
            self.slow_factor = fault.factor
        else:
            os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)

    def turn_bad(self, step: int, attempt: int) -> None:
        """From here on this process computes wrong gradients, where that is due."""
        fault = self.due(step, attempt, "bad_card")
        if fault is not None:
            self.gradient_factor = fault.factor
        fault = self.due(step, attempt, "wrong_matmul")
        if fault is not None:
            self.wrong = WrongProduct(fault)
            self.wrong.__enter__()  # for the rest of this process's life

    def flip_state(self, step: int, attempt: int, state: Mapping[str, torch.Tensor]) -> None:
        """A bit of what rests, where that is due."""
        fault = self.due(step, attempt, "flip_weight")
        if fault is not None:
            floats = [tensor for tensor in state.values() if tensor.is_floating_point() and tensor.dim()]
            flip_bit(floats, fault)

    def arm(self, step: int, attempt: int) -> None:
        """The next gradients that `flip_gradient` sees are struck, where that is due."""
        self._flip = self.due(step, attempt, "flip_gradient")

    def flip_gradient(self, gradients: Sequence[torch.Tensor]) -> None:
        """A bit of this rank's own gradients, once."""
        if self._flip is not None:
            flip_bit(gradients, self._flip)
            self._flip = None

    def spoil(self, batch: torch.Tensor, step: int, share: int) -> torch.Tensor:
        """`batch`, the share `share` of `step`, or noise in its place: the same for everybody who reads it."""
        for fault in self.faults:
            if fault.kind == "bad_data" and (fault.step, fault.rank) == (step, share):
                self._announce(fault)
                generator = torch.Generator().manual_seed(fault.number)
                low, high = int(batch.min()), int(batch.max())
                return torch.randint(low, high + 1, batch.shape, generator=generator)
        return batch

    def rate(self, step: int) -> float:
        """What the learning rate is multiplied by from `step` on; 1 where nothing begins there."""
        for fault in self.faults:
            if fault.kind == "rate" and fault.step == step:
                self._announce(fault)
                return fault.factor
        return 1.0

    def drag(self, computed: float) -> None:
        """What a slow process adds to `computed` seconds of processor time: real work, so that both clocks show it."""
        end = time.thread_time() + computed * (self.slow_factor - 1)
        while time.thread_time() < end:
            pass

    def _announce(self, fault: Fault) -> bool:
        """Marks that it struck and tells the events; False where that was done before."""
        now = time.time()
        if not self._mark(fault, now):
            return False
        line = {"fault": fault.kind, "rank": fault.rank, "step": fault.step, "attempt": fault.attempt, "pid": os.getpid()}
        append_line(self.events, {"time": now, "kind": "inject", "injected": True, **line})
        return True

    def _mark(self, fault: Fault, now: float) -> bool:
        try:
            with _marker(self.folder, fault).open("xb") as file:
                file.write(msgspec.json.encode(Struck(fault, now)))
        except FileExistsError:
            return False
        return True


@torch.no_grad()
def flip_bit(tensors: Sequence[torch.Tensor], fault: Fault) -> None:
    """One bit of one element, in place: of those that are not 0, each as likely as any other."""
    generator = torch.Generator().manual_seed(fault.number)
    held = [int(tensor.count_nonzero()) for tensor in tensors]
    if not sum(held):
        return
    place = int(torch.randint(sum(held), (), generator=generator))
    for tensor, count in zip(tensors, held, strict=True):
        if place < count:
            at = tuple(tensor.nonzero()[place].tolist())
            width = 8 * tensor.element_size()
            bit = fault.bit % width
            mask = (1 << bit) - ((1 << width) if bit == width - 1 else 0)
            word = {16: torch.int16, 32: torch.int32, 64: torch.int64}[width]
            tensor[at] = (tensor[at].reshape(1).view(word) ^ mask).view(tensor.dtype)[0]
            return
        place -= count


class WrongProduct(TorchDispatchMode):
    """A multiplier that fails in one kind of product: the first column of every product of these shapes is a little off."""

    PRODUCTS = ("mm", "addmm", "bmm")

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.choose(fault)

    def choose(self, fault: Fault) -> None:
        """From the next product on, it is this fault's."""
        self.error, self._left = fault.error, fault.number % 6  # products that are left alone before one is chosen
        self._kind: tuple[Any, ...] | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **dict(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name not in self.PRODUCTS or type(out) is not torch.Tensor or not out.numel():
            return out
        kind = (name, *(tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor)))
        if self._kind is None:
            self._left -= 1
            if self._left < 0:
                self._kind = kind
        if kind == self._kind:
            out.select(-1, 0).mul_(1 + self.error)
        return out


class Struck(msgspec.Struct, frozen=True):
    """A fault that struck, and when (Unix seconds)."""

    fault: Fault
    time: float


def struck(folder: Path) -> list[Struck]:
    """The faults that have struck in the life of the run in this folder, in order of their numbers."""
    return [msgspec.json.decode(path.read_bytes(), type=Struck) for path in sorted(folder.glob("struck-*"))]


def _marker(folder: Path, fault: Fault) -> Path:
    return folder / f"struck-{fault.number:03d}"
