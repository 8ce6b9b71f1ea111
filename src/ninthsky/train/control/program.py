"""What a run's steps were done with: settings by the step from which they hold, and steps that left no trace.

The program is all that a twin needs to come to the same bits, and all that rules and orders ever change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from ninthsky.train.step.recipe import Recipe

# What may be changed on a live run: name -> (least, most). Everything else would be another run.
SETTABLE: dict[str, tuple[float, float]] = {
    "lr": (1e-8, 10.0),
    "clip": (0.0, 1e6),
    "weight_decay": (0.0, 10.0),
    "balance": (0.0, 1.0),
    "checkpoint_every": (1, 10**9),
}


class Change(msgspec.Struct, frozen=True, array_like=True):
    """From `step` on `name` is `value`. `by`: a person, a rule's record, or an injection."""

    step: int
    name: str
    value: float
    by: str


class Undone(msgspec.Struct, frozen=True, array_like=True):
    """Steps `first` to `last` left no trace: the state after `first` finished steps was taken up again."""

    first: int
    last: int


class Lift(msgspec.Struct, frozen=True, array_like=True):
    """After `step` the routing bias of an expert was lifted. `layer` counts routers of the whole model."""

    step: int
    layer: int
    expert: int
    size: float


class Program(msgspec.Struct):
    """Grows with the run; steps only ever count up, also over a roll-back, as the data position is the step number."""

    changes: list[Change] = []
    skipped: list[int] = []
    undone: list[Undone] = []
    lifts: list[Lift] = []

    def recipe_at(self, recipe: Recipe, step: int) -> Recipe:
        """The recipe that holds for `step`."""
        values: dict[str, Any] = {
            change.name: change.value
            for change in self.changes
            if change.step <= step and change.name in SETTABLE and change.name != "checkpoint_every"
        }
        return replace(recipe, **values) if values else recipe

    def checkpoint_every(self, given: int, step: int) -> int:
        """Steps between checkpoints that hold for `step`."""
        values = [change.value for change in self.changes if change.step <= step and change.name == "checkpoint_every"]
        return int(values[-1]) if values else given

    def leaves_no_trace(self, step: int) -> bool:
        """Whether `step` was skipped, or done and rolled back."""
        return step in self.skipped or any(undone.first <= step <= undone.last for undone in self.undone)

    def abandoned(self, finished: int) -> bool:
        """Whether the state that was reached after `finished` steps is one that was rolled back."""
        return any(undone.first < finished <= undone.last for undone in self.undone)

    @property
    def empty(self) -> bool:
        return not (self.changes or self.skipped or self.undone or self.lifts)
