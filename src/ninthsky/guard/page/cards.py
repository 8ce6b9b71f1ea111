"""The fleet's map as small differences: runs of [gap, length, state], cut to a budget, the rest in the next second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Cards = NDArray[np.uint8]


def whole(cards: Cards) -> list[int]:
    """The map as [length, state, length, state, ...]."""
    if not len(cards):
        return []
    edges = np.flatnonzero(np.diff(cards)) + 1
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [len(cards)]]))
    return [int(value) for pair in zip(lengths, cards[starts], strict=True) for value in pair]


def changes(shown: Cards, cards: Cards, runs: int) -> list[int]:
    """What turns `shown` into `cards`, as [gap, length, state, ...] (gap: slots since the end of the run before), in at most
    `runs` runs. `shown` is changed in place to what a reader has after them. Urgent states (later ones of picture.Card)
    go first where not everything fits."""
    differ = np.flatnonzero(shown != cards)
    if not len(differ):
        return []
    breaks = np.flatnonzero((np.diff(differ) != 1) | (np.diff(cards[differ].astype(np.int16)) != 0)) + 1
    starts = differ[np.concatenate([[0], breaks])]
    ends = differ[np.concatenate([breaks - 1, [len(differ) - 1]])] + 1
    if len(starts) > runs:
        urgent = np.sort(np.argsort(-cards[starts].astype(np.int16), kind="stable")[:runs])
        starts, ends = starts[urgent], ends[urgent]
    told: list[int] = []
    before = 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        told += [start - before, end - start, int(cards[start])]
        shown[start:end] = cards[start:end]
        before = end
    return told
