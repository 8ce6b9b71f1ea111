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
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ninthsky.guard import protocol as p
from ninthsky.guard.faults import Fault, FaultBook
from ninthsky.guard.fleet import Fleet, Window
from ninthsky.guard.journal import Journal, recall
from ninthsky.guard.judges import Limits, Verdict
from ninthsky.guard.judges.exit import judge_exit, status_name
from ninthsky.guard.judges.hang import judge_frozen, judge_hang
from ninthsky.guard.judges.host import judge_host
from ninthsky.guard.judges.slow import judge_slow
from ninthsky.guard.ladder import Remedy, climb, climb_nonfinite, is_program_error
from ninthsky.guard.placement import Card, newest_whole_step, place, sources
from ninthsky.guard.probe import messages as m
from ninthsky.guard.roster import Proc, Roster
from ninthsky.guard.spec import JobSpec
from ninthsky.guard.votes import BadStep

Stage = Literal["gather", "recover", "collect", "wait", "form", "run", "done", "failed"]

BROKEN_SECONDS = 1.5  # a broken collective without an exit or a hang by then: the groups are rebuilt as they were
RECOVER_SECONDS = 5.0
ASK_SECONDS = 0.3
EARLY_EXITS = 2  # ends of a slot's process before it was ready; then the slot is given up
TOLD_EVERY = 1.0  # seconds between two events about committed steps

