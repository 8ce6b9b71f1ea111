"""What a drill showed, counted: per class and in all, each share with its interval. Everything in it is simulated."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from typing import Any

import numpy as np

from ninthsky.guard.drill import rates
from ninthsky.guard.drill.clocked import ClockedDrill
from ninthsky.guard.drill.episodes import SLOW_RATIO, Drill, Outcome
from ninthsky.guard.drill.noise import recorded
from ninthsky.guard.drill.quiet import Quiet, quiet_days
from ninthsky.guard.drill.scenario import Scenario, shipped
from ninthsky.guard.drill.sockets import SocketDrill
from ninthsky.proportion import wilson

QUIET_RANKS = 512
NOISY = (2.0, 0.05)  # of noisy days: factor on the noise, share of hosts with neighbours


def mix() -> Scenario:
    """The drill's own faults, weighed by the table of rates where there is one."""
    path = rates.table()
    return rates.weighed(shipped(), path) if path else shipped()


def run_clocked(
    ranks: int, faults: int, seed: int, scenario: Scenario, days: float, on_told: Callable[[str], None]
) -> dict[str, Any]:
    """Drill and sheet: `faults` strikes, and `days` simulated days without faults, half of them noisy."""
    drill = ClockedDrill(ranks, scenario, seed, on_told)
    drill.run(faults)
    return sheet(drill, quiet_of(ranks, scenario, seed, days))


def run_sockets(
    ranks: int, faults: int, seed: int, scenario: Scenario, minutes: float, days: float, on_told: Callable[[str], None]
) -> dict[str, Any]:
    """The same in real time, over the wire: at most `faults` strikes, none after `minutes`."""
    drill = SocketDrill(ranks, scenario, seed, on_told)
    drill.run(faults, 60.0 * minutes)
    return sheet(drill, quiet_of(ranks, scenario, seed, days)) | drill.figures()


def quiet_of(ranks: int, scenario: Scenario, seed: int, days: float) -> Quiet:
    """Days without faults, half of them noisy, of a fleet of this size or of QUIET_RANKS."""
    size, scale, chance = min(ranks, QUIET_RANKS), scenario.conditions.noise, np.random.default_rng([seed, 1])
    noise = recorded()
    calm = quiet_days(days / 2, size, noise, scale, 0.0, SLOW_RATIO, chance)
    noisy = quiet_days(days / 2, size, noise, scale * NOISY[0], NOISY[1], SLOW_RATIO, chance)
    return Quiet(calm.days + noisy.days, calm.evictions + noisy.evictions, size)


def sheet(drill: Drill, quiet: Quiet) -> dict[str, Any]:
    """Shares of all faults struck: exact + unknown + wrong + missed = 1. Times in seconds from the strike.

    `wrong_evictions_upper_per_30_days`: 95 % upper bound of a Poisson rate over the simulated days without faults.
    """
    outcomes = drill.outcomes
    total = len(outcomes)
    count = {result: sum(o.result == result for o in outcomes) for result in ("exact", "unknown", "wrong", "missed")}
    classes = sorted({outcome.name for outcome in outcomes})
    figures: dict[str, Any] = {
        "simulated": True,
        "ranks": drill.ranks,
        "faults": total,
        **{result: round(hits / max(total, 1), 4) for result, hits in count.items()},
        "exact_ci_low": round(wilson(count["exact"], total)[0], 4),
        "wrong_ci_high": round(wilson(count["wrong"], total)[1], 4),
    }
    for measure in ("exit", "hang", "slow"):
        seconds = [o.seconds for o in outcomes if o.measure == measure and o.seconds is not None and o.result == "exact"]
        figures[f"p99_{measure}_s"] = _quantile(seconds, 0.99)
    upper = round(poisson_upper(quiet.evictions) / quiet.days * 30, 3) if quiet.days else None
    return figures | {
        "evicted_wrongly": sum(o.evicted_wrongly for o in outcomes),
        "controller_core": round(drill.spent / max(drill.simulated, 1e-9), 4),
        "controller_mb": round(drill.memory_mb, 1),
        "whole_process_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "simulated_seconds": round(drill.simulated, 1),
        "quiet_days": round(quiet.days, 2),
        "quiet_ranks": quiet.ranks,
        "quiet_evictions": quiet.evictions,
        "wrong_evictions_upper_per_30_days": upper,
        "classes": {name: _of_class([o for o in outcomes if o.name == name]) for name in classes},
    }


def _of_class(outcomes: list[Outcome]) -> dict[str, Any]:
    total = len(outcomes)
    count = {result: sum(o.result == result for o in outcomes) for result in ("exact", "unknown", "wrong", "missed")}
    seconds = [o.seconds for o in outcomes if o.seconds is not None and o.result == "exact"]
    low, high = wilson(count["exact"], total)
    return {
        "n": total,
        **count,
        "exact_ci": [round(low, 3), round(high, 3)],
        "evicted_wrongly": sum(o.evicted_wrongly for o in outcomes),
        "median_s": _quantile(seconds, 0.5),
        "p99_s": _quantile(seconds, 0.99),
        "not_exact": [outcome.told for outcome in outcomes if outcome.result != "exact"][:5],
    }


def _quantile(seconds: list[float], q: float) -> float | None:
    return round(float(np.quantile(seconds, q, method="higher")), 2) if seconds else None


def poisson_upper(events: int, confidence: float = 0.95) -> float:
    """The rate under which so few events come with probability 1 - `confidence` (one-sided, exact)."""
    low, high = 0.0, events + 10.0 * math.sqrt(events + 1) + 10.0
    for _ in range(100):
        middle = (low + high) / 2
        term = below = math.exp(-middle)
        for number in range(1, events + 1):
            term *= middle / number
            below += term
        low, high = (middle, high) if below > 1 - confidence else (low, middle)
    return high


def as_text(figures: dict[str, Any]) -> str:
    """The sheet for people."""
    lines = [
        f"SIMULATED: {figures['faults']} faults on {figures['ranks']} ranks, {figures['simulated_seconds']:.0f} s of made time",
        f"named exactly {figures['exact']:.3f} (95 %: >= {figures['exact_ci_low']:.3f}), unknown {figures['unknown']:.3f}, "
        f"wrong {figures['wrong']:.3f}, missed {figures['missed']:.3f}; {figures['evicted_wrongly']} evicted wrongly",
        f"{'class':<18}{'n':>5}{'exact':>7}{'unknown':>9}{'wrong':>7}{'missed':>8}{'evicted':>9}{'median s':>10}{'p99 s':>8}",
    ]
    for name, row in figures["classes"].items():
        times = "".join(
            f"{row[key]:>{width}.1f}" if row[key] is not None else "-".rjust(width)
            for key, width in (("median_s", 10), ("p99_s", 8))
        )
        lines.append(
            f"{name:<18}{row['n']:>5}{row['exact']:>7}{row['unknown']:>9}{row['wrong']:>7}{row['missed']:>8}"
            f"{row['evicted_wrongly']:>9}{times}"
        )
    lines.append(
        f"controller: {figures['controller_core']:.3f} of a core per simulated second, {figures['controller_mb']:.0f} MB"
    )
    if figures["quiet_days"]:
        lines.append(
            f"{figures['quiet_days']:.1f} simulated days of {figures['quiet_ranks']} ranks without faults, half of them noisy: "
            f"{figures['quiet_evictions']} evictions, at most "
            f"{figures['wrong_evictions_upper_per_30_days']} per 30 days (95 %)"
        )
    return "\n".join(lines)
