"""What faults cost, and how much of a job's time was training that counted."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ninthsky.guard.faults import Fault


@dataclass(frozen=True)
class Cost:
    """Of one fault. `card_hours`: all cards, from its beginning until all trained again, and for the steps done twice."""

    steps: int
    seconds: float
    card_hours: float


def step_seconds(steps: Sequence[tuple[int, float]]) -> float:
    """Median of the newest 64 steps; 0 before the first."""
    return statistics.median(seconds for _, seconds in list(steps)[-64:]) if steps else 0.0


def span(fault: Fault, now: float) -> tuple[float, float] | None:
    """From when until when it kept the job from training; None where the ranks went on (a slow card that is borne)."""
    began = fault.timeline.began
    if began is None:
        return None
    if fault.timeline.trained is not None:
        return began, max(fault.timeline.trained, began)
    return (began, max(now, began)) if fault.state in {"open", "stopped"} else None


def cost_of(fault: Fault, cards: int, each: float, now: float) -> Cost:
    """`cards`: of the whole job, all wait for one. `each`: seconds of a step."""
    stood = span(fault, now)
    steps = fault.steps_redone + fault.committed_steps_lost
    seconds = (stood[1] - stood[0] if stood else 0.0) + steps * each
    return Cost(steps, round(seconds, 3), round(cards * seconds / 3600, 4))


def goodput(faults: Iterable[Fault], began: float, joined: float | None, each: float, now: float) -> float:
    """Share of the time since the job began in which steps were trained that counted, 0 to 1.

    Lost are: the time until all ranks had joined for the first time, each fault from its beginning until all trained again (two
    at once count once), and the steps done twice or lost. That a borne slow card makes steps longer is not counted.
    """
    if now <= began:
        return 0.0
    spans, twice = [(began, min(joined if joined is not None else now, now))], 0
    for fault in faults:
        twice += fault.steps_redone + fault.committed_steps_lost
        stood = span(fault, now)
        if stood is not None:
            spans.append((max(stood[0], began), min(stood[1], now)))
    lost, reached = 0.0, began
    for start, end in sorted(spans):
        lost += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return max(0.0, 1.0 - (lost + twice * each) / (now - began))
