"""What faults cost, and how much of a job's time was training that counted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ninthsky.guard.faults import Fault

STANDS = frozenset({"exit", "frozen", "stuck", "host", "mismatch", "unknown"})  # causes for which every rank waits


@dataclass(frozen=True)
class Cost:
    """Of one fault. `card_hours`: all cards, from its beginning until all trained again, and for the steps done twice."""

    steps: int
    seconds: float
    card_hours: float


def step_seconds(steps: Sequence[tuple[int, float]]) -> float:
    """Median of the newest 64 steps; 0 before the first."""
    return statistics.median(seconds for _, seconds in list(steps)[-64:]) if steps else 0.0


def stood(fault: Fault, newest: int, now: float) -> float:
    """Seconds for which it kept the job from training, so far. `newest`: step that the job is in now.

    A fault that is only told of holds the job up where all wait for its rank, and until steps go on.
    """
    began = fault.timeline.began
    if began is None:
        return 0.0
    if fault.timeline.trained is not None:
        return max(0.0, fault.timeline.trained - began)
    waits = fault.state in {"open", "stopped"} or (
        fault.state == "advised" and fault.cause in STANDS and newest <= fault.step + 1
    )
    return max(0.0, now - began) if waits else 0.0


def cost_of(fault: Fault, cards: int, each: float, newest: int, now: float) -> Cost:
    """`cards`: of the whole job, all wait for one. `each`: seconds of a step."""
    steps = fault.steps_redone + fault.committed_steps_lost
    seconds = stood(fault, newest, now) + steps * each
    return Cost(steps, round(seconds, 3), round(cards * seconds / 3600, 4))


def goodput(kept: int, each: float, seconds: float) -> float:
    """Share of a job's time in which steps were trained that counted, 0 to 1: steps kept, times a step's median time, of all
    `seconds` since its first event. Start, faults, waiting and steps done twice are what is missing to 1. That a slow card
    makes every step longer is not seen in it."""
    return min(1.0, max(0, kept) * each / seconds) if seconds > 0 else 0.0
