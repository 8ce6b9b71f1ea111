"""The controller's mind: takes in what agents tell, asks the judges, climbs the ladder, and conducts the regroup.

It knows no sockets: commands go out through `send`, times come from `clock` (monotonic) and `wall` (Unix seconds). Stages:

    gather   processes start; until all are ready
    recover  the controller was restarted; until every host has told what it has
    collect  a new generation was declared; until every host has sent its inventory
    wait     not enough prepared spares; until a restarted process is ready
    form     places are given out; until every rank joined
    run      training
    done, failed
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ninthsky.guard import protocol as p
from ninthsky.guard.faults import Fault, FaultBook
from ninthsky.guard.fleet import Fleet, Window
from ninthsky.guard.journal import Journal
from ninthsky.guard.judges import Limits, Verdict
from ninthsky.guard.judges.exit import judge_exit, status_name
from ninthsky.guard.judges.hang import judge_frozen, judge_hang
from ninthsky.guard.judges.host import judge_host
from ninthsky.guard.judges.nonfinite import Finding, Vote, judge_nonfinite
from ninthsky.guard.judges.slow import judge_slow
from ninthsky.guard.ladder import History, Remedy, climb, climb_nonfinite, is_program_error
from ninthsky.guard.placement import Card, newest_whole_step, place, sources
from ninthsky.guard.probe import messages as m
from ninthsky.guard.spec import JobSpec

Stage = Literal["gather", "recover", "collect", "wait", "form", "run", "done", "failed"]

BROKEN_SECONDS = 1.5  # a broken collective without an exit or a hang by then: the groups are rebuilt as they were
RECOVER_SECONDS = 5.0
EARLY_EXITS = 2  # ends of a slot's process before it was ready; then the slot is given up

# Judges that look at the window, in order: the first that speaks is heard.
JUDGES = (judge_host, judge_hang, judge_slow)


@dataclass
class Host:
    """An agent as the controller knows it."""

    registered: bool = False
    address: str = ""
    port: int = 0
    events: int = 0
    heard: float = 0.0
    asked: float = 0.0


@dataclass
class Proc:
    """A process in a card slot. `out`: it was replaced, and never counts again."""

    host: str
    slot: int
    pid: int
    ready: bool = False
    out: bool = False

    @property
    def card(self) -> str:
        return f"{self.host}/{self.slot}"


@dataclass
class _Step:
    """What the attempts of a bad step have shown."""

    votes: list[Vote] = field(default_factory=list)
    decisions: dict[tuple[int, int], m.Decide] = field(default_factory=dict)  # (generation, attempt) -> answer
    fault: Fault | None = None
    evicted_rank: int | None = None


class Conductor:
    """One job. `handle` and `tick` are called by the controller's process; everything else follows from them."""

    def __init__(
        self,
        spec: JobSpec,
        send: Callable[[str, p.Command], None],
        event: Callable[..., None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.spec, self.watch = spec, spec.watch
        self._send, self._event, self._clock, self._wall = send, event, clock, wall
        self.limits = Limits(self.watch.hang_seconds, self.watch.host_seconds, self.watch.slow_ratio, self.watch.slow_steps)
        folder = Path(spec.folder)
        self.journal = Journal(folder / "journal.jsonl")
        self.book = FaultBook(folder / "faults", spec.injected)
        self.fleet = Fleet(spec.world)
        self.history = History()
        self.hosts = {host.name: Host() for host in spec.hosts}
        self.lost: set[str] = set()
        self.kept_out: set[str] = set()
        self.processes: dict[tuple[str, int], Proc] = {}  # (host, pid)
        self.generation = 0
        self.places: list[Proc] = []  # by rank
        self.resume_step = -1
        self.committed = -1
        self.results: dict[int, dict[str, Any]] = {}
        self.reason = ""
        self.stage: Stage = "gather"
        self._since = clock()
        self._inventories: dict[str, list[p.ShardInfo]] = {}
        self._joined: set[int] = set()
        self._broken: dict[int, tuple[float, str]] = {}
        self._steps: dict[int, _Step] = {}
        self._early_exits: dict[str, int] = {}
        self._told: set[tuple[str, str]] = set()  # (cause, card) told under advise
        self._commit_told = 0.0
        self._whole = False
        if self.journal.entries:
            self._replay()

    # -- what agents say ----------------------------------------------------------------------------------------------

    def handle(self, host: str, message: p.ToController) -> None:
        """One message of a host's agent."""
        now = self._clock()
        if host in self.lost:
            self._send(host, p.Refused(self.generation))
            if (host, "refused") not in self._told:
                self._told.add((host, "refused"))
                self._tell("host.refused", host=host, generation=self.generation)
            return
        state = self.hosts[host]
        state.heard = now
        if isinstance(message, p.Register):
            self._register(host, message)
        elif isinstance(message, p.Report):
            if not state.registered or message.events != state.events:
                self._ask(host)
            self.fleet.report(host, message.processes, now, message.late)
        else:
            if not state.registered or message.event != state.events + 1:
                self._ask(host)
                return  # the whole state is coming
            state.events = message.event
            self._happened(host, message)

    def _ask(self, host: str) -> None:
        state = self.hosts[host]
        if self._clock() - state.asked > 0.3:
            state.asked = self._clock()
            self._send(host, p.WhoAreYou())

    def _register(self, host: str, register: p.Register) -> None:
        state = self.hosts[host]
        state.address, state.port, state.events = register.address, register.port, register.events
        if not state.registered:
            self._tell("host.joined", host=host, address=register.address)
        state.registered = True
        alive = {process.pid for process in register.processes}
        for process in register.processes:
            self._process(host, process.slot, process.pid).ready = process.ready
        for key in [key for key in self.processes if key[0] == host and key[1] not in alive]:
            proc = self.processes[key]
            self._exited(
                host, p.Exited(0, proc.slot, proc.pid, 0, 0, "", "its end was not seen: the line to its agent was down")
            )
        if self.stage != "recover":
            self._catch_up(host, register)
        self._advance()

    def _catch_up(self, host: str, register: p.Register) -> None:
        for process in register.processes:
            for message in process.last:
                self._from_rank(self._process(host, process.slot, process.pid), message)
        if self.stage == "collect" and register.generation < self.generation:
            self._send(host, p.Prepare(self.generation, self.reason))

    def _happened(self, host: str, event: p.Event) -> None:
        if isinstance(event, p.FromRank):
            self._from_rank(self._process(host, event.slot, event.pid), event.message)
        elif isinstance(event, p.Started):
            self._process(host, event.slot, event.pid)
        elif isinstance(event, p.Exited):
            self._exited(host, event)
        elif isinstance(event, p.Inventory):
            if self.stage == "collect" and event.generation == self.generation:
                self._inventories[host] = event.shards
        elif isinstance(event, p.PlaceFailed):
            if event.generation == self.generation and self.stage == "form":
                self._tell("place.failed", host=host, rank=event.rank, reason=event.reason)
                self._begin(f"rank {event.rank}'s state could not be brought to {host}: {event.reason}")
        else:
            self._tell("refused", host=host, counts=event.counts)
        self._advance()

    def _process(self, host: str, slot: int, pid: int) -> Proc:
        if (host, pid) not in self.processes:
            self.processes[host, pid] = Proc(host, slot, pid)
        return self.processes[host, pid]

    def _rank_of(self, proc: Proc) -> int | None:
        for rank, holder in enumerate(self.places):
            if holder is proc:
                return rank
        return None

    def _from_rank(self, proc: Proc, message: m.ToAgent) -> None:
        rank = self._rank_of(proc)
        if isinstance(message, m.Ready):
            if not proc.ready and self.stage == "run":
                self._tell("spare.ready", host=proc.host, slot=proc.slot, pid=proc.pid)
            proc.ready = True
            return
        if rank is None or proc.out or getattr(message, "generation", self.generation) != self.generation:
            return
        if isinstance(message, m.StoreServing) and self.stage == "form":
            address = self.spec.host(proc.host).address
            for other in self.places:
                self._send(other.host, p.ToSlot(other.slot, other.pid, m.Rendezvous(self.generation, address, message.port)))
        elif isinstance(message, m.Joined) and self.stage == "form":
            self._joined.add(rank)
        elif isinstance(message, m.Broken) and self.stage in {"run", "form"}:
            self._broken.setdefault(rank, (self._clock(), message.error))
        elif isinstance(message, m.Bad):
            self._bad(proc, message)
        elif isinstance(message, m.Committed):
            self._commit(message.step)
        elif isinstance(message, m.MayCommit):
            allowed = self.stage == "run"
            self._send(proc.host, p.ToSlot(proc.slot, proc.pid, m.Permit(message.step, allowed)))
        elif isinstance(message, m.Finished):
            self.results[rank] = message.result
            self.journal.write("finished", rank=rank, result=message.result)

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called ten times a second, and after every batch of messages."""
        now = self._clock()
        if self.stage in {"run", "form"}:
            self._judge(now)
        if self.stage in {"collect", "wait"}:
            silent = [host for host in self._live() if now - self.hosts[host].heard > self.watch.host_seconds]
            if silent and len(silent) < len(self._live()):
                for host in silent:
                    self._lose(host)
                self._begin(f"host {', '.join(silent)} went silent during a regroup")
        if self.stage == "run" and self._broken:
            first = min(at for at, _ in self._broken.values())
            if now - first > BROKEN_SECONDS:
                errors = "; ".join(f"rank {rank}: {error[:120]}" for rank, (_, error) in sorted(self._broken.items())[:3])
                self._fault(
                    Verdict("unknown", (), f"a collective broke, every process lives ({errors})", (), onset=now - first)
                )
        self._advance()

    def _judge(self, now: float) -> None:
        window = self.fleet.window(now)
        judges = JUDGES if self.stage == "run" else (judge_host, judge_frozen)
        for judge in judges:
            verdicts = [v for v in judge(window, self.limits) if not self._is_told(v, window)]
            if verdicts:
                for verdict in verdicts:
                    if self.stage not in {"done", "failed"}:
                        self._fault(verdict, window)
                return

    def _is_told(self, verdict: Verdict, window: Window) -> bool:
        places = [window.place(rank) for rank in verdict.ranks] or [""]
        return all((verdict.cause, place) in self._told for place in places)

    def _advance(self) -> None:
        """Goes on to the next stage where what was waited for is there."""
        now, waited = self._clock(), self._clock() - self._since
        if self.stage == "gather":
            wanted = sum(host.slots + host.spares for host in self.spec.hosts) - len(self.kept_out)
            ready = len(self._candidates())
            if ready >= max(wanted, self.spec.world) or (ready >= self.spec.world and waited > self.watch.start_seconds):
                self._begin("start")
            elif waited > self.watch.start_seconds:
                self._fail(f"{ready} of {self.spec.world} processes were ready after {waited:.0f} s")
        elif self.stage == "recover":
            self._recover(waited)
        elif self.stage == "collect":
            if all(host in self._inventories for host in self._live()):
                self._settle()
        elif self.stage == "wait":
            if len(self._candidates()) >= self.spec.world:
                self._form()
            elif waited > self.watch.spare_seconds:
                self._fail(f"no spare was ready after {waited:.0f} s")
        elif self.stage == "form":
            if len(self._joined) == self.spec.world:
                self._run()
            elif waited > self.watch.join_seconds:
                self._late_to_join(now)
        if self.stage in {"run", "form"} and len(self.results) == self.spec.world:
            self._finish()

    # -- faults -------------------------------------------------------------------------------------------------------

    def _exited(self, host: str, exited: p.Exited) -> None:
        proc = self.processes.pop((host, exited.pid), None)
        if proc is None:
            return
        rank = self._rank_of(proc)
        if exited.record:
            last = p.Seen(exited.slot, exited.pid, exited.record, 0.0, "X", 0.0, 0.0)
            self.fleet.report(host, [last], self._clock())
        self._tell(
            "process.ended",
            host=host,
            slot=exited.slot,
            pid=exited.pid,
            status=status_name(exited.status),
            rank=rank,
            replaced=proc.out,
        )
        if self.stage in {"done", "failed"} or proc.out:
            return
        if rank is None:
            if not proc.ready:
                self._early_exit(proc, exited)
        elif self.stage != "recover" and rank not in self.results:
            echoes = [(other, error) for other, (_, error) in sorted(self._broken.items()) if other != rank]
            self._fault(judge_exit(rank, exited, echoes), status=exited.status)

    def _early_exit(self, proc: Proc, exited: p.Exited) -> None:
        count = self._early_exits[proc.card] = self._early_exits.get(proc.card, 0) + 1
        if count < EARLY_EXITS:
            return
        self._keep_out(proc.card, f"its process ended {count} times before it was ready")
        usable = sum(host.slots + host.spares for host in self.spec.hosts if host.name not in self.lost) - len(self.kept_out)
        if usable < self.spec.world:
            self._fail(
                f"the process of {proc.card} ended with {status_name(exited.status)} before it was ready; its log "
                f"{exited.log}: {exited.tail.strip()[-600:]}"
            )

    def _fault(self, verdict: Verdict, window: Window | None = None, status: int = 0) -> None:
        """Names a fault, decides, and acts if it may."""
        window = window or self.fleet.window(self._clock())
        fault = self.book.open(verdict, window, self._step(), self._wall())
        remedy = climb(verdict, self.history, self.watch, fault.step, self._wall(), status, self._spares())
        if is_program_error(status):
            self.history.program_errors[fault.step] += 1
        self._apply(fault, remedy, window)

    def _spares(self) -> int:
        """Ready processes without a rank."""
        return len(self._candidates()) - sum(not proc.out and (proc.host, proc.pid) in self.processes for proc in self.places)

    def _step(self) -> int:
        """The newest step under way."""
        return max(self.fleet.step(), self.resume_step + 1)

    def _apply(self, fault: Fault, remedy: Remedy, window: Window, kind: str = "fault.named") -> None:
        acts = self.watch.action == "act" or remedy.rung in {"redo", "rotate"}  # these two change nothing that was asked for
        self.book.remedy(fault, remedy.text if acts else f"advised only: {remedy.text}")
        self._tell_fault(kind, fault)
        self.journal.write("fault", id=fault.id, cause=fault.cause, card=fault.card, rung=remedy.rung)
        if remedy.rung == "stop":
            fault.state = "stopped"
            self.book.save(fault)
            self._fail(f"{fault.id}: {fault.evidence.subject}: {fault.evidence.verdict}; {remedy.text}")
            return
        if not acts or remedy.rung == "bear":
            fault.state = "advised"
            self.book.save(fault)
            self._told.update((fault.cause, place) for place in ([window.place(rank) for rank in remedy.evict] or [""]))
            self._tell("fault.advised", fault=fault.id, remedy=remedy.text)
            if fault.cause in {"exit", "nonfinite"}:  # here the ranks cannot go on by themselves
                self._fail(
                    f"{fault.id}: {fault.evidence.subject}: {fault.evidence.verdict}. Nothing was done, because [guard] "
                    f'action is "advise". Advised: {remedy.text}'
                )
            return
        if remedy.rung in {"redo", "rotate", "skip"}:
            return
        if remedy.rung == "rebuild":
            self.history.rebuilds += 1
        if fault.cause == "host":
            self._lose(fault.host)
        for rank in remedy.evict:
            self._evict(self.places[rank], fault)
        if self.stage in {"collect", "wait"}:
            fault.resumed_generation = self.generation  # the regroup under way repairs this one too
            self.stage, self._since = "collect", self._clock()
        else:
            self._begin(f"{fault.id}: {fault.evidence.subject}: {fault.evidence.verdict}")

    def _evict(self, proc: Proc, fault: Fault) -> None:
        proc.out = True
        if fault.cause == "host":
            return
        now = self._wall()
        self.history.evictions.append(now)
        self.history.card_failures[proc.card] += 1
        self.journal.write("eviction", at=now, card=proc.card)
        if self.history.card_failures[proc.card] >= self.watch.card_failures:
            self._keep_out(proc.card, f"it failed {self.history.card_failures[proc.card]} times")

    def _keep_out(self, card: str, reason: str) -> None:
        if card in self.kept_out:
            return
        self.kept_out.add(card)
        self.journal.write("kept_out", card=card, reason=reason)
        self._tell("card.kept_out", card=card, reason=reason)
        host, slot = card.split("/")
        self._send(host, p.KeepOut(int(slot), reason))

    def _lose(self, host: str) -> None:
        self.lost.add(host)
        self.journal.write("lost", host=host, generation=self.generation + 1)
        for key in [key for key in self.processes if key[0] == host]:
            self.processes.pop(key).out = True

    def _late_to_join(self, now: float) -> None:
        missing = tuple(rank for rank in range(self.spec.world) if rank not in self._joined)
        few = len(missing) <= max(1, self.spec.world // 4)
        text = f"ranks {', '.join(map(str, missing))} did not join within {self.watch.join_seconds:.0f} s"
        self._fault(
            Verdict(
                "stuck" if few else "unknown",
                missing if few else (),
                text,
                (),
                (),
                0.5 if few else None,
                onset=now - self._since,
            )
        )

    # -- bad gradients ------------------------------------------------------------------------------------------------

    def _bad(self, proc: Proc, bad: m.Bad) -> None:
        """Every rank reports the same vote and gets the same answer; the first report decides."""
        step = self._steps.setdefault(bad.step, _Step())
        key = (self.generation, bad.attempt)
        if key not in step.decisions:
            self._decide(step, bad)
        answer = step.decisions.get(key)
        if answer is not None:
            self._send(proc.host, p.ToSlot(proc.slot, proc.pid, answer))

    def _decide(self, step: _Step, bad: m.Bad) -> None:
        ranks = tuple(sorted(bad.ranks))
        finding: Finding
        before = step.decisions.get((self.generation, bad.attempt - 1))
        rotated = before is not None and before.action == "rotate"
        if step.evicted_rank is not None and step.evicted_rank in ranks:
            # The card was replaced and the new one finds the same in these samples.
            finding, verdict = (
                "data",
                Verdict(
                    "nonfinite",
                    (),
                    "gradient not finite on another card too: the data",
                    judge_nonfinite(bad.step, [Vote(bad.attempt, ranks)], self.spec.world)[1].facts,
                    ("the card: it was replaced, and the new one found the same",),
                    0.95,
                ),
            )
        else:
            step.votes.append(Vote(bad.attempt, ranks, rotated))
            finding, verdict = judge_nonfinite(bad.step, step.votes, self.spec.world)
        first = step.votes[0].ranks[0] if step.votes and step.votes[0].ranks else (ranks[0] if ranks else 0)
        remedy = climb_nonfinite(finding, len(step.votes), first, self.watch)
        window = self.fleet.window(self._clock())
        kind = "fault.named" if step.fault is None else "fault.rung"
        if step.fault is None:
            step.fault = self.book.open(verdict, window, bad.step, self._wall())
        else:
            self.book.amend(step.fault, verdict)
        if remedy.rung in {"redo", "rotate", "skip"}:
            step.decisions[self.generation, bad.attempt] = m.Decide(bad.step, bad.attempt, remedy.rung)
            step.fault.resumed_generation, step.fault.resume_step = self.generation, bad.step - 1
            step.fault.steps_redone += remedy.rung != "skip"
        elif remedy.rung == "regroup":
            step.evicted_rank, step.votes = first, []
        self._apply(step.fault, remedy, window, kind)

    # -- a new generation ---------------------------------------------------------------------------------------------

    def _begin(self, reason: str) -> None:
        """Declares a new generation: from here on the old one is refused everywhere."""
        self.generation += 1
        self.reason = reason
        self.journal.write("generation", generation=self.generation, reason=reason)
        self._tell("generation", generation=self.generation, reason=reason)
        now = self._wall()
        for fault in self.book.open_ones():
            fault.resumed_generation = self.generation
            fault.timeline.aborted = fault.timeline.aborted or now
        self.stage, self._since = "collect", self._clock()
        self._inventories, self._joined, self._broken = {}, set(), {}
        for host in self._live():
            self._send(host, p.Prepare(self.generation, reason))

    def _live(self) -> list[str]:
        return [host for host, state in self.hosts.items() if host not in self.lost and state.registered]

    def _candidates(self) -> list[Card]:
        """Cards with a ready process that may hold a rank."""
        return [
            Card(proc.host, proc.slot, proc.pid)
            for proc in self.processes.values()
            if proc.ready and not proc.out and proc.card not in self.kept_out and proc.host not in self.lost
        ]

    def _settle(self) -> None:
        step = newest_whole_step(self._inventories, self.spec.world)
        self.resume_step = step
        for proc in self.processes.values():
            if proc.out:  # before its slot can be used again
                self._send(proc.host, p.Dismiss(proc.slot, proc.pid, self.watch.kill_replaced))
        if len(self._candidates()) >= self.spec.world:
            self._form()
            return
        self.stage, self._since = "wait", self._clock()
        free = sum(host.slots + host.spares for host in self.spec.hosts if host.name not in self.lost) - len(self.kept_out)
        self._tell("spare.wanted", candidates=len(self._candidates()), world=self.spec.world)
        if free < self.spec.world:
            self._fail(f"{free} usable cards are left for {self.spec.world} ranks")

    def _form(self) -> None:
        before = [Card(proc.host, proc.slot, proc.pid) for proc in self.places]
        homes = [host.name for host in self.spec.hosts for _ in range(host.slots)]
        cards = place(before, homes, self._candidates(), self.history.card_failures)
        changed = {rank: old.name for rank, (old, new) in enumerate(zip(before, cards, strict=False)) if old != new}
        self.places = [self.processes[card.host, card.pid] for card in cards]
        self._joined, self._broken = set(), {}
        brought = sources(self._inventories, self.resume_step, self.places_hosts())
        # A newly placed process is idle and answers at once; survivors are still letting go.
        server = min(changed, default=0)
        self.journal.write(
            "places",
            generation=self.generation,
            resume_step=self.resume_step,
            places=[[proc.host, proc.slot, proc.pid] for proc in self.places],
        )
        peers = [p.Peer(host, self.hosts[host].address, self.hosts[host].port) for host in self._live()]
        by_host: dict[str, list[p.Place]] = {host: [] for host in self._live()}
        hosts = self.places_hosts()
        for rank, proc in enumerate(self.places):
            assign = m.Assign(
                self.generation,
                rank,
                self.spec.world,
                self.resume_step,
                rank == server,
                self.spec.host(proc.host).address,
                hosts,
                changed,
            )
            source, xxh3 = brought.get(rank, ("", ""))
            by_host[proc.host].append(p.Place(proc.slot, proc.pid, assign, source, xxh3))
        for host, places in by_host.items():
            self._send(host, p.Form(self.generation, self.resume_step, places, peers))
        begun = max(self.fleet.step(), self.resume_step)
        now = self._wall()
        for fault in self.book.open_ones():
            if fault.resumed_generation == self.generation:
                fault.resume_step = self.resume_step
                fault.timeline.assigned = now
                fault.steps_redone = max(fault.steps_redone, begun - self.resume_step)
                fault.committed_steps_lost = max(0, self.committed - self.resume_step)
                if fault.rank is not None and fault.rank in changed:
                    fault.replaced_by = self.places[fault.rank].card
                self.book.save(fault)
        self.fleet.begin(self.generation, [(proc.host, proc.slot, proc.pid) for proc in self.places], self._clock())
        self.stage, self._since = "form", self._clock()
        self._tell(
            "formed",
            generation=self.generation,
            resume_step=self.resume_step,
            places={str(rank): proc.card for rank, proc in enumerate(self.places)},
        )

    def places_hosts(self) -> list[str]:
        """Host of each rank."""
        return [proc.host for proc in self.places]

    def _run(self) -> None:
        self.stage, self._since = "run", self._clock()
        self.journal.write("joined", generation=self.generation)
        self._tell("joined", generation=self.generation, resume_step=self.resume_step)
        for fault in self.book.open_ones():
            if fault.resumed_generation == self.generation and fault.timeline.assigned is not None:
                fault.timeline.joined = self._wall()
                self.book.save(fault)

    def _commit(self, step: int) -> None:
        if step > self.committed:
            self.committed = step
            if self._clock() - self._commit_told >= 1.0:
                self._commit_told = self._clock()
                self.journal.write("commit", step=step)
                self._tell("commit", step=step, generation=self.generation)
        self.history.rebuilds = 0
        if self.stage != "run":
            return
        for fault in list(self.book.open_ones()):
            # Committed(step) is said after the gate of step + 1: the first common step after the fault was done.
            if fault.resumed_generation == self.generation and (fault.cause != "nonfinite" or step >= fault.step):
                self._close(fault)

    def _close(self, fault: Fault) -> None:
        fault.state = "repaired"
        fault.timeline.trained = self._wall()
        self.book.save(fault)
        self._tell(
            "fault.repaired",
            fault=fault.id,
            cause=fault.cause,
            rank=fault.rank,
            was=fault.card or fault.host,
            now=fault.replaced_by,
            seconds=fault.seconds("trained"),
            named_seconds=fault.seconds("named"),
            steps_redone=fault.steps_redone,
            committed_steps_lost=fault.committed_steps_lost,
            remedy=fault.evidence.remedy,
            injected=fault.injected,
        )

    # -- its end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        self.stage = "done"
        for fault in list(self.book.open_ones()):
            self._close(fault)  # the last step was its proof
        self.journal.write("done", ok=True)
        self._tell("job.done", generation=self.generation, faults=len(self.book.faults))
        self._stop("the job is done")

    def _fail(self, reason: str) -> None:
        if self.stage in {"done", "failed"}:
            return
        self.stage, self.reason = "failed", reason
        self.journal.write("done", ok=False, reason=reason)
        self._tell("job.failed", reason=reason)
        self._stop(reason)

    def _stop(self, reason: str) -> None:
        for proc in self.processes.values():
            self._send(proc.host, p.ToSlot(proc.slot, proc.pid, m.Stop()))
        for host in self._live():
            self._send(host, p.Shutdown(reason))

    def stop(self, reason: str) -> None:
        """A person or the driver ends the job."""
        self._fail(reason)

    # -- restart ------------------------------------------------------------------------------------------------------

    def _replay(self) -> None:
        """Goes on where a killed controller was."""
        places: list[list[Any]] = []
        joined = 0
        for entry in self.journal.entries:
            kind = entry["kind"]
            if kind == "generation":
                self.generation, self.reason = entry["generation"], entry["reason"]
            elif kind == "places":
                places, self.resume_step = entry["places"], entry["resume_step"]
            elif kind == "joined":
                joined = entry["generation"]
            elif kind == "commit":
                self.committed = max(self.committed, entry["step"])
            elif kind == "finished":
                self.results[entry["rank"]] = entry["result"]
            elif kind == "eviction":
                self.history.evictions.append(entry["at"])
                self.history.card_failures[entry["card"]] += 1
            elif kind == "kept_out":
                self.kept_out.add(entry["card"])
            elif kind == "lost":
                self.lost.add(entry["host"])
            elif kind == "done":
                self.stage, self.reason = ("done" if entry["ok"] else "failed"), entry.get("reason", "")
        if self.stage == "gather" and self.generation:
            self.stage = "recover"
            self._whole = joined == self.generation
            self.places = [self._process(host, slot, pid) for host, slot, pid in places]
        self._tell("controller.restarted", generation=self.generation)

    def _recover(self, waited: float) -> None:
        """Every host has told what runs there: training goes on untouched if nobody is missing, else a new generation."""
        absent = [host for host in self.hosts if host not in self.lost and not self.hosts[host].registered]
        if absent and waited < RECOVER_SECONDS:
            return
        for host in absent:
            self._lose(host)
        alive = all((proc.host, proc.pid) in self.processes and not proc.out for proc in self.places)
        if self._whole and alive and len(self.places) == self.spec.world:
            self.fleet.begin(self.generation, [(proc.host, proc.slot, proc.pid) for proc in self.places], self._clock())
            self._joined = set(range(self.spec.world))
            self.stage, self._since = "run", self._clock()
            for host in self._live():
                self._send(host, p.WhoAreYou())  # again, now that messages of its ranks are heeded
            self._tell("controller.recovered", generation=self.generation)
        else:
            self._begin("the controller was restarted during a regroup")

    # -- telling ------------------------------------------------------------------------------------------------------

    def _tell(self, kind: str, **fields: Any) -> None:
        self._event(kind, **fields)

    def _tell_fault(self, kind: str, fault: Fault) -> None:
        e = fault.evidence
        self._tell(
            kind,
            fault=fault.id,
            cause=fault.cause,
            subject=e.subject,
            verdict=e.verdict,
            host=fault.host,
            card=fault.card,
            rank=fault.rank,
            step=fault.step,
            generation=fault.generation,
            injected=fault.injected,
            facts=[str(fact) for fact in e.facts],
            ruled_out=list(e.ruled_out),
            remedy=e.remedy,
            confidence=e.confidence,
            seconds=fault.seconds("named"),
        )
