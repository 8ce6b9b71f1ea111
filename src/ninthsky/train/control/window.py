"""The figures of the last committed steps, and robust statistics over them. Plain numbers: they travel with every shard."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

NORMAL = 1.4826  # MAD of a normal distribution to its standard deviation (Rousseeuw and Croux 1993)
LOCAL = 8  # steps whose median is the expectation for the next one


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One committed step. `spread`: the largest |log| deviation of a rank's own gradient from the ranks' median; `worst`: how
    far the worst rank's own loss was above the ranks' median (nats)."""

    step: int
    loss: float
    norm: float
    spread: float
    worst: float


class Validation(msgspec.Struct, frozen=True, array_like=True):
    """Validation loss after `step`, and the level of the training loss then."""

    step: int
    loss: float
    training: float


class Window(msgspec.Struct):
    """Oldest first. `length` steps and as many validations are kept."""

    length: int
    steps: list[Step] = []
    validations: list[Validation] = []

    def add(self, step: Step) -> None:
        self.steps = [*self.steps[-self.length + 1 :], step]

    def add_validation(self, validation: Validation) -> None:
        self.validations = [*self.validations[-self.length + 1 :], validation]

    def back_to(self, step: int) -> None:
        """Forgets what came after the state of `step` finished steps."""
        self.steps = [past for past in self.steps if past.step < step]
        self.validations = [past for past in self.validations if past.step < step]

    @property
    def losses(self) -> list[float]:
        return [past.loss for past in self.steps]

    @property
    def log_norms(self) -> list[float]:
        return [math.log(max(past.norm, 1e-30)) for past in self.steps]


def median(values: Sequence[float]) -> float:
    """As a float, of at least one value."""
    return float(statistics.median(values))


def noise(values: Sequence[float]) -> float:
    """One step's noise: MAD of each value against the median of the LOCAL ones before it, so that a trend counts little."""
    residuals = [values[at] - median(values[at - LOCAL : at]) for at in range(LOCAL, len(values))]
    return NORMAL * median([abs(residual) for residual in residuals]) if residuals else math.inf


def local_z(values: Sequence[float], value: float, floor: float) -> float:
    """How many noises `value` stands above what the last LOCAL values let expect; `floor` bounds the noise from below."""
    return (value - median(values[-LOCAL:])) / max(noise(values), floor)


def levels(values: Sequence[float], block: int) -> list[float]:
    """Medians of every `block` values in a row; entry i ends with value i + block - 1."""
    return [median(values[at - block : at]) for at in range(block, len(values) + 1)]
