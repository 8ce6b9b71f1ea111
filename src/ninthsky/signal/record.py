"""What a signal is: numbers on named axes, what the numbers mean, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ninthsky.errors import UserError

Origin = Literal["real", "synthetic"]


@dataclass(frozen=True)
class Axis:
    """One axis of an array, in order. `rate` is samples per `unit`: 250_000 per "s", 1 per "pixel"."""

    name: str
    unit: str
    rate: float = 1.0


@dataclass(frozen=True)
class Value:
    """What each number is: real or complex, its unit, and the range it can take."""

    kind: Literal["real", "complex"]
    unit: str
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Context:
    """Where one recording comes from. Rows of one recording, person or day must not lie on both sides of a split."""

    recording: str
    origin: Origin
    subject: str | None = None
    day: str | None = None
    licence: str = ""


@dataclass(frozen=True)
class Signal:
    """One array with its axes, its value and its context.

    Raises UserError N9-SIG-001 when they contradict each other or a number is not finite.
    """

    array: NDArray[np.generic]
    axes: tuple[Axis, ...]
    value: Value
    context: Context

    def __post_init__(self) -> None:
        where = f"recording {self.context.recording}"
        if self.array.ndim != len(self.axes):
            names = ", ".join(axis.name for axis in self.axes)
            raise _contradiction(f"an array of {self.array.ndim} axes is described by {len(self.axes)} ({names})", where)
        if np.iscomplexobj(self.array) != (self.value.kind == "complex"):
            raise _contradiction(f"the value is declared {self.value.kind}, the array holds {self.array.dtype}", where)
        if not np.isfinite(self.array).all():
            raise _contradiction("the array holds numbers that are not finite", where)


@dataclass(frozen=True)
class Labelled:
    """Rows of one task: signals of one form, each with its class.

    `labels` [N] index `classes`; `snr_db` [N] is the signal-to-noise ratio of each row where it is known.
    """

    signals: tuple[Signal, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    snr_db: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if len(self.signals) != len(self.labels):
            raise _contradiction(f"{len(self.signals)} signals have {len(self.labels)} labels", "labels")
        forms = {(signal.axes, signal.value, signal.array.shape) for signal in self.signals}
        if len(forms) > 1:
            raise _contradiction(f"the signals have {len(forms)} different forms", "signals")

    def __len__(self) -> int:
        return len(self.signals)

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self.signals[0].axes

    @property
    def array(self) -> NDArray[np.generic]:
        """All rows as one array [N, *axes]."""
        return np.stack([signal.array for signal in self.signals])

    def take(self, rows: NDArray[np.int64]) -> Labelled:
        """The rows at those places."""
        return Labelled(
            tuple(self.signals[row] for row in rows),
            self.labels[rows],
            self.classes,
            None if self.snr_db is None else self.snr_db[rows],
        )


def _contradiction(what: str, where: str) -> UserError:
    return UserError("N9-SIG-001", what, where, "describe the array as it is: one axis per dimension, real or complex, finite")
