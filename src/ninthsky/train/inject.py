"""Faults that a run inflicts on itself, addressed by (step, attempt) and rank, each once in the life of a run.

kill, freeze, nan, slow strike a process. bad_card: this process's gradients are `factor` times what they should be, from then
on. bad_data: the samples that `rank` reads in that step are noise, whoever reads them. rate: the learning rate is `factor`
times what was set, from that step on, for every rank.

A redo, a replacement or a resumed job must not meet the same fault again, and the process that met it may be dead. So a fault
leaves a marker file before it strikes, and says in the run's events that it is injected.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
import torch

from ninthsky.run.folder import append_line


class Fault(msgspec.Struct, frozen=True):
    """One fault. `factor`: how many times longer a slow rank computes, or what gradients or rate are multiplied by."""

    number: int
    kind: str
    rank: int
    step: int
    attempt: int = 0
    factor: float = 1.0


class Injector:
    """Holds a rank's faults. `folder` keeps the markers, `events` is the run's event log."""

    def __init__(self, faults: list[Fault], folder: Path, events: Path) -> None:
        self.faults, self.folder, self.events = faults, folder, events
        self.slow_factor = 1.0  # of this process, from the step on where a "slow" fault struck
        self.gradient_factor = 1.0  # of this process, from the step on where a "bad_card" struck
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


class Struck(msgspec.Struct, frozen=True):
    """A fault that struck, and when (Unix seconds)."""

    fault: Fault
    time: float


def struck(folder: Path) -> list[Struck]:
    """The faults that have struck in the life of the run in this folder, in order of their numbers."""
    return [msgspec.json.decode(path.read_bytes(), type=Struck) for path in sorted(folder.glob("struck-*"))]


def _marker(folder: Path, fault: Fault) -> Path:
    return folder / f"struck-{fault.number:03d}"
