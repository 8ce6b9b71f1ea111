"""Which blocks of a page are its article: a small fitted network scores each, and the best spans by maximum sum are kept.

The weights are fitted by `ninthsky.data.fit` and shipped with the package.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from ninthsky.data.blocks import Page
from ninthsky.data.features import NAMES, figures

Array = npt.NDArray[Any]


@njit(cache=True)
def _score(x, mean, scale, nothing, first, base, second):
    """Sums of the members' outputs, float64 [blocks]. What a figure of zero gives is in `base` already: most are zero.

    Every sum goes over the figures in one order, so no platform's vector width changes a bit. OpenBLAS would give such products
    to all cores, which wait for each other longer than they work.
    """
    out = np.empty(len(x))
    hidden = np.empty(len(base), np.float32)
    for n in range(len(x)):
        hidden[:] = base
        for k in range(x.shape[1]):
            if x[n, k] != 0:
                z = min(max((x[n, k] - mean[k]) / scale[k], np.float32(-6)), np.float32(6)) - nothing[k]
                row = first[k]
                for h in range(len(hidden)):
                    hidden[h] += z * row[h]
        total = 0.0
        for h in range(len(hidden)):
            total += max(hidden[h], np.float32(0)) * second[h]
        out[n] = total
    return out


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

    @functools.cached_property
    def _side_by_side(self) -> tuple[Array, ...]:
        """The members as one network: mean, scale, what a zero becomes, first [inputs, members x hidden], its bias, second."""
        nothing = np.clip(-self.mean / self.scale, -6, 6)
        first = np.concatenate(list(self.first), axis=1)
        base = nothing @ first + self.first_bias.ravel()
        single = (self.mean, self.scale, nothing, first, base)
        return (*(np.ascontiguousarray(part, np.float32) for part in single), self.second.ravel())

    def score(self, x: Array) -> Array:
        """Log-odds that each block belongs to the article, float64 [blocks], rounded so that no last bit decides."""
        logits = _score(np.asarray(x, np.float32), *self._side_by_side) + self.second_bias.sum()
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
    found = _spans(_gain(scores, size), switch)
    return [(first, last) for first, last in found.tolist()]


@njit(cache=True)
def _spans(gain, switch):
    keep, drop = -np.inf, 0.0
    started = np.zeros(len(gain), np.bool_)  # the best way to keep block i begins a span at i
    kept_before = np.zeros(len(gain), np.bool_)  # the best way to drop block i keeps block i - 1
    for index in range(len(gain)):
        begin = drop - switch
        kept_before[index] = keep > drop
        next_drop = max(keep, drop)
        started[index] = begin >= keep
        keep, drop = max(begin, keep) + gain[index], next_drop
    found = np.empty((len(gain), 2), np.int64)
    at = len(gain)
    keeping, last = keep > drop, len(gain)
    for index in range(len(gain) - 1, -1, -1):
        if keeping:
            if started[index]:
                at -= 1
                found[at, 0], found[at, 1] = index, last
                keeping = False
        elif kept_before[index]:
            keeping, last = True, index
    return found[at:]


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
    x, size = figures(page)
    scores = fitted.score(x)
    if not len(scores):
        return [], scores
    return spans(scores, size, fitted.switch), scores
