"""Train and test rows that share no recording, person or day.

A random split of windows is a leak: two windows of one recording share the receiver's noise floor, the room and the hour, and
a model that knows those has not learnt the signal.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ninthsky.errors import UserError
from ninthsky.signal.record import Labelled

By = Literal["row", "recording", "subject", "day"]


def split(rows: Labelled, by: By, test: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the train and of the test rows, each ascending; about `test` of each class's groups are tested.

    Raises UserError N9-SIG-002 when rows are to be split one by one although several share a recording, or when a group's
    name is missing.
    """
    if not 0 < test < 1:
        raise ValueError(f"the share of test rows lies between 0 and 1, not {test}")
    if by == "row":
        _refuse_shared(rows)
    groups = [_group(rows, index, by) for index in range(len(rows))]
    # A group goes to one side as a whole; its first row's class decides which share it counts for.
    label = {group: int(rows.labels[index]) for index, group in reversed(list(enumerate(groups)))}
    tested: set[str] = set()
    for cls in sorted(set(label.values())):
        names = sorted(name for name in label if label[name] == cls)
        random.Random(f"{seed}/{cls}").shuffle(names)
        tested.update(names[: max(1, round(test * len(names)))])
    mask = np.array([group in tested for group in groups])
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def _group(rows: Labelled, index: int, by: By) -> str:
    context = rows.signals[index].context
    if by == "row":
        return f"{index:09d}"
    name: str | None = getattr(context, by)
    if not name:
        raise UserError(
            "N9-SIG-002",
            f"recording {context.recording} does not say its {by}",
            f"split by {by}",
            f"give every recording its {by}, or split by recording",
        )
    return name


def _refuse_shared(rows: Labelled) -> None:
    for what in ("recording", "subject", "day"):
        counts = Counter(getattr(signal.context, what) for signal in rows.signals)
        counts.pop(None, None)
        if counts and (most := counts.most_common(1)[0])[1] > 1:
            raise UserError(
                "N9-SIG-002",
                f"{most[1]} rows share the {what} {most[0]}: splitting them one by one would leak it",
                "split by row",
                f"split by {what}",
            )
