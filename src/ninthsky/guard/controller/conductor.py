"""The controller's mind: takes in what agents tell, asks the judges, and hands on to remedies and regroups.

What it knows is in state.py; what is done about a fault is in remedies.py; how a new generation comes about, in regroup.py.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from ninthsky.guard import protocol as p
from ninthsky.guard.controller.regroup import Regroup
from ninthsky.guard.controller.remedies import Remedies
from ninthsky.guard.controller.roster import Proc
from ninthsky.guard.controller.state import JobState
from ninthsky.guard.judges import Limits, Verdict
from ninthsky.guard.judges.exit import judge_exit, status_name
from ninthsky.guard.judges.hang import judge_frozen, judge_hang
from ninthsky.guard.judges.host import judge_host
from ninthsky.guard.judges.slow import judge_slow
from ninthsky.guard.probe import messages as m
from ninthsky.guard.spec import JobSpec

BROKEN_SECONDS = 1.5  # a broken collective without an exit or a hang by then: the groups are rebuilt as they were
ASK_SECONDS = 0.3
TICK_SLACK = 0.02  # seconds; so that a judge that is due with every tick is not put off to the next
EARLY_EXITS = 2  # ends of a slot's process before it was ready; then the slot is given up

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
        self.state = JobState(spec, send, event, clock, wall)
        self._regroup = Regroup(self.state)
        self._remedies = Remedies(self.state, self._regroup)
        watch = spec.watch
        self._limits = Limits(watch.hang_seconds, watch.host_seconds, watch.slow_ratio, watch.slow_steps)
        self._early_exits: Counter[str] = Counter()
        self._steps_judged = (0, 0)
        self._ticking = False
        self._judge_at = 0.0
        self._refused: set[str] = set()  # lost hosts whose return was told
        if self.state.journal.entries:
            self.state.tell("controller.restarted", generation=self.state.generation)

    def stop(self, reason: str) -> None:
        """A person or the driver ends the job."""
        self.state.fail(reason)

    def approve(self, fault: str, named: float | None, who: str) -> bool:
        """A person allows what was advised. False where nothing waits for it."""
        return self._remedies.approve(fault, named, who)

    # -- what agents say ----------------------------------------------------------------------------------------------

    def handle(self, host: str, message: p.ToController) -> None:
        """One message of a host's agent."""
        state = self.state
        if host in state.roster.lost:
            self._refuse(host)
            return
        known = state.roster.hosts[host]
        known.heard = state.clock()
        if isinstance(message, p.Register):
            self._register(host, message)
        elif isinstance(message, p.Report):
            if not known.registered or message.events != known.events:
                self._ask(host)
            state.fleet.report(host, message.processes, known.heard, message.late)
        elif not known.registered or message.event != known.events + 1:
            self._ask(host)  # something was lost: the whole state will come, and this event in it
        else:
            known.events = message.event
            self._happened(host, message)
            self._advance()

    def _refuse(self, host: str) -> None:
        self.state.send(host, p.Refused(self.state.generation))
        if host not in self._refused:
            self._refused.add(host)
            self.state.tell("host.refused", host=host, generation=self.state.generation)

    def _ask(self, host: str) -> None:
        known, now = self.state.roster.hosts[host], self.state.clock()
        if now - known.asked > ASK_SECONDS:
            known.asked = now
            self.state.send(host, p.WhoAreYou())

    def _register(self, host: str, register: p.Register) -> None:
        state, roster = self.state, self.state.roster
        known = roster.hosts[host]
        known.address, known.port, known.events = register.address, register.port, register.events
        if not known.registered:
            state.tell("host.joined", host=host, address=register.address)
        known.registered = True
        alive = {process.pid for process in register.processes}
        for process in register.processes:
            roster.process(host, process.slot, process.pid).ready = process.ready
        for proc in roster.of_host(host):
            if proc.pid not in alive:
                tail = "its end was not seen: the line to its agent was down"
                self._exited(host, p.Exited(0, proc.slot, proc.pid, 0, 0, "", tail))
        if state.stage != "recover":
            for process in register.processes:
                for message in process.last:
                    self._from_rank(roster.process(host, process.slot, process.pid), message)
            self._regroup.prepare_if_missing(host)
        self._advance()

    def _happened(self, host: str, event: p.Event) -> None:
        roster = self.state.roster
        if isinstance(event, p.FromRank):
            self._from_rank(roster.process(host, event.slot, event.pid), event.message)
        elif isinstance(event, p.Started):
            roster.process(host, event.slot, event.pid)
        elif isinstance(event, p.Exited):
            self._exited(host, event)
        elif isinstance(event, p.Inventory):
            self._regroup.inventory(host, event)
        elif isinstance(event, p.PlaceFailed):
            self._regroup.place_failed(host, event)
        else:
            self.state.tell("refused", host=host, counts=event.counts)

    def _from_rank(self, proc: Proc, message: m.ToAgent) -> None:
        state = self.state
        if isinstance(message, m.Ready):
            if not proc.ready and state.stage == "run":
                state.tell("spare.ready", host=proc.host, slot=proc.slot, pid=proc.pid)
            proc.ready = True
            return
        rank = state.roster.rank_of(proc)
        if rank is None or proc.out or getattr(message, "generation", state.generation) != state.generation:
            return
        if isinstance(message, m.StoreServing):
            self._regroup.store_serving(proc, message)
        elif isinstance(message, m.Joined):
            self._regroup.joined(rank, message.step)
        elif isinstance(message, m.Broken) and state.stage in {"run", "form"}:
            state.broken.setdefault(rank, (state.clock(), message.error))
        elif isinstance(message, m.Bad):
            self._remedies.bad(proc, message)
        elif isinstance(message, m.Halt):
            state.fail(message.reason)
        elif isinstance(message, m.Committed):
            state.commit(message.step)
            self._remedies.close_repaired(message.step)
        elif isinstance(message, m.MayCommit):
            state.to_rank(proc, m.Permit(message.step, state.stage == "run"))
        elif isinstance(message, m.Finished):
            state.results[rank] = message.result
            state.journal.write("finished", rank=rank, result=message.result)

    def _exited(self, host: str, exited: p.Exited) -> None:
        state = self.state
        proc = state.roster.ended(host, exited.pid)
        if proc is None:
            return
        rank = state.roster.rank_of(proc)
        if exited.record:
            state.fleet.report(host, [p.Seen(exited.slot, exited.pid, exited.record, 0.0, "X", 0.0, 0.0)], state.clock())
        status = status_name(exited.status)
        state.tell("process.ended", host=host, slot=exited.slot, pid=exited.pid, status=status, rank=rank, replaced=proc.out)
        if state.over or proc.out:
            return
        if rank is None:
            if not proc.ready:
                self._early_exit(proc, exited)
        elif state.stage != "recover" and rank not in state.results:
            echoes = [(other, error) for other, (_, error) in sorted(state.broken.items()) if other != rank]
            self._remedies.fault(judge_exit(rank, exited, echoes), status=exited.status)

    def _early_exit(self, proc: Proc, exited: p.Exited) -> None:
        state = self.state
        self._early_exits[proc.card] += 1
        if self._early_exits[proc.card] < EARLY_EXITS:
            return
        state.keep_out(proc.card, f"its process ended {EARLY_EXITS} times before it was ready")
        if state.roster.usable_cards() < state.spec.world:
            state.fail(
                f"the process of {proc.card} ended with {status_name(exited.status)} before it was ready; its log "
                f"{exited.log}: {exited.tail.strip()[-600:]}"
            )

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called ten times a second."""
        self._ticking = True
        if self.state.stage in {"run", "form"} and self.state.clock() >= self._judge_at:
            # Four times while every host reports once: on a large fleet, a window costs milliseconds.
            self._judge_at = self.state.clock() + self.state.spec.report_seconds / 4 - TICK_SLACK
            self._judge()
        if self.state.stage in {"collect", "wait"}:
            self._lose_silent()
        if self.state.stage == "run" and self.state.broken:
            self._judge_broken()
        self._advance()
        self._ticking = False

    def _judge(self) -> None:
        window = self.state.fleet.window(self.state.clock())
        steps, self._steps_judged = self._steps_judged, (window.generation, window.steps_seen)
        for judge in JUDGES if self.state.stage == "run" else JUDGES_WHILE_FORMING:
            if judge is judge_slow and steps == self._steps_judged:
                continue  # nothing was added to what it looks at
            verdicts = [verdict for verdict in judge(window, self._limits) if not self._remedies.is_borne(verdict, window)]
            for verdict in verdicts:
                if not self.state.over:
                    self._remedies.fault(verdict, window)
            if verdicts:
                return

    def _lose_silent(self) -> None:
        """A host that answers nothing during a regroup would hold up all others."""
        state, live = self.state, self.state.roster.live()
        now = state.clock()
        silent = [host for host in live if now - state.roster.hosts[host].heard > state.watch.host_seconds]
        if silent and len(silent) < len(live):
            for host in silent:
                state.lose(host)
            self._regroup.begin(f"host {', '.join(silent)} went silent during a regroup")

    def _judge_broken(self) -> None:
        state = self.state
        onset = state.clock() - min(at for at, _ in state.broken.values())
        if onset > BROKEN_SECONDS:
            errors = "; ".join(f"rank {rank}: {error[:120]}" for rank, (_, error) in sorted(state.broken.items())[:3])
            self._remedies.fault(Verdict("unknown", (), f"a collective broke, every process lives ({errors})", (), onset=onset))

    def _advance(self) -> None:
        """Goes on to the next stage where what was waited for is there."""
        state, world = self.state, self.state.spec.world
        if state.stage == "gather":
            if self._ticking:  # of 18,432 ranks each one's word that it is ready would have all of them counted
                self._gather()
        elif (late := self._regroup.late()) is not None:
            self._remedies.fault(late)
        else:
            self._regroup.advance()
        if state.stage in {"run", "form"} and len(state.results) == world:
            self._remedies.close_all()
            state.finish()

    def _gather(self) -> None:
        state, world = self.state, self.state.spec.world
        ready, slow = len(state.roster.candidates()), state.waited > state.watch.start_seconds
        if ready >= max(state.roster.usable_cards(), world) or (ready >= world and slow):
            self._regroup.begin("start")
        elif slow:
            state.fail(f"{ready} of {world} processes were ready after {state.waited:.0f} s")
