"""One rank's own work takes longer than its peers', step after step. Waiting does not count: in the victims it points away.

Two clocks, because each is blind to something: processor time does not see a process that is kept from running, wall time on
busy cores hides extra work in everybody's noise (1.2 x extra work read 1.08 on the wall and 1.18 in processor time).
"""

from __future__ import annotations

import numpy as np

from ninthsky.evidence import Fact
from ninthsky.guard.fleet import STEPS, Floats, Window
from ninthsky.guard.judges.verdict import Limits, Verdict

PERSISTENCE = 0.75  # share of the steps in which the rank itself must exceed the threshold
WALL_PATIENCE = 2  # on the wall clock alone it must last so many times longer: a neighbour's noise comes and goes
FLOOR_MS = 1.0  # medians under this say nothing


def judge_slow(window: Window, limits: Limits) -> list[Verdict]:
    """At most one verdict: the slowest rank, if it stands out on a clock, persistently, and from the second slowest too."""
    if window.ranks < 3:
        return []  # of two, nobody can tell which one is normal
    spoke: dict[str, tuple[int, tuple[Fact, ...]]] = {}
    for clock, times, steps in (
        ("processor", window.local_cpu, limits.slow_steps),
        ("wall", window.local_wall, min(limits.slow_steps * WALL_PATIENCE, STEPS)),
    ):
        found = outlier(times[:, -steps:], limits.slow_ratio, clock)
        if found is not None:
            spoke[clock] = found
    if not spoke:
        return []
    if "processor" in spoke and "wall" in spoke and spoke["processor"][0] != spoke["wall"][0]:
        return []  # the clocks contradict each other
    rank, facts = spoke.get("processor") or spoke["wall"]
    if "processor" in spoke:
        # Extra processor time shows on the wall sooner or later; a short window of it is enough.
        text = "its own work takes longer on the processor clock" + (" and on the wall clock" if "wall" in spoke else "")
        ruled_out: tuple[str, ...] = ("a neighbour that takes its processor: the rank used more processor time itself",)
        confidence = 0.95 if "wall" in spoke else 0.85
        facts += spoke["wall"][1] if "wall" in spoke else ()
    else:
        text = "its own work takes longer on the wall clock only: it is kept from running"
        ruled_out = ("more work or a slower core: its processor time is as its peers'",)
        confidence = 0.75
    waiting = window.record["communication"]
    if window.known.all() and waiting.max() > 0:
        facts += (
            Fact(
                "its time in collectives",
                float(waiting[rank]),
                float(np.median(waiting)),
                "ms",
                "a slow rank waits less than its peers",
            ),
        )
    return [
        Verdict(
            "slow", (rank,), text, facts, (*ruled_out, "noise: it lasted, and the second slowest is well apart"), confidence
        )
    ]


def outlier(times: Floats, ratio: float, clock: str) -> tuple[int, tuple[Fact, ...]] | None:
    """The rank that stands out in `times` [ranks, steps] (milliseconds, NaN where unseen), with the figures; or None."""
    if np.isnan(times).any():
        return None
    medians = np.median(times, axis=1)
    peers = float(np.median(medians))
    order = np.argsort(medians)
    slowest, second = int(order[-1]), int(order[-2])
    if peers < FLOOR_MS:
        return None
    margin = 1 + (ratio - 1) / 2
    share = float((times[slowest] > ratio * np.median(times, axis=0)).mean())
    if medians[slowest] < ratio * peers or medians[slowest] < margin * medians[second] or share < PERSISTENCE:
        return None
    source = f"{clock} clock, median of {times.shape[1]} steps"
    return slowest, (
        Fact("local time against the peers' median", float(medians[slowest] / peers), ratio, "x", source),
        Fact("local time against the second slowest", float(medians[slowest] / medians[second]), margin, "x", source),
        Fact("share of steps over the threshold", share, PERSISTENCE, "", source),
    )
