"""What a plan may do, ours and its rivals': the same limits for all, only the load they reckon with differs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ninthsky.config.schema import Radio
from ninthsky.radio import kernels
from ninthsky.radio.fast import LEVELS
from ninthsky.radio.kernels import Floats
from ninthsky.radio.store import Counters

RECENT_DAYS = 7
KNOWN_SHARE = 0.5
LEAST_DAYS = 4  # of history, under which errors cannot be ranked


@dataclass(frozen=True)
class Rules:
    """Limits of every plan. `load_limit` is the highest load of the carriers that stay on."""

    epsilon: float = 0.05
    load_limit: float = 0.6
    min_off_hours: int = 2
    max_sleeps: int = 3
    sleep_power: float = 0.10

    @classmethod
    def of(cls, radio: Radio) -> Rules:
        """From a `[radio]` block."""
        return cls(radio.epsilon, radio.load_limit, radio.min_off_hours, radio.max_sleeps, radio.sleep_power)

    @property
    def level(self) -> float:
        """The quantile that a plan reckons with: 1 - epsilon, within the levels that are forecast."""
        return float(np.clip(1 - self.epsilon, LEVELS[0], LEVELS[-1]))

    def plain(self) -> dict[str, Any]:
        """As plain numbers."""
        return {**asdict(self), "level": self.level}


@dataclass(frozen=True)
class Sites:
    """Carriers of each site [n], all of equal capacity (assumed), and how many of them may sleep: never the coverage cells."""

    carriers: NDArray[np.int64]
    may_sleep: NDArray[np.int64]

    @classmethod
    def of(cls, counters: Counters) -> Sites:
        """One carrier per cell."""
        starts = counters.starts
        covers = np.add.reduceat(counters.coverage.astype(np.int64), starts[:-1])
        carriers = np.diff(starts)
        return cls(carriers, np.minimum(carriers - covers, carriers - 1))

    @classmethod
    def twins(cls, count: int) -> Sites:
        """Every site two equal carriers with the observed load each, one of which may sleep: for series of single cells."""
        return cls(np.full(count, 2), np.ones(count, np.int64))

    def times(self, days: int) -> Sites:
        """The same sites on several days, in one row."""
        return Sites(np.tile(self.carriers, days), np.tile(self.may_sleep, days))


def schedule(load: Floats, sites: Sites, awake: NDArray[np.bool_], rules: Rules) -> NDArray[np.uint32]:
    """Sleeping hours [n, sleepers] as masks, for a site load [n, 24] in carriers that each hour has to bear.

    Sleeper 0 goes first. An unknown load (NaN) keeps its hour on; `awake` [n] keeps the whole site on.
    """
    asked = np.where(np.isfinite(load), load, -1).astype(np.float32)
    return kernels.sleeping(
        asked, sites.carriers, sites.may_sleep, awake, rules.load_limit, rules.min_off_hours, rules.max_sleeps
    )


def bearable(rules: Rules, on: NDArray[np.int64]) -> Floats:
    """The most load that this many carriers may bear, to the same bit as the kernel that plans."""
    return (rules.load_limit * on).astype(np.float32)


def stay_on(roots: Floats, day: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Sites that must stay on because their data do not bear a plan [n], and why, an index into STAY_ON_REASONS.

    Fails open: a plan needs some hour of yesterday, half of the last week's hours, and four days of history.
    """
    first = max(0, day - RECENT_DAYS)
    known = roots[:, first * 24 : day * 24] >= 0
    reason = np.zeros(len(roots), dtype=np.int64)
    reason[known.mean(axis=1) < KNOWN_SHARE] = 2
    reason[~known[:, -24:].any(axis=1)] = 1
    if day < LEAST_DAYS:
        reason[:] = 3
    return reason > 0, reason


STAY_ON_REASONS = (
    "",
    "no hour of yesterday is known",
    "under half of the last week's hours are known",
    "under four days of history",
)


def night_window(roots: Floats, day: int, sites: Sites, rules: Rules) -> NDArray[np.uint32]:
    """The industry's rule: all capacity carriers sleep from 00 to 06 on a whitelist.

    Listed is a site whose mean load in the window was at most half of what one carrier may bear.
    """
    past = roots[:, max(0, day - 28) * 24 : day * 24].reshape(len(roots), -1, 24)[:, :, :6]
    known = past >= 0
    mean = (np.where(known, past, 0) ** 2).sum(axis=(1, 2)) / np.maximum(known.sum(axis=(1, 2)), 1)
    listed = known.any(axis=(1, 2)) & (mean <= 0.5 * rules.load_limit)
    load = np.full((len(roots), 24), np.inf, np.float32)
    load[:, :6] = np.where(listed, 0, np.inf)[:, None]
    return schedule(load, sites, stay_on(roots, day)[0], rules)


def hourly_maximum(roots: Floats, day: int) -> Floats:
    """The rival to beat: the highest load of each hour of the day in the last 28 days [n, 24]; NaN where none is known."""
    past = roots[:, max(0, day - 28) * 24 : day * 24].reshape(len(roots), -1, 24)
    highest = past.max(axis=1)
    return np.where(highest >= 0, highest**2, np.nan).astype(np.float32)
