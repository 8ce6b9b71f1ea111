"""One job as the controller has it in mind: its stage, its generation, who is there, what was told and what is kept.

It knows no sockets: commands go out through `send`, events through `tell`; times come from `clock` (monotonic) and `wall`
(Unix seconds). What must survive the controller is in the journal, and is recalled from there. Stages:

    gather   processes start; until all are ready
    recover  the controller was restarted; until every host has told what it has
    collect  a new generation was declared; until every host has sent its inventory
    wait     not enough prepared spares; until a restarted process is ready
    form     places are given out; until every rank joined
    run      training
    done, failed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from ninthsky.guard import protocol as p
from ninthsky.guard.controller.fleet import Fleet
from ninthsky.guard.controller.journal import JOURNAL, Journal, recall
from ninthsky.guard.controller.roster import Proc, Roster
from ninthsky.guard.controller.sightings import Sightings
from ninthsky.guard.controller.suspects import Suspects
from ninthsky.guard.faults import FaultBook
from ninthsky.guard.probe import messages as m
from ninthsky.guard.spec import JobSpec

Stage = Literal["gather", "recover", "collect", "wait", "form", "run", "done", "failed"]

TOLD_EVERY = 1.0  # seconds between two events about committed steps


class JobState:
    """Shared by the conductor, its regroups and its remedies; each changes the part that it is about."""

    def __init__(
        self,
        spec: JobSpec,
        send: Callable[[str, p.Command], None],
        event: Callable[..., None],
        clock: Callable[[], float],
        wall: Callable[[], float],
        term: int = 0,
    ) -> None:
        self.spec, self.watch = spec, spec.watch
        self.send, self.tell, self.clock, self.wall = send, event, clock, wall
        self.journal = Journal(Path(spec.folder) / JOURNAL, term=term)
        self.book = FaultBook(Path(spec.folder) / "faults", spec.injected)
        self.fleet = Fleet(spec.world)
        self.roster = Roster(spec)
        self.sightings = Sightings()
        memory = recall(self.journal.entries)
        self.generation, self.reason = memory.generation, memory.reason
        self.resume_step, self.committed = memory.resume_step, memory.committed
        self.results, self.history = memory.results, memory.history
        self.roster.lost, self.roster.kept_out = memory.lost, memory.kept_out
        self.roster.suspected = memory.suspected - memory.kept_out
        self.suspects = Suspects(self)
        self.worlds, self.verified, self.saved = memory.worlds, memory.verified, memory.saved
        self.world = len(memory.places) or spec.world  # ranks of this generation
        self.broken: dict[int, tuple[float, str]] = {}  # rank -> when a collective failed in this generation, its error
        self.was_whole = memory.joined == memory.generation
        self.stage: Stage = "gather"
        self.since = clock()
        if memory.ended is not None:
            self.stage = "done" if memory.ended else "failed"
        elif memory.generation:
            self.stage = "recover"
            self.roster.places = [self.roster.process(*row) for row in memory.places]
        self._commit_told = 0.0

    @property
    def over(self) -> bool:
        """Whether the job has ended, well or not."""
        return self.stage in {"done", "failed"}

    @property
    def waited(self) -> float:
        """Seconds in this stage."""
        return self.clock() - self.since

    def enter(self, stage: Stage) -> None:
        self.stage, self.since = stage, self.clock()

    def to_ranks(self, procs: Iterable[Proc], message: m.ToRank) -> None:
        """To these processes: one message for each host."""
        places: dict[str, list[tuple[int, int]]] = {}
        for proc in procs:
            places.setdefault(proc.host, []).append((proc.slot, proc.pid))
        for host, of_host in places.items():
            self.send(host, p.ToSlots(of_host, message))

    def to_all_ranks(self, message: m.ToRank) -> None:
        """To whoever holds a rank: one message for each host."""
        for host in dict.fromkeys(proc.host for proc in self.roster.places):
            self.send(host, p.ToAll(message))

    def commit(self, step: int) -> None:
        """Every rank has finished the step, and its state is held twice."""
        if step <= self.committed:
            return
        self.committed = step
        self.journal.write("commit", step=step)
        if self.clock() - self._commit_told >= TOLD_EVERY:
            self._commit_told = self.clock()
            self.tell("commit", step=step, generation=self.generation)

    def lower_commit(self, step: int) -> None:
        """What was committed after the step was given up: it is done again."""
        if step < self.committed:
            self.journal.write("rollback", step=step, committed=self.committed)
            self.tell("rollback", step=step, steps_lost=self.committed - step)
            self.committed = step

    def permit(self, step: int) -> bool:
        """Whether a checkpoint may become visible now."""
        allowed = self.stage == "run"
        if allowed and step > self.saved:
            self.saved = step
            self.journal.write("saved", step=step)
        return allowed

    def lose(self, host: str) -> None:
        """The host counts no more; should it come back, it is refused."""
        self.journal.write("lost", host=host, generation=self.generation + 1)
        self.roster.lose(host)

    def keep_out(self, card: str, reason: str) -> None:
        """Nothing is started on the card again."""
        if card in self.roster.kept_out:
            return
        self.roster.kept_out.add(card)
        self.journal.write("kept_out", card=card, reason=reason)
        self.tell("card.kept_out", card=card, reason=reason)
        host, slot = card.split("/")
        self.send(host, p.KeepOut(int(slot), reason))

    def finish(self) -> None:
        """Every rank has said that it is through."""
        self.stage = "done"
        self.journal.write("done", ok=True)
        self.tell("job.done", generation=self.generation, faults=len(self.book.faults))
        self._dissolve("the job is done")

    def fail(self, reason: str) -> None:
        """The job ends here; once."""
        if self.over:
            return
        self.stage, self.reason = "failed", reason
        self.journal.write("done", ok=False, reason=reason)
        self.tell("job.failed", reason=reason)
        self._dissolve(reason)

    def _dissolve(self, reason: str) -> None:
        self.to_ranks(self.roster.processes.values(), m.Stop())
        for host in self.roster.live():
            self.send(host, p.Shutdown(reason))
