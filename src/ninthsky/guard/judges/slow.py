"""One rank's own work takes longer than its peers', step after step. Waiting does not count: in the victims it points away.

Two clocks, because each is blind to something: processor time does not see a process that is kept from running, wall time on
busy cores hides extra work in everybody's noise (1.2 x extra work read 1.08 on the wall and 1.18 in processor time). But extra
work must show on the wall at least a little: where only the processor clock differs, the peers were kept from running.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ninthsky.evidence import Fact
from ninthsky.guard.fleet import STEPS, Floats, Window
from ninthsky.guard.judges.hang import SETTLING_STEPS
from ninthsky.guard.judges.verdict import Limits, Verdict

PERSISTENCE = 0.75  # share of the steps in which the rank itself must exceed the threshold
WALL_PATIENCE = 2  # on the wall clock alone it must last so many times longer: a neighbour's noise comes and goes
ECHO = 0.25  # share of the ratio's excess over 1 that the wall must show for extra processor time
FLOOR_MS = 1.0  # medians under this say nothing


class Reading(NamedTuple):
    """One clock over some steps: the slowest rank, its median against its peers' and against the second slowest."""

    clock: str
    steps: int
    rank: int
    ratio: float
    margin: float
    share: float  # of steps in which it exceeded the threshold

    def stands_out(self, threshold: float) -> bool:
        return self.ratio >= threshold and self.margin >= _apart(threshold) and self.share >= PERSISTENCE

    def facts(self, threshold: float) -> tuple[Fact, ...]:
        source = f"{self.clock} clock, median of {self.steps} steps"
        return (
            Fact("local time against the peers' median", self.ratio, threshold, "x", source),
            Fact("local time against the second slowest", self.margin, _apart(threshold), "x", source),
            Fact("share of steps over the threshold", self.share, PERSISTENCE, "", source),
        )


def judge_slow(window: Window, limits: Limits) -> list[Verdict]:
    """At most one verdict: the slowest rank, if it stands out on a clock, persistently, and from the second slowest too."""
    if window.ranks < 3 or window.steps_seen < limits.slow_steps + SETTLING_STEPS:
        return []  # of two, nobody can tell which one is normal
    threshold = limits.slow_ratio
    processor = read_clock("processor", window.local_cpu[:, -limits.slow_steps :], threshold)
    wall = read_clock("wall", window.local_wall[:, -limits.slow_steps :], threshold)
    if processor is not None and processor.stands_out(threshold):
        if wall is None or wall.rank != processor.rank or wall.ratio < 1 + ECHO * (threshold - 1):
            return []  # its peers used less processor time because they were kept from running
        both = wall.stands_out(threshold)
        text = "its own work takes longer on the processor clock" + (" and on the wall clock" if both else "")
        ruled_out = "a neighbour that takes its processor: the rank itself used more processor time"
        facts = processor.facts(threshold) + (
            wall.facts(threshold) if both else (Fact("wall clock against the peers' median", wall.ratio, unit="x"),)
        )
        return [_verdict(window, processor.rank, text, facts, ruled_out, 0.95 if both else 0.85)]
    steps = min(limits.slow_steps * WALL_PATIENCE, STEPS)
    longer = read_clock("wall", window.local_wall[:, -steps:], threshold)
    if longer is None or not longer.stands_out(threshold):
        return []
    text = "its own work takes longer on the wall clock only: it is kept from running"
    facts = longer.facts(threshold)
    if processor is not None:
        cpu = np.median(window.local_cpu[:, -limits.slow_steps :], axis=1)
        facts += (
            Fact("its processor time against the peers' median", float(cpu[longer.rank] / np.median(cpu)), threshold, "x"),
        )
    return [_verdict(window, longer.rank, text, facts, "more work or a slower core: its processor time is as its peers'", 0.75)]


def read_clock(clock: str, times: Floats, threshold: float) -> Reading | None:
    """What `times` [ranks, steps] (milliseconds) say; None while steps are missing (NaN) or too short to tell."""
    if np.isnan(times).any():
        return None
    medians = np.median(times, axis=1)
    peers = float(np.median(medians))
    if peers < FLOOR_MS:
        return None
    order = np.argsort(medians)
    slowest, second = int(order[-1]), int(order[-2])
    share = float((times[slowest] > threshold * np.median(times, axis=0)).mean())
    margin = float(medians[slowest] / medians[second])
    return Reading(clock, times.shape[1], slowest, float(medians[slowest] / peers), margin, share)


def _apart(threshold: float) -> float:
    """How far the slowest must be from the second slowest: half the way to the threshold."""
    return 1 + (threshold - 1) / 2


def _verdict(window: Window, rank: int, text: str, facts: tuple[Fact, ...], ruled_out: str, confidence: float) -> Verdict:
    waiting = window.record["communication"]
    if window.known.all() and waiting.max() > 0:
        typical = float(np.median(waiting))
        facts += (
            Fact("its time in collectives", float(waiting[rank]), typical, "ms", "a slow rank waits less than its peers"),
        )
    noise = f"noise: it exceeded the threshold in at least {PERSISTENCE:.0%} of the steps, well apart from the second slowest"
    return Verdict("slow", (rank,), text, facts, (ruled_out, noise), confidence)
