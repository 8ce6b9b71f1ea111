"""Faults that a run inflicts on itself, addressed by (step, attempt) and rank, each once in the life of a run.

A redo, a replacement or a resumed job must not meet the same fault again, and the process that met it may be dead. So a fault
leaves a marker file before it strikes, and says in the run's events that it is injected.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec

from ninthsky.run.folder import append_line


class Fault(msgspec.Struct, frozen=True):
    """One fault: `kind` is kill, freeze, nan or slow; `factor` says how many times longer a slow rank computes."""

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
        self.rank = -1

    def due(self, step: int, attempt: int, *kinds: str) -> Fault | None:
        """The fault of one of these kinds that strikes this rank now. Marked as having struck, and announced."""
        for fault in self.faults:
            if fault.kind in kinds and (fault.rank, fault.step, fault.attempt) == (self.rank, step, attempt):
                now = time.time()
                if self._mark(fault, now):
                    append_line(
                        self.events,
                        {
                            "time": now,
                            "kind": "inject",
                            "injected": True,
                            "fault": fault.kind,
                            "rank": fault.rank,
                            "step": step,
                            "attempt": attempt,
                            "pid": os.getpid(),
                        },
                    )
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

    def drag(self, computed: float) -> None:
        """What a slow process adds to `computed` seconds of processor time: real work, so that both clocks show it."""
        end = time.thread_time() + computed * (self.slow_factor - 1)
        while time.thread_time() < end:
            pass

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
