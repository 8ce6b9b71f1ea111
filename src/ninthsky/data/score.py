"""Which blocks of a page are its article: a small fitted network scores each, and the best spans by maximum sum are kept.

The weights are fitted by `ninthsky.data.fit` and shipped with the package.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from ninthsky.data.blocks import Page
from ninthsky.data.features import NAMES, features, units

Array = npt.NDArray[Any]


# Blocks at a time. OpenBLAS gives a product of more than 2^18 terms to all cores, which then wait for each other longer than
# they work: with both cores busy a page took four times the processor time.
_ROWS = 48


@dataclass(frozen=True)
class Weights:
    """Inputs are (x - mean) / scale; each member of the ensemble has one hidden layer of rectified units.

    `first` [members, inputs, hidden], `first_bias` [members, hidden], `second` [members, hidden], `second_bias` [members].
    `switch` is the cost, in score, of beginning or ending a span.
    """

    mean: Array
    scale: Array
    first: Array
    first_bias: Array
    second: Array
    second_bias: Array
    switch: float
    bias: float

    def score(self, x: Array) -> Array:
        """Log-odds that each block belongs to the article, float64 [blocks], rounded so that no platform's last bit decides."""
        z = np.clip((x - self.mean) / self.scale, -6, 6)
        logits = np.zeros(len(x))
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            for first, bias, second, offset in zip(self.first, self.first_bias, self.second, self.second_bias, strict=True):
                logits[rows] += np.maximum(z[rows] @ first + bias, 0) @ second + offset
        return np.round(logits / len(self.first) + self.bias, 4)


@functools.cache
def weights() -> Weights:
    """The shipped weights. Raises ValueError when they were fitted for other figures than this version computes."""
    with (
        resources.as_file(resources.files("ninthsky.data") / "weights.npz") as path,
        np.load(path, allow_pickle=False) as stored,
    ):
        if tuple(stored["names"].tolist()) != NAMES:
            raise ValueError("weights.npz was fitted for other block figures; run python -m ninthsky.data.fit again")
        fields = {
            name: stored[name].astype(np.float64) for name in ("mean", "scale", "first", "first_bias", "second", "second_bias")
        }
        return Weights(**fields, switch=float(stored["switch"]), bias=float(stored["bias"]))


def spans(scores: Array, size: Array, switch: float) -> list[tuple[int, int]]:
    """The runs of blocks [first, last) with the largest sum of score x weight, each run costing `switch`.

    Maximum-sum segments for any number of segments at once, by dynamic programming over two states (keep, drop).
    """
    gain = _gain(scores, size)
    keep, drop = -np.inf, 0.0
    started = np.zeros(len(gain), bool)  # the best way to keep block i begins a span at i
    kept_before = np.zeros(len(gain), bool)  # the best way to drop block i keeps block i - 1
    for index, value in enumerate(gain.tolist()):
        begin = drop - switch
        kept_before[index] = keep > drop
        next_drop = max(keep, drop)
        started[index] = begin >= keep
        keep, drop = max(begin, keep) + value, next_drop
    found: list[tuple[int, int]] = []
    keeping, last = keep > drop, len(gain)
    for index in range(len(gain) - 1, -1, -1):
        if keeping:
            if started[index]:
                found.append((index, last))
                keeping = False
        elif kept_before[index]:
            keeping, last = True, index
    return found[::-1]


def best_run(scores: Array, size: Array) -> float:
    """The largest sum of one run of blocks: what `spans` holds against `switch`. A page of nothing has none: minus infinity."""
    best = held = -np.inf
    for value in _gain(scores, size).tolist():
        held = max(held, 0.0) + value
        best = max(best, held)
    return best


def _gain(scores: Array, size: Array) -> Array:
    """Score times weight; a block's weight grows with the square root of its length in words."""
    return np.clip(scores, -4, 4) * np.sqrt(np.minimum(size, 200.0) + 1)


def choose(page: Page, fitted: Weights | None = None) -> tuple[list[tuple[int, int]], Array]:
    """Kept spans of blocks, and every block's score. A kept span may hold a few low blocks between high ones."""
    fitted = fitted or weights()
    scores = fitted.score(features(page))
    if not len(scores):
        return [], scores
    return spans(scores, units(page), fitted.switch), scores
