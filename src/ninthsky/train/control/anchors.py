"""States that a run can be taken back to: its checkpoints, or copies in memory where it keeps no folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ninthsky.errors import UserError
from ninthsky.train.control.limits import Limits
from ninthsky.train.control.steering import Control
from ninthsky.train.control.trial import Decision
from ninthsky.train.state import checkpoint
from ninthsky.train.step.trainer import Trainer


class Anchors(Protocol):
    """Where states of the past are."""

    def back_to(self, trainer: Trainer, wanted: Callable[[int], bool]) -> int | None:
        """Loads the newest state whose number of finished steps is `wanted` (collective). -> that number, or None."""


class Checkpoints:
    """On disk. `settle` ends a save under way first, so that what is there does not depend on how fast the disk is."""

    def __init__(self, folder: Path, settle: Callable[[], object] = lambda: None) -> None:
        self.folder, self._settle = folder, settle

    def back_to(self, trainer: Trainer, wanted: Callable[[int], bool]) -> int | None:
        self._settle()
        restored = checkpoint.restore(trainer, self.folder, wanted)
        return None if restored.path is None else restored.step


class Copies:
    """In memory, the newest `keep`; for a run without a folder."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._states: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, trainer: Trainer) -> None:
        state = {name: tensor.detach().clone() for name, tensor in trainer.state_shard().items()}
        self._states = [*self._states, (trainer.step, state)][-self.keep :]

    def back_to(self, trainer: Trainer, wanted: Callable[[int], bool]) -> int | None:
        for finished, state in reversed(self._states):
            if wanted(finished):
                trainer.load_shard(state)
                return finished
        return None


def kept(limits: Limits, every: int) -> int:
    """How many states are kept, so that one of before the onset is among them when a slow rule speaks."""
    return 2 if limits.mode != "act" else 2 + math.ceil(limits.window / every)


def leave_behind(trainer: Trainer, control: Control, decision: Decision, anchors: Anchors) -> None:
    """Goes on after a step that is not applied: with the state as it is, or with one of before the trouble (collective).

    Raises UserError N9-TRN-012 where the decision is to stop.
    """
    step = trainer.step
    if decision.verb == "stop":
        raise UserError("N9-TRN-012", decision.reason, "", "n9 why " + decision.record)
    finished = None
    if decision.verb == "roll back":
        abandoned = control.program.abandoned
        finished = anchors.back_to(trainer, lambda count: count <= decision.onset and not abandoned(count))
        control.rolled_back(finished, step)
    else:
        control.skipped(step)
    trainer.step = step + 1
