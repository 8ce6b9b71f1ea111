"""The tasks that the model learns: what it is shown, what it is asked, and how its rows are split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ninthsky.errors import UserError
from ninthsky.signal import modulation
from ninthsky.signal.patches import Array, FloatArray, Patching, normalise
from ninthsky.signal.record import Axis, Context, Labelled, Origin, Signal, Value
from ninthsky.signal.split import By, split

TEST_SHARE = 0.25


@dataclass(frozen=True)
class Task:
    """One kind of signal with one question about it. A new modality is one more of these."""

    name: str
    title: str
    origin: Origin
    question: str
    patching: Patching
    split_by: By
    make: Callable[[int], Labelled]  # seed -> rows
    limit: str


@dataclass(frozen=True)
class Prepared:
    """A task's rows, normalised, cut into patches, and split.

    `patches` [N, P, W]; `normalised` [N, *axes] as baselines read it; `scale`, `offset` [N]: what normalising took away, which
    is what the shortcut control gets to see.
    """

    task: Task
    rows: Labelled
    normalised: Array
    patches: FloatArray
    scale: NDArray[np.float64]
    offset: NDArray[np.complex128]
    train: NDArray[np.int64]
    test: NDArray[np.int64]

    @property
    def answers(self) -> list[str]:
        """The right answer of each row, as text."""
        return [self.rows.classes[label] for label in self.rows.labels]


def prepare(task: Task, seed: int) -> Prepared:
    """Rows, patches and split of one task; the same seed gives the same."""
    rows = task.make(seed)
    array, scale, offset = normalise(rows.array, [signal.context.recording for signal in rows.signals])
    train, test = split(rows, task.split_by, TEST_SHARE, seed)
    return Prepared(task, rows, array, task.patching.cut(rows.axes, array), scale, offset, train, test)


def digits(seed: int) -> Labelled:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels of 0 to 16: real images (Alpaydin & Kaynak 1998, CC BY 4.0).

    The seed changes nothing: the images are what they are.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    axes = (Axis("row", "pixel"), Axis("column", "pixel"))
    value = Value("real", "ink", (0.0, 16.0))
    signals = tuple(
        Signal(image.reshape(8, 8).astype(np.float32), axes, value, Context(f"digit-{row:04d}", "real", licence="CC BY 4.0"))
        for row, image in enumerate(images)
    )
    return Labelled(signals, labels.astype(np.int64), tuple("0123456789"))


def modulations(seed: int) -> Labelled:
    """2,000 recordings of two windows of 256 samples: synthetic."""
    return modulation.make_recordings(2_000, windows=2, samples=256, seed=seed)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "digits",
            "handwritten digits",
            "real",
            "digit?",
            Patching((("row", 2), ("column", 2))),
            "row",
            digits,
            "The digits' writers are not known, so one writer's hand may be on both sides of the split.",
        ),
        Task(
            "modulation",
            "modulations",
            "synthetic",
            "modulation?",
            Patching((("time", 16),), lag=modulation.SAMPLES_PER_SYMBOL),
            "recording",
            modulations,
            "The modulations are synthetic, without receiver, fading or interference, and the symbol length is known: nothing "
            "is shown about signals over the air.",
        ),
    )
}


def task_named(name: str) -> Task:
    """Raises UserError N9-SIG-004 for a task that does not exist."""
    if name not in TASKS:
        raise UserError("N9-SIG-004", f"no task is called {name!r}", "[signal] tasks", f"there are {', '.join(TASKS)}")
    return TASKS[name]