# Judges that look at the window, in order: the first that speaks is heard.
JUDGES = (judge_host, judge_hang, judge_slow)
JUDGES_WHILE_FORMING = (judge_host, judge_frozen)


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
        self._send, self._tell, self._clock, self._wall = send, event, clock, wall
        self.limits = Limits(self.watch.hang_seconds, self.watch.host_seconds, self.watch.slow_ratio, self.watch.slow_steps)
        self.journal = Journal(Path(spec.folder) / "journal.jsonl")
        self.book = FaultBook(Path(spec.folder) / "faults", spec.injected)
        self.fleet = Fleet(spec.world)
        self.roster = Roster(spec)
        memory = recall(self.journal.entries)
        self.generation, self.reason = memory.generation, memory.reason
        self.resume_step, self.committed = memory.resume_step, memory.committed
        self.results, self.history = memory.results, memory.history
        self.roster.lost, self.roster.kept_out = memory.lost, memory.kept_out
        self.stage: Stage = "gather"
        if memory.ended is not None:
            self.stage = "done" if memory.ended else "failed"
        elif memory.generation:
            self.stage = "recover"
            self.roster.places = [self.roster.process(*row) for row in memory.places]
        self._was_whole = memory.joined == memory.generation
        self._since = clock()
        self._inventories: dict[str, list[p.ShardInfo]] = {}
        self._joined: set[int] = set()
        self._broken: dict[int, tuple[float, str]] = {}  # rank -> when, error
        self._bad_steps: dict[int, BadStep] = {}
        self._early_exits: Counter[str] = Counter()
        self._told: set[tuple[str, str]] = set()  # (cause, card) that were told and are borne
        self._commit_told = 0.0
        if self.journal.entries:
            self._tell("controller.restarted", generation=self.generation)

    # -- what agents say ----------------------------------------------------------------------------------------------

    def handle(self, host: str, message: p.ToController) -> None:
        """One message of a host's agent."""
        if host in self.roster.lost:
            self._refuse(host)
            return
        state = self.roster.hosts[host]
        state.heard = self._clock()
        if isinstance(message, p.Register):
            self._register(host, message)
        elif isinstance(message, p.Report):
            if not state.registered or message.events != state.events:
                self._ask(host)
            self.fleet.report(host, message.processes, state.heard, message.late)
        elif not state.registered or message.event != state.events + 1:
            self._ask(host)  # something was lost: the whole state will come, and this event in it
        else:
            state.events = message.event
            self._happened(host, message)
            self._advance()

    def _refuse(self, host: str) -> None:
        self._send(host, p.Refused(self.generation))
        if ("refused", host) not in self._told:
            self._told.add(("refused", host))
            self._tell("host.refused", host=host, generation=self.generation)

    def _ask(self, host: str) -> None:
        state = self.roster.hosts[host]
        if self._clock() - state.asked > ASK_SECONDS:
            state.asked = self._clock()
            self._send(host, p.WhoAreYou())

    def _register(self, host: str, register: p.Register) -> None:
        state = self.roster.hosts[host]
        state.address, state.port, state.events = register.address, register.port, register.events
        if not state.registered:
            self._tell("host.joined", host=host, address=register.address)
        state.registered = True
        alive = {process.pid for process in register.processes}
        for process in register.processes:
            self.roster.process(host, process.slot, process.pid).ready = process.ready
        for proc in self.roster.of_host(host):
            if proc.pid not in alive:
                tail = "its end was not seen: the line to its agent was down"
                self._exited(host, p.Exited(0, proc.slot, proc.pid, 0, 0, "", tail))
        if self.stage != "recover":
            for process in register.processes:
                for message in process.last:
                    self._from_rank(self.roster.process(host, process.slot, process.pid), message)
            if self.stage == "collect" and host not in self._inventories:
                self._send(host, p.Prepare(self.generation, self.reason))
        self._advance()

    def _happened(self, host: str, event: p.Event) -> None:
        if isinstance(event, p.FromRank):
            self._from_rank(self.roster.process(host, event.slot, event.pid), event.message)
        elif isinstance(event, p.Started):
            self.roster.process(host, event.slot, event.pid)
        elif isinstance(event, p.Exited):
            self._exited(host, event)
        elif isinstance(event, p.Inventory):
            if self.stage == "collect" and event.generation == self.generation:
                self._inventories[host] = event.shards
        elif isinstance(event, p.PlaceFailed):
            if self.stage == "form" and event.generation == self.generation:
                self._begin(f"rank {event.rank}'s state could not be brought to {host}: {event.reason}")
        else:
            self._tell("refused", host=host, counts=event.counts)

    def _from_rank(self, proc: Proc, message: m.ToAgent) -> None:
        if isinstance(message, m.Ready):
            if not proc.ready and self.stage == "run":
                self._tell("spare.ready", host=proc.host, slot=proc.slot, pid=proc.pid)
            proc.ready = True
            return
        rank = self.roster.rank_of(proc)
        if rank is None or proc.out or getattr(message, "generation", self.generation) != self.generation:
            return
        if isinstance(message, m.StoreServing) and self.stage == "form":
            where = m.Rendezvous(self.generation, self.spec.host(proc.host).address, message.port)
            for other in self.roster.places:
                self._to_rank(other, where)
        elif isinstance(message, m.Joined) and self.stage == "form":
            self._joined.add(rank)
        elif isinstance(message, m.Broken) and self.stage in {"run", "form"}:
            self._broken.setdefault(rank, (self._clock(), message.error))
        elif isinstance(message, m.Bad):
            self._bad(proc, message)
        elif isinstance(message, m.Committed):
            self._commit(message.step)
        elif isinstance(message, m.MayCommit):
            self._to_rank(proc, m.Permit(message.step, self.stage == "run"))
        elif isinstance(message, m.Finished):
            self.results[rank] = message.result
            self.journal.write("finished", rank=rank, result=message.result)

    def _to_rank(self, proc: Proc, message: m.ToRank) -> None:
        self._send(proc.host, p.ToSlot(proc.slot, proc.pid, message))

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called ten times a second."""
        now = self._clock()
        if self.stage in {"run", "form"}:
            self._judge(now)
        if self.stage in {"collect", "wait"}:
            live = self.roster.live()
            silent = [host for host in live if now - self.roster.hosts[host].heard > self.watch.host_seconds]
            if silent and len(silent) < len(live):
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
        for judge in JUDGES if self.stage == "run" else JUDGES_WHILE_FORMING:
            verdicts = [verdict for verdict in judge(window, self.limits) if not self._is_told(verdict, window)]
            for verdict in verdicts:
                if self.stage not in {"done", "failed"}:
                    self._fault(verdict, window)
            if verdicts:
                return

    def _is_told(self, verdict: Verdict, window: Window) -> bool:
        return all((verdict.cause, card) in self._told for card in self._cards(verdict.ranks, window))

    def _cards(self, ranks: tuple[int, ...], window: Window) -> list[str]:
        return [window.place(rank) for rank in ranks] or [""]

    def _advance(self) -> None:
        """Goes on to the next stage where what was waited for is there."""
        now, waited, world = self._clock(), self._clock() - self._since, self.spec.world
        if self.stage == "gather":
            ready = len(self.roster.candidates())
            if ready >= max(self.roster.usable_cards(), world) or (ready >= world and waited > self.watch.start_seconds):
                self._begin("start")
            elif waited > self.watch.start_seconds:
                self._fail(f"{ready} of {world} processes were ready after {waited:.0f} s")
        elif self.stage == "recover":
            self._recover(waited)
        elif self.stage == "collect":
            if all(host in self._inventories for host in self.roster.live()):
                self._settle()
        elif self.stage == "wait":
            if len(self.roster.candidates()) >= world:
                self._form()
            elif waited > self.watch.spare_seconds:
                self._fail(f"no spare was ready after {waited:.0f} s")
        elif self.stage == "form":
            if len(self._joined) == world:
                self._run()
            elif waited > self.watch.join_seconds:
                self._late_to_join(now)
        if self.stage in {"run", "form"} and len(self.results) == world:
            self._finish()

    # -- faults -------------------------------------------------------------------------------------------------------

    def _exited(self, host: str, exited: p.Exited) -> None:
        proc = self.roster.processes.pop((host, exited.pid), None)
        if proc is None:
            return
        rank = self.roster.rank_of(proc)
        if exited.record:
            self.fleet.report(host, [p.Seen(exited.slot, exited.pid, exited.record, 0.0, "X", 0.0, 0.0)], self._clock())
        status = status_name(exited.status)
        self._tell("process.ended", host=host, slot=exited.slot, pid=exited.pid, status=status, rank=rank, replaced=proc.out)
        if self.stage in {"done", "failed"} or proc.out:
            return
        if rank is None:
            if not proc.ready:
                self._early_exit(proc, exited)
        elif self.stage != "recover" and rank not in self.results:
            echoes = [(other, error) for other, (_, error) in sorted(self._broken.items()) if other != rank]
            self._fault(judge_exit(rank, exited, echoes), status=exited.status)

    def _early_exit(self, proc: Proc, exited: p.Exited) -> None:
        self._early_exits[proc.card] += 1
        if self._early_exits[proc.card] < EARLY_EXITS:
            return
        self._keep_out(proc.card, f"its process ended {EARLY_EXITS} times before it was ready")
        if self.roster.usable_cards() < self.spec.world:
            self._fail(
                f"the process of {proc.card} ended with {status_name(exited.status)} before it was ready; its log "
                f"{exited.log}: {exited.tail.strip()[-600:]}"
            )

    def _fault(self, verdict: Verdict, window: Window | None = None, status: int = 0) -> None:
        """Names a fault, decides, and acts if it may."""
        window = window or self.fleet.window(self._clock())
        step = max(self.fleet.step(), self.resume_step + 1)
        fault = self.book.open(verdict, window, step, self._wall())
        remedy = climb(verdict, self.history, self.watch, step, self._wall(), status, self.roster.spares())
        if is_program_error(status):
            self.history.program_errors[step] += 1
        self._apply(fault, remedy, window)

    def _apply(self, fault: Fault, remedy: Remedy, window: Window, kind: str = "fault.named") -> None:
        acts = self.watch.action == "act" or remedy.rung in {"redo", "rotate"}  # these two change nothing that was asked for
        self.book.remedy(fault, remedy.text if acts else f"advised only: {remedy.text}")
        self._tell(kind, **fault.named())
        self.journal.write("fault", id=fault.id, cause=fault.cause, card=fault.card, rung=remedy.rung)
        if remedy.rung == "stop":
            fault.state = "stopped"
            self.book.save(fault)
            self._fail(f"{fault}; {remedy.text}")
        elif not acts or remedy.rung == "bear":
            self._bear(fault, remedy, window)
        elif remedy.rung in {"regroup", "rebuild"}:
            self.history.rebuilds += remedy.rung == "rebuild"
            if fault.cause == "host":
                self._lose(fault.host)
            for rank in remedy.evict:
                self._evict(self.roster.places[rank], fault)
            if self.stage in {"collect", "wait"}:
                fault.resumed_generation = self.generation  # the regroup under way repairs this one too
                self.stage, self._since = "collect", self._clock()
            else:
                self._begin(str(fault))

    def _bear(self, fault: Fault, remedy: Remedy, window: Window) -> None:
        """Nothing is done, by the person's wish or because nothing better is at hand. Told once."""
        fault.state = "advised"
        self.book.save(fault)
        self._told.update((fault.cause, card) for card in self._cards(remedy.evict, window))
        self._tell("fault.advised", fault=fault.id, remedy=remedy.text)
        if fault.cause in {"exit", "nonfinite"}:  # here the ranks cannot go on by themselves
            self._fail(f'{fault}. Nothing was done, because [guard] action is "advise". Advised: {remedy.text}')

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
        if card in self.roster.kept_out:
            return
        self.roster.kept_out.add(card)
        self.journal.write("kept_out", card=card, reason=reason)
        self._tell("card.kept_out", card=card, reason=reason)
        host, slot = card.split("/")
        self._send(host, p.KeepOut(int(slot), reason))

    def _lose(self, host: str) -> None:
        self.journal.write("lost", host=host, generation=self.generation + 1)
        self.roster.lose(host)

    def _late_to_join(self, now: float) -> None:
        missing = tuple(rank for rank in range(self.spec.world) if rank not in self._joined)
        text = f"ranks {', '.join(map(str, missing))} did not join within {self.watch.join_seconds:.0f} s"
        if len(missing) <= max(1, self.spec.world // 4):
            self._fault(Verdict("stuck", missing, text, (), (), 0.5, onset=now - self._since))
        else:
            self._fault(Verdict("unknown", (), text, (), onset=now - self._since))

    def _bad(self, proc: Proc, bad: m.Bad) -> None:
        """Every rank reports the same vote and gets the same answer; the first report decides."""
        step = self._bad_steps.setdefault(bad.step, BadStep(bad.step))
        key = (self.generation, bad.attempt)
        if key not in step.answers:
            self._decide(step, bad)
        if key in step.answers:
            self._to_rank(proc, step.answers[key])

    def _decide(self, step: BadStep, bad: m.Bad) -> None:
        finding, verdict = step.judge(self.generation, bad, self.spec.world)
        remedy = climb_nonfinite(finding, len(step.votes), step.first_rank, self.watch)
        window = self.fleet.window(self._clock())
        kind = "fault.named" if step.fault is None else "fault.rung"
        if step.fault is None:
            step.fault = self.book.open(verdict, window, bad.step, self._wall())
        else:
            self.book.amend(step.fault, verdict)
        if remedy.rung in {"redo", "rotate"} or (remedy.rung == "skip" and self.watch.action == "act"):
            step.decided(self.generation, bad.attempt, remedy.rung)
            step.fault.resumed_generation, step.fault.resume_step = self.generation, bad.step - 1
            step.fault.steps_redone += remedy.rung != "skip"
        elif remedy.rung == "regroup":
            step.card_replaced()
        self._apply(step.fault, remedy, window, kind)

    # -- a new generation ---------------------------------------------------------------------------------------------

    def _begin(self, reason: str) -> None:
        """Declares a new generation: from here on the old one is refused everywhere."""
        self.generation += 1
        self.reason = reason
        self.journal.write("generation", generation=self.generation, reason=reason)
        self._tell("generation", generation=self.generation, reason=reason)
        for fault in self.book.open_ones():
            fault.resumed_generation = self.generation
            fault.timeline.aborted = fault.timeline.aborted or self._wall()
        self.stage, self._since = "collect", self._clock()
        self._inventories, self._joined, self._broken = {}, set(), {}
        for host in self.roster.live():
            self._send(host, p.Prepare(self.generation, reason))

    def _settle(self) -> None:
        """Every inventory is here: the step to go on from is known, and whether there are cards enough."""
        self.resume_step = newest_whole_step(self._inventories, self.spec.world)
        for proc in self.roster.processes.values():
            if proc.out:  # before its slot can be used again
                self._send(proc.host, p.Dismiss(proc.slot, proc.pid, self.watch.kill_replaced))
        ready = len(self.roster.candidates())
        if ready >= self.spec.world:
            self._form()
        elif self.roster.usable_cards() < self.spec.world:
            self._fail(f"{self.roster.usable_cards()} usable cards are left for {self.spec.world} ranks")
        else:
            self.stage, self._since = "wait", self._clock()
            self._tell("spare.wanted", candidates=ready, world=self.spec.world)

    def _form(self) -> None:
        """Gives every rank its place, and tells every agent what to bring there."""
        before = [Card(*row) for row in self.roster.table()]
        homes = [host.name for host in self.spec.hosts for _ in range(host.slots)]
        cards = place(before, homes, self.roster.candidates(), self.history.card_failures)
        changed = {rank: old.name for rank, (old, new) in enumerate(zip(before, cards, strict=False)) if old != new}
        self.roster.places = [self.roster.processes[card.host, card.pid] for card in cards]
        self._joined, self._broken = set(), {}
        self.journal.write("places", generation=self.generation, resume_step=self.resume_step, places=self.roster.table())
        hosts = self.roster.rank_hosts()
        brought = sources(self._inventories, self.resume_step, hosts)
        server = min(changed, default=0)  # a newly placed process is idle and answers at once; survivors still let go
        by_host: dict[str, list[p.Place]] = {host: [] for host in self.roster.live()}
        for rank, proc in enumerate(self.roster.places):
            bind = self.spec.host(proc.host).address
            assign = m.Assign(self.generation, rank, self.spec.world, self.resume_step, rank == server, bind, hosts, changed)
            by_host[proc.host].append(p.Place(proc.slot, proc.pid, assign, *brought.get(rank, ("", ""))))
        peers = [p.Peer(name, self.roster.hosts[name].address, self.roster.hosts[name].port) for name in by_host]
        for host, places in by_host.items():
            self._send(host, p.Form(self.generation, self.resume_step, places, peers))
        self._note_places(changed)
        self.fleet.begin(self.generation, self.roster.table(), self._clock())
        self.stage, self._since = "form", self._clock()
        named = {str(rank): proc.card for rank, proc in enumerate(self.roster.places)}
        self._tell("formed", generation=self.generation, resume_step=self.resume_step, places=named)

    def _note_places(self, changed: dict[int, str]) -> None:
        """What the regroup costs, into the faults that it repairs."""
        redone = max(self.fleet.step() - self.resume_step, 0)
        for fault in self.book.open_ones():
            fault.resume_step, fault.timeline.assigned = self.resume_step, self._wall()
            fault.steps_redone = max(fault.steps_redone, redone)
            fault.committed_steps_lost = max(0, self.committed - self.resume_step)
            if fault.rank is not None and fault.rank in changed:
                fault.replaced_by = self.roster.places[fault.rank].card
            self.book.save(fault)

    def _run(self) -> None:
        self.stage, self._since = "run", self._clock()
        self.journal.write("joined", generation=self.generation)
        self._tell("joined", generation=self.generation, resume_step=self.resume_step)
        for fault in self.book.open_ones():
            fault.timeline.joined = self._wall()
            self.book.save(fault)

    def _commit(self, step: int) -> None:
        if step > self.committed:
            self.committed = step
            self.journal.write("commit", step=step)
            if self._clock() - self._commit_told >= TOLD_EVERY:
                self._commit_told = self._clock()
                self._tell("commit", step=step, generation=self.generation)
        self.history.rebuilds = 0
        for fault in list(self.book.open_ones()):
            # Committed(step) is said after the gate of step + 1: the first common step after the fault was done.
            repaired = fault.resumed_generation == self.generation and (fault.cause != "nonfinite" or step >= fault.step)
            if self.stage == "run" and repaired:
                self._close(fault)

    def _close(self, fault: Fault) -> None:
        fault.state, fault.timeline.trained = "repaired", self._wall()
        self.book.save(fault)
        self._tell("fault.repaired", **fault.repaired())

    def _recover(self, waited: float) -> None:
        """Every host has told what runs there: training goes on untouched if nobody is missing, else a new generation."""
        absent = [name for name, host in self.roster.hosts.items() if name not in self.roster.lost and not host.registered]
        if absent and waited < RECOVER_SECONDS:
            return
        for host in absent:
            self._lose(host)
        places = self.roster.places
        if self._was_whole and len(places) == self.spec.world and all(map(self.roster.alive, places)):
            self.fleet.begin(self.generation, self.roster.table(), self._clock())
            self.stage, self._since = "run", self._clock()
            for host in self.roster.live():
                self._send(host, p.WhoAreYou())  # again, now that messages of its ranks are heeded
            self._tell("controller.recovered", generation=self.generation)
        else:
            self._begin("the controller was restarted during a regroup")

    # -- its end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        for fault in list(self.book.open_ones()):
            self._close(fault)  # the last step was its proof
        self.stage = "done"
        self.journal.write("done", ok=True)
        self._tell("job.done", generation=self.generation, faults=len(self.book.faults))
        self._dissolve("the job is done")

    def _fail(self, reason: str) -> None:
        if self.stage in {"done", "failed"}:
            return
        self.stage, self.reason = "failed", reason
        self.journal.write("done", ok=False, reason=reason)
        self._tell("job.failed", reason=reason)
        self._dissolve(reason)

    def _dissolve(self, reason: str) -> None:
        for proc in self.roster.processes.values():
            self._to_rank(proc, m.Stop())
        for host in self.roster.live():
            self._send(host, p.Shutdown(reason))

    def stop(self, reason: str) -> None:
        """A person or the driver ends the job."""
        self._fail(reason)
