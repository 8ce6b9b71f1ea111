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
from ninthsky.guard.controller.silence import Silence
from ninthsky.guard.controller.state import JobState
from ninthsky.guard.controller.troubles import Troubles
from ninthsky.guard.controller.worlds import largest
from ninthsky.guard.judges import Limits, Verdict
from ninthsky.guard.judges.data import judge_data
from ninthsky.guard.judges.exit import status_name
from ninthsky.guard.judges.hang import judge_frozen, judge_hang
from ninthsky.guard.judges.host import judge_host
from ninthsky.guard.judges.slow import judge_slow
from ninthsky.guard.probe import messages as m
from ninthsky.guard.seen import Seen, pack
from ninthsky.guard.spec import JobSpec

BROKEN_SECONDS = 1.5  # a broken collective without an exit or a hang by then: the groups are rebuilt as they were
ASK_SECONDS = 0.3
TICK_SLACK = 0.02  # seconds; so that a judge that is due with every tick is not put off to the next
PEACE_SECONDS = 1.0  # between two looks of the judges while everything moves
EARLY_EXITS = 2  # ends of a slot's process before it was ready; then the slot is given up

# Judges that look at the window, in order: the first that speaks is heard.
JUDGES = (judge_host, judge_data, judge_hang, judge_slow)
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
        term: int = 0,
    ) -> None:
        self.state = JobState(spec, send, event, clock, wall, term)
        self._regroup = Regroup(self.state)
        self._remedies = Remedies(self.state, self._regroup)
        self._troubles = Troubles(self.state, self._remedies)
        watch = spec.watch
        self._limits = Limits(watch.hang_seconds, watch.host_seconds, watch.slow_ratio, watch.slow_steps)
        self._silence = Silence(self.state, self._remedies, self._regroup)
        self._early_exits: Counter[str] = Counter()
        self._steps_judged = (0, 0)
        self._answers: dict[m.Decide, list[Proc]] = {}
        self._ticking = False
        self._judge_at = 0.0
        self._peace_until = 0.0
        self._refused: set[str] = set()  # lost hosts whose return was told
        self._unwatched: list[tuple[int, p.Exited]] = []  # ranks that ended while no controller led
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
        else:
            for event in message.events if isinstance(message, p.Several) else [message]:
                if not known.registered or event.event != known.events + 1:
                    self._ask(host)  # something was lost: the whole state will come, and this event in it
                    break
                known.events = event.event
                self._happened(host, event)
            self._send_answers()
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
        self._troubles.take(host, register.notes)
        self._regroup.heard_generation(register.generation)
        alive = {process.pid for process in register.processes}
        ends = {ended.pid: ended for ended in register.ended}
        for process in register.processes:
            roster.process(host, process.slot, process.pid).ready = process.ready
        for proc in roster.of_host(host):
            if proc.pid not in alive:
                tail = "its end was not seen: the line to its agent was down"
                self._exited(host, ends.get(proc.pid) or p.Exited(0, proc.slot, proc.pid, 0, 0, "", tail))
        if state.stage != "recover":
            for process in register.processes:
                for message in process.last:
                    self._from_rank(roster.process(host, process.slot, process.pid), message)
            self._send_answers()
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
        elif isinstance(event, p.Doubled):
            self._regroup.doubled(host, event)
        elif isinstance(event, p.Notes):
            self._troubles.heard(host, event)
        elif isinstance(event, p.Tested):
            self.state.suspects.tested(host, event)
        elif isinstance(event, p.LinkServing):
            self.state.suspects.serving(host, event)
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
            self._answer(proc, self._remedies.bad(message))
        elif isinstance(message, m.Corrupt):
            self._answer(proc, self._remedies.corrupt(message))
        elif isinstance(message, m.Anomaly):
            self._troubles.anomaly(message)
        elif isinstance(message, m.Halt):
            self._troubles.halted(message.reason)
            state.fail(message.reason)
        elif isinstance(message, m.Committed):
            state.commit(message.step)
            self._remedies.close_repaired(message.step)
        elif isinstance(message, m.MayCommit):
            state.to_ranks([proc], m.Permit(message.step, state.permit(message.step)))
        elif isinstance(message, m.Finished):
            state.results[rank] = message.result
            state.journal.write("finished", rank=rank, result=message.result)

    def _answer(self, proc: Proc, answer: m.Decide | None) -> None:
        if answer is not None:
            self._answers.setdefault(answer, []).append(proc)

    def _send_answers(self) -> None:
        """Of what ranks of one host asked together: they get one message."""
        answers, self._answers = self._answers, {}
        for answer, procs in answers.items():
            self.state.to_ranks(procs, answer)

    def _exited(self, host: str, exited: p.Exited) -> None:
        state = self.state
        proc = state.roster.ended(host, exited.pid)
        if proc is None:
            return
        rank = state.roster.rank_of(proc)
        if exited.record:
            last = pack([Seen(exited.slot, exited.pid, exited.record, 0.0, "X", 0.0, 0.0)])
            state.fleet.report(host, last, state.clock())
        status = status_name(exited.status)
        state.tell("process.ended", host=host, slot=exited.slot, pid=exited.pid, status=status, rank=rank, replaced=proc.out)
        if state.over or proc.out:
            return
        if rank is None:
            if not proc.ready:
                self._early_exit(proc, exited)
        elif state.stage == "recover":
            self._unwatched.append((rank, exited))
        elif rank not in state.results:
            echoes = [(other, error) for other, (_, error) in sorted(state.broken.items()) if other != rank]
            self._remedies.ended(rank, exited, echoes)

    def _early_exit(self, proc: Proc, exited: p.Exited) -> None:
        state = self.state
        self._early_exits[proc.card] += 1
        if self._early_exits[proc.card] < EARLY_EXITS:
            return
        state.keep_out(proc.card, f"its process ended {EARLY_EXITS} times before it was ready")
        if not largest(state.spec.world, state.spec.worlds, state.roster.usable_cards()):
            state.fail(
                f"the process of {proc.card} ended with {status_name(exited.status)} before it was ready; its log "
                f"{exited.log}: {exited.tail.strip()[-600:]}"
            )

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called ten times a second."""
        self._ticking = True
        if self.state.stage in {"run", "form"} and self.state.clock() >= self._judge_at:
            # Twice while every host reports once: on a large fleet, a window costs milliseconds.
            self._judge_at = self.state.clock() + self.state.spec.report_seconds / 2 - TICK_SLACK
            if not self._at_peace():
                self._judge()
        self._silence.tick()
        if self.state.stage in {"run", "form"} and self.state.broken:
            self._judge_broken()
        elif self.state.stage == "run":
            self._regroup.grow()
        self.state.suspects.tick()
        self._advance()
        self._ticking = False

    def _at_peace(self) -> bool:
        """Nobody can be blamed yet, by what was heard last, and the judges have looked within this second."""
        state = self.state
        now = state.clock()
        return state.stage == "run" and now < self._peace_until and state.fleet.calm(now, self._limits)

    def _judge(self) -> None:
        self._peace_until = self.state.clock() + PEACE_SECONDS
        window = self.state.fleet.window(self.state.clock())
        steps, self._steps_judged = self._steps_judged, (window.generation, window.steps_seen)
        for judge in JUDGES if self.state.stage == "run" else JUDGES_WHILE_FORMING:
            if judge is judge_slow and steps == self._steps_judged:
                continue  # nothing was added to what it looks at
            spoken = judge(window, self._limits)
            self._peace_until = 0.0 if spoken else self._peace_until
            verdicts = [verdict for verdict in spoken if not self._remedies.is_borne(verdict, window)]
            for verdict in verdicts:
                if not self.state.over:
                    self._remedies.fault(verdict, window)
            if verdicts:
                return
            if spoken:
                break  # told before: the next judge would say the same in other words
            if judge is judge_data:
                self._remedies.ease("data", window)
        if self.state.stage == "run":
            self._troubles.judge(window, self._limits)

    def _judge_broken(self) -> None:
        state = self.state
        onset = state.clock() - min(at for at, _ in state.broken.values())
        if onset > BROKEN_SECONDS and not self._silence.doubtful:
            errors = "; ".join(f"rank {rank}: {error[:120]}" for rank, (_, error) in sorted(state.broken.items())[:3])
            self._remedies.fault(Verdict("unknown", (), f"a collective broke, every process lives ({errors})", (), onset=onset))

    def _advance(self) -> None:
        """Goes on to the next stage where what was waited for is there."""
        state = self.state
        if state.stage == "gather":
            if self._ticking:  # of 18,432 ranks each one's word that it is ready would have all of them counted
                self._gather()
        elif (late := self._regroup.late()) is not None:
            self._remedies.fault(late)
        else:
            self._regroup.advance()
            self._name_unwatched()
        if state.stage in {"run", "form"} and len(state.results) == state.world:
            self._remedies.close_all()
            state.finish()

    def _name_unwatched(self) -> None:
        """Ranks that ended while nobody watched are faults like others, as soon as every host has told what it has."""
        if self.state.stage == "recover":
            return
        unwatched, self._unwatched = self._unwatched, []
        for rank, exited in unwatched:
            if self.state.over or rank in self.state.results:
                continue
            told = next((f for f in self.state.book.open_ones() if (f.cause, f.rank) == ("exit", rank)), None)
            if told is None:
                self._remedies.ended(rank, exited, [])
            elif self.state.stage == "run":  # the one before named it, and came no further
                self._regroup.begin(str(told))

    def _gather(self) -> None:
        state, world = self.state, self.state.spec.world
        ready, slow = len(state.roster.candidates()), state.waited > state.watch.start_seconds
        if ready >= max(state.roster.usable_cards(), world) or (slow and largest(world, state.spec.worlds, ready)):
            self._regroup.begin("start")
        elif slow:
            state.fail(f"{ready} of {world} processes were ready after {state.waited:.0f} s")
