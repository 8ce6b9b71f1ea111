"""What is done about a verdict: the lowest rung that serves, within limits; above the last rung a person is paged.

redo the step -> redo it with the data moved on by one rank -> skip the step (only where another card found the same)
-> bear with a slow card while no spare is ready -> rebuild the groups with the same cards
-> regroup with a prepared spare -> wait for a restarted process -> stop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from ninthsky.guard.judges import Verdict
from ninthsky.guard.judges.nonfinite import Finding, What
from ninthsky.guard.spec import Watch

Rung = Literal["redo", "rotate", "skip", "bear", "rebuild", "regroup", "stop"]
REBUILDS = 3  # without a step in between
GIVEN_UP = frozenset(
    {3, 4, 5}
)  # statuses of a rank that was fenced, lost its agent, or could not be freed: no error of the program


@dataclass
class History:
    """What was done before; the journal keeps it."""

    evictions: list[float] = field(default_factory=list)  # Unix seconds
    card_failures: Counter[str] = field(default_factory=Counter)  # "host/card"
    rebuilds: int = 0  # since the last committed step
    program_errors: Counter[int] = field(default_factory=Counter)  # step -> exits with an error status there

    def evictions_last_hour(self, now: float) -> int:
        return sum(now - at < 3600 for at in self.evictions)


@dataclass(frozen=True)
class Remedy:
    """One rung. `evict`: ranks whose cards are replaced. `text` says what is done, and why no lower rung serves."""

    rung: Rung
    text: str
    evict: tuple[int, ...] = ()


def climb(verdict: Verdict, history: History, watch: Watch, step: int, now: float, status: int, spares: int) -> Remedy:
    """The rung for everything but bad gradients. `status`: exit status where a process ended; `spares`: ready ones."""
    if verdict.cause == "mismatch":
        return Remedy("stop", "stopped: ranks of one program disagree about the next collective, which no other card mends")
    if is_program_error(status) and history.program_errors[step] >= 1:
        return Remedy("stop", f"stopped: the program ended with an error at step {step} on another card too")
    if not verdict.ranks:
        if history.rebuilds >= REBUILDS:
            return Remedy("stop", f"stopped: {history.rebuilds} rebuilds without a step in between")
        return Remedy("rebuild", "groups rebuilt with the same cards: nobody is blamed")
    if verdict.cause == "slow" and spares < len(verdict.ranks):
        return Remedy("bear", "kept on: no spare is ready, and a slow card is better than none")
    evictions = history.evictions_last_hour(now) + len(verdict.ranks)
    if evictions > watch.max_evictions_per_hour and verdict.cause != "host":
        return Remedy("stop", f"stopped: {evictions} evictions within an hour, at most {watch.max_evictions_per_hour} allowed")
    return Remedy("regroup", "regrouped, another card takes the place with the state from its replica", verdict.ranks)


def is_program_error(status: int) -> bool:
    """Whether an exit status speaks of the training program itself: another card will not mend it."""
    return status > 0 and status not in GIVEN_UP


def climb_nonfinite(finding: Finding, votes: int, rank: int, watch: Watch, what: What = "nonfinite") -> Remedy:
    """The rung after `votes` attempts of a step with bad gradients. Finite ones that only stand out are left to the training's
    own rules, which may apply them."""
    if finding in {"once", "again"}:
        if votes < watch.max_redo:
            return Remedy("redo", "step redone")
        return Remedy("rotate", "step redone with the data moved on by one rank, not applied")
    if finding == "card":
        return Remedy("regroup", f"regrouped, another card takes the place of rank {rank}", (rank,))
    if finding == "data" and what == "outlier":
        return Remedy("skip", "samples told: another card found the same in them; [train.control] decides on the step")
    if finding == "data":
        return Remedy("skip", "step skipped: another card found the same in these samples")
    if finding == "gone" and votes <= watch.max_redo + 1:
        return Remedy("redo", "step redone as it was")
    if finding == "everywhere" and votes < watch.max_redo:
        return Remedy("redo", "step redone")
    return Remedy("stop", "stopped: redoing the step does not help")
