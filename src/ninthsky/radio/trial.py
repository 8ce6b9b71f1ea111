"""Plans held against what then happened: saving and violations of ours, the rivals' and perfect foresight, on the same days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ninthsky.radio.conformal import at_level
from ninthsky.radio.energy import Power, asleep_by_hour, switches
from ninthsky.radio.kernels import Floats
from ninthsky.radio.rolling import days_of
from ninthsky.radio.rules import Rules, Sites, bearable, hourly_maximum, night_window, schedule, stay_on

Masks = NDArray[np.uint32]  # [days x n, sleepers]
RIVAL_FACTOR = 1.2  # what the hourly-maximum rule is usually given
LEVELS_TRIED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
FACTORS_TRIED = (0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.7, 2.0)


@dataclass(frozen=True)
class Outcome:
    """What a plan would have done. Hours whose load nobody knows count nowhere."""

    saving: float  # share of the energy of all carriers on
    violations: float  # share of carrier-sleep hours with the remaining carriers over the load limit
    off_hours: float  # carrier-hours asleep per site and day
    sites_violating: float  # share of sites with a violation on any day
    worst_share: float  # of the violations, the part of the worst 5 % of sites

    def row(self) -> dict[str, float]:
        """As plain numbers."""
        return dict(self.__dict__)


class Trial:
    """Days that plans are held against: site roots [n, hours], the days' numbers, the sites' carriers."""

    def __init__(self, roots: Floats, days: Sequence[int], sites: Sites, rules: Rules) -> None:
        self.roots, self.days, self.rules = roots, days, rules
        self.count, self.sites = len(roots), sites
        truth = days_of(roots, days).reshape(-1, 24)  # days and sites in one row
        self.known = truth >= 0
        self.load = np.where(self.known, truth, 0).astype(np.float32) ** 2
        self.all_sites = sites.times(len(days))
        self.carriers = self.all_sites.carriers
        self.awake = np.concatenate([stay_on(roots, day)[0] for day in days])
        self.power = Power(sleep=rules.sleep_power)
        nobody = np.zeros(self.load.shape, dtype=np.int64)
        self.all_on = float(self.power.site_energy(self.load, self.carriers, nobody)[self.known].sum())

    def plan(self, load: Floats) -> Masks:
        """Masks for a load to reckon with [days, n, 24] or [days x n, 24]."""
        return schedule(load.reshape(-1, 24), self.all_sites, self.awake, self.rules)

    def outcome(self, masks: Masks) -> Outcome:
        """What these masks would have saved and broken."""
        asleep = asleep_by_hour(masks)
        energy = float(self.power.site_energy(self.load, self.carriers, asleep)[self.known].sum())
        energy += self.power.transition * float((switches(masks) * self.known.mean(axis=1)).sum())
        over = self.known & (self.load > bearable(self.rules, self.carriers[:, None] - asleep))
        broken = (asleep * over).sum(axis=1).reshape(-1, self.count).sum(axis=0)
        off = int((asleep * self.known).sum())
        hours = int(self.known.sum())
        worst = np.sort(broken)[::-1][: max(1, self.count // 20)].sum()
        return Outcome(
            saving=1 - energy / self.all_on if self.all_on else 0.0,
            violations=float(broken.sum() / off) if off else 0.0,
            off_hours=24 * off / hours if hours else 0.0,
            sites_violating=float((broken > 0).mean()),
            worst_share=float(worst / broken.sum()) if broken.any() else 0.0,
        )

    # -- the rules ------------------------------------------------------------------------------------------------------

    def quantile_plan(self, quantiles: Floats, level: float) -> Outcome:
        """Ours: load quantiles [days, n, 24, levels] at a level."""
        return self.outcome(self.plan(at_level(quantiles, level)))

    @cached_property
    def maxima(self) -> Floats:
        """The load of the hourly-maximum rule [days x n, 24]."""
        return np.concatenate([hourly_maximum(self.roots, day) for day in self.days])

    def maximum_plan(self, factor: float) -> Outcome:
        """The hourly maximum of the past times a factor."""
        return self.outcome(self.plan(self.maxima * np.float32(factor)))

    def night_plan(self) -> Outcome:
        """The whitelisted night window."""
        return self.outcome(np.concatenate([night_window(self.roots, day, self.sites, self.rules) for day in self.days]))

    def oracle(self) -> Outcome:
        """Perfect foresight under the same limits. An hour whose load nobody knows does not end a sleep; it counts nowhere."""
        return self.outcome(self.plan(self.load))

    def matched_maximum(self, violations: float, rounds: int = 12) -> tuple[float, Outcome]:
        """The hourly-maximum rule with the smallest factor, found with hindsight, that violates no more than given."""
        low, high = 0.3, 6.0
        factor, best = high, self.maximum_plan(high)
        for _ in range(rounds):
            middle = (low * high) ** 0.5
            outcome = self.maximum_plan(middle)
            if outcome.violations <= violations:
                high, factor, best = middle, middle, outcome
            else:
                low = middle
        return factor, best


def compare(trial: Trial, quantiles: Floats) -> dict[str, Any]:
    """All plans side by side as plain numbers, with the frontiers of ours over levels and of the rival over factors."""
    ours = trial.quantile_plan(quantiles, trial.rules.level)
    factor, matched = trial.matched_maximum(ours.violations)
    oracle = trial.oracle()
    return {
        "days": len(trial.days),
        "sites": trial.count,
        "plan": ours.row(),
        "hourly_maximum": {"factor": RIVAL_FACTOR, **trial.maximum_plan(RIVAL_FACTOR).row()},
        "hourly_maximum_matched": {"factor": factor, **matched.row()},
        "night_window": trial.night_plan().row(),
        "oracle": oracle.row(),
        "saving_over_oracle": ours.saving / oracle.saving if oracle.saving else 0.0,
        "over_hourly_maximum": ours.saving - matched.saving,
        "frontier": [{"level": level, **trial.quantile_plan(quantiles, level).row()} for level in LEVELS_TRIED],
        "rival_frontier": [{"factor": factor, **trial.maximum_plan(factor).row()} for factor in FACTORS_TRIED],
    }


def level_within(trial: Trial, quantiles: Floats, most: float) -> float:
    """The lowest level of those tried whose plan, on these (earlier) days, stays within `most` violations."""
    for level in LEVELS_TRIED:
        if trial.quantile_plan(quantiles, level).violations <= most:
            return level
    return LEVELS_TRIED[-1]


def verdict(figures: dict[str, Any]) -> str:
    """Who wins at equal violations, in a sentence."""
    gap = 100 * figures["over_hourly_maximum"]
    rival = figures["hourly_maximum_matched"]
    at = (
        f"at {100 * figures['plan']['violations']:.2f} % violations, "
        f"the rival's factor ({rival['factor']:.2f}) chosen with hindsight"
    )
    if gap >= 0.05:
        return f"The plan saves {gap:.1f} points more than the hourly-maximum rule {at}."
    if gap <= -0.05:
        return f"The hourly-maximum rule saves {-gap:.1f} points MORE than the plan {at}."
    return f"The plan and the hourly-maximum rule save the same {at}."
