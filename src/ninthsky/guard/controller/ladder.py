"""What is done about a verdict: the lowest rung that serves, within limits; above the last rung a person is paged.

redo the step -> redo it with the data moved on by one rank -> skip the step (only where another card found the same)
-> bear with a slow card while no spare is ready -> rebuild the groups with the same cards
-> regroup with a prepared spare -> wait for a restarted process -> go on with fewer ranks
-> replace all processes -> roll back to a checkpoint -> stop. Who is to blame decides where it begins; what the playbook
does not allow without a person is not done.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from ninthsky.guard.controller.known import Known
from ninthsky.guard.judges import Verdict
from ninthsky.guard.judges.nonfinite import Finding, What
from ninthsky.guard.spec import Watch

Rung = Literal[
    "redo", "rotate", "restore", "apply", "skip", "bear", "rebuild", "regroup", "shrink", "restart", "rollback", "stop"
]
REBUILDS = 2  # without a step in between; then every process is replaced
GIVEN_UP = frozenset(
    {3, 4, 5}
)  # statuses of a rank that was fenced, lost its agent, or could not be freed: no error of the program


@dataclass
class History:
    """What was done before; the journal keeps it."""

    evictions: list[float] = field(default_factory=list)  # Unix seconds
    card_failures: Counter[str] = field(default_factory=Counter)  # "host/card"
    rebuilds: int = 0  # and restarts of all ranks, since the last committed step
    restarts: list[float] = field(default_factory=list)  # of all ranks, Unix seconds
    program_errors: Counter[int] = field(default_factory=Counter)  # step -> exits with an error status there

    def evictions_last_hour(self, now: float) -> int:
        return sum(now - at < 3600 for at in self.evictions)

    def restarts_last_hour(self, now: float) -> int:
        return sum(now - at < 3600 for at in self.restarts)


@dataclass(frozen=True)
class Remedy:
    """One rung. `evict`: ranks whose cards are replaced. `text` says what is done, and why no lower rung serves.

    `blamed`: the failure counts against these cards. `verified`: the newest step whose state is trusted; later ones are given
    up.
    """

    rung: Rung
    text: str
    evict: tuple[int, ...] = ()
    blamed: bool = True
    verified: int | None = None


@dataclass(frozen=True)
class Means:
    """What there is to act with. `room`: the most ranks that the cards left can take, once the blamed ones are out."""

    ranks: int  # of the job now
    room: int
    spares: int  # ready processes without a rank
    saved: int = -1  # finished steps of the newest checkpoint, -1 without one


def climb(
    verdict: Verdict,
    history: History,
    watch: Watch,
    step: int,
    now: float,
    status: int,
    means: Means,
    known: Known | None = None,
) -> Remedy:
    """The rung for everything but bad gradients. `status`: exit status where a process ended; `known`: what its log said."""
    if verdict.cause == "mismatch":
        return Remedy("stop", "stopped: ranks of one program disagree about the next collective, which no other card mends")
    if known is not None and not known.ladder:
        return Remedy("stop", f"stopped, nothing is started again: {known.title}, which no other card mends. {known.person}")
    if is_program_error(status) and history.program_errors[step] >= 1:
        return Remedy("stop", f"stopped: the program ended with an error at step {step} on another card too")
    if verdict.cause == "data" and not verdict.ranks:
        return Remedy(
            "bear", "kept on, nobody is moved: look at the storage, its servers and mounts; the job goes on by itself"
        )
    if not verdict.ranks:
        return _for_nobody(history, watch, now, means)
    if verdict.cause == "slow" and means.spares < len(verdict.ranks):
        return Remedy("bear", "kept on: no spare is ready, and a slow card is better than none")
    evictions = history.evictions_last_hour(now) + len(verdict.ranks)
    if evictions > watch.max_evictions_per_hour and verdict.cause != "host":
        return Remedy("stop", f"stopped: {evictions} evictions within an hour, at most {watch.max_evictions_per_hour} allowed")
    if means.room < means.ranks:
        return _smaller(verdict, means, known)
    gone = "the process is gone" if status else "its groups wait for it"
    text = f"regrouped, another card takes the place with the state from its replica: {gone}, so redoing the step cannot help"
    blamed = verdict.cause != "data" and (known is None or "regroup" in known.ladder)
    return Remedy("regroup", text, verdict.ranks, blamed=blamed)


def _for_nobody(history: History, watch: Watch, now: float, means: Means) -> Remedy:
    """Nobody is blamed: the same cards again, first with the same processes, then with new ones, then with older state."""
    tried = history.rebuilds
    if tried < REBUILDS:
        return Remedy("rebuild", "groups rebuilt with the same cards: nobody is blamed")
    why = f"{tried} repairs without a step in between"
    restarts = history.restarts_last_hour(now)
    if restarts >= watch.max_restarts_per_hour:
        return Remedy("stop", f"stopped: {why}, and {restarts} restarts of all ranks within an hour")
    if tried == REBUILDS:
        return Remedy("restart", f"every rank's process replaced, the state from the agents' copies: {why}")
    if tried == REBUILDS + 1 and means.saved >= 0:
        text = f"every rank's process replaced and rolled back to the newest checkpoint: {why}, the last with new processes"
        return Remedy("rollback", text, verified=means.saved - 1)
    return Remedy("stop", f"stopped: {why}")


def _smaller(verdict: Verdict, means: Means, known: Known | None) -> Remedy:
    if not means.room:
        return Remedy("stop", f"stopped: too few cards are left for {means.ranks} ranks, and for any fewer that the job allows")
    if known is not None and "shrink" not in known.ladder:
        return Remedy("stop", f"stopped: no card is left for {means.ranks} ranks, and {known.title} allows no fewer")
    text = f"going on with {means.room} ranks of {means.ranks}, the state from all ranks' copies: too few cards are left"
    return Remedy("shrink", text, verdict.ranks)


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
    if what == "range" and finding in {"data", "gone", "everywhere"}:
        return Remedy("apply", "applied as it is: no card gives such gradients with other samples too")
    if finding == "data" and what == "outlier":
        return Remedy("skip", "samples told: another card found the same in them; [train.control] decides on the step")
    if finding == "data":
        return Remedy("skip", "step skipped: another card found the same in these samples")
    if finding == "gone" and votes <= watch.max_redo + 1:
        return Remedy("redo", "step redone as it was")
    if finding == "everywhere" and votes < watch.max_redo:
        return Remedy("redo", "step redone")
    return Remedy("stop", "stopped: redoing the step does not help")
