"""How far a rank's own gradients reach, weight by weight, beside what they did in the last steps: seen before the reduce.

A flipped high bit makes one element larger than all others of its weight; the norm of the whole gradient hides most of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ninthsky.train.cut.parallel import Own

STEPS = 16  # of history
LEAST = 8  # steps before anything is said
FLOOR = 2.0**-10  # of the largest gradient of any weight: below it a weight's history counts as that


@dataclass(frozen=True)
class Excess:
    """The weight whose largest own gradient is farthest above the largest of its last steps. `log2` of their ratio.

    `number`: its place in `Ranges.weights`.
    """

    log2: float
    number: int


NOTHING = Excess(0.0, -1)


class Ranges:
    """Of one rank. `begin`, then `see` as a hook in `Trainer.own_gradients`; `excess` at the gate; `keep` once applied."""

    def __init__(self) -> None:
        self._history: dict[str, deque[float]] = {}
        self._seen: dict[str, Tensor] = {}
        self._largest: dict[str, float] = {}

    @property
    def weights(self) -> list[str]:
        """Names, in the order in which their gradients are seen."""
        return list(self._seen)

    def begin(self) -> None:
        """A new attempt."""
        self._seen, self._largest = {}, {}

    def forget(self) -> None:
        """This process is another rank now."""
        self.begin()
        self._history = {}

    def see(self, own: Sequence[Own]) -> None:
        """No synchronisation with a device."""
        for one in own:
            if one.gradient.numel():
                low, high = torch.aminmax(one.gradient.detach())
                self._seen[one.weight] = torch.maximum(-low, high)

    def excess(self) -> Excess:
        """NOTHING until there is a history, and where something is not finite: that has a judge of its own."""
        if not self._seen:
            return NOTHING
        values = torch.stack([value.float() for value in self._seen.values()]).tolist()
        self._largest = dict(zip(self._seen, values, strict=True))
        usual = {name: max(past) for name, past in self._history.items() if len(past) >= LEAST}
        if not usual or not all(map(math.isfinite, values)):
            return NOTHING
        floor = FLOOR * max(usual.values())
        found = [
            Excess(math.log2(now / reference), number)
            for number, (name, now) in enumerate(self._largest.items())
            if name in usual and now > 0 and (reference := max(usual[name], floor)) > 0
        ]
        return max(found, key=lambda one: one.log2, default=NOTHING)

    def keep(self) -> None:
        """The attempt was applied: it is history."""
        for name, value in self._largest.items():
            self._history.setdefault(name, deque(maxlen=STEPS)).append(value)
