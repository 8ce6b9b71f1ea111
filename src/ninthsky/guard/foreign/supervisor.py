"""What happens to a foreign command, and what is done about it: one attempt after another, each a generation of ranks.

Knows no sockets and no processes: it is told of ranks, ends and messages, asks the judges, and says in `wanted` what it wants
done with the command.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from ninthsky import evidence
from ninthsky.guard import protocol as p
from ninthsky.guard.controller.fleet import Window
from ninthsky.guard.controller.known import Known
from ninthsky.guard.controller.ladder import Remedy
from ninthsky.guard.controller.state import JobState
from ninthsky.guard.faults import Fault
from ninthsky.guard.foreign.ends import PATIENCE, Member, first_end, listed, status_text
from ninthsky.guard.foreign.hang import judge_foreign_hang
from ninthsky.guard.foreign.messages import Adopt, Began, FromForeign, NotFinite, Raised
from ninthsky.guard.foreign.restarts import Restarts
from ninthsky.guard.judges import Limits, Verdict
from ninthsky.guard.judges.host import judge_host
from ninthsky.guard.judges.nonfinite import Vote, judge_nonfinite
from ninthsky.guard.judges.slow import judge_slow
from ninthsky.guard.seen import Seen, pack
from ninthsky.guard.spec import JobSpec
from ninthsky.run.folder import write_json

_GENERATION = slice(4, 8)  # of a record's bytes

Wanted = Literal["", "again", "stop"]


class Supervisor:
    """`wanted` and `frozen` (pids to be ended first) are for whoever holds the command; `begin` tells that it was started."""

    def __init__(
        self,
        spec: JobSpec,
        event: Callable[..., None],
        restarts: Restarts,
        stuck_seconds: float,
        log: Callable[[], str],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`log`: the last lines of the command's error output."""
        self.state = JobState(spec, lambda host, command: None, event, clock, wall)
        self.restarts, self.wanted, self.frozen = restarts, "", []
        self._stuck_seconds, self._log = stuck_seconds, log
        watch = spec.watch
        self._limits = Limits(watch.hang_seconds, watch.host_seconds, watch.slow_ratio, watch.slow_steps)
        self._members: dict[int, Member] = {}  # by rank, of this generation once it is formed
        self._of_pid: dict[int, Member] = {}
        self._broken = False  # a fault has ended this generation: what ends now are echoes
        self._told: dict[tuple[str, tuple[int, ...]], Fault] = {}
        self._advised: dict[str, Remedy] = {}
        self._bad: dict[int, tuple[float, dict[int, bool]]] = {}  # step -> when first told; rank -> before the reduce
        self._reached = -1
        self._trained = False
        self._judged = -1
        self._stopped = False

    wanted: Wanted
    frozen: list[int]

    # -- what is told -------------------------------------------------------------------------------------------------

    def rank(self, host: str, slot: int, adopt: Adopt) -> None:
        """A rank came, or came again."""
        state = self.state
        before = self._members.get(adopt.rank)
        if before is not None and before.adopt.pid == adopt.pid:
            before.adopt, before.began = adopt, max(before.began, adopt.began)
            return
        if before is not None and before.ended is None:
            return  # two processes say that they are this rank: the first one counts
        if state.stage == "run" and all(member.ended is not None for member in self._members.values()):
            self._again_by_itself()
        proc = state.roster.process(host, slot, adopt.pid)
        proc.ready = True
        self._members[adopt.rank] = self._of_pid[adopt.pid] = Member(proc, adopt, adopt.began)
        state.roster.hosts[host].registered = True
        if set(self._members) == set(range(adopt.world)) and not any(member.ended for member in self._members.values()):
            self._form()

    def message(self, pid: int, message: FromForeign) -> None:
        member = self._of_pid.get(pid)
        if member is None:
            return
        if isinstance(message, Raised):
            member.raised = message
        elif isinstance(message, Began):
            member.began = message.step
        elif isinstance(message, NotFinite) and self.state.stage == "run":
            _, ranks = self._bad.setdefault(message.step, (self.state.clock(), {}))
            ranks[member.adopt.rank] = message.before_reduce

    def ended(self, host: str, exited: p.Exited) -> None:
        """A rank's process ended."""
        state, member = self.state, self._of_pid.pop(exited.pid, None)
        state.roster.ended(host, exited.pid)
        if member is None:
            return
        if exited.record and state.stage == "run":
            self.report(host, [Seen(exited.slot, exited.pid, exited.record, 0.0, "X", 0.0, 0.0)], 0.0)
        tail = member.raised.traceback if member.raised else ""
        member.ended, member.ended_at = msgspec.structs.replace(exited, tail=tail), state.clock()
        state.tell(
            "process.ended", host=host, slot=exited.slot, pid=exited.pid, status=status_text(exited.status),
            rank=member.adopt.rank, replaced=self._broken,
        )  # fmt: skip

    def report(self, host: str, seen: list[Seen], late: float) -> None:
        """A look at the ranks of a host. Foreign records know no generations: ours is written into them."""
        state = self.state
        mark = state.generation.to_bytes(4, "little")
        marked = [
            msgspec.structs.replace(one, record=one.record[: _GENERATION.start] + mark + one.record[_GENERATION.stop :])
            if one.record
            else one
            for one in seen
        ]
        state.roster.hosts[host].heard = state.clock()
        if state.generation:
            state.fleet.report(host, pack(marked), state.clock(), late)

    def command_ended(self, status: int) -> None:
        """The command itself ended, by itself or by a signal that was passed on."""
        state = self.state
        if self.wanted or state.over:
            return
        if status == 0:
            for fault in list(state.book.open_ones()):
                self._close(fault)
            state.finish()
        else:
            self._judge_ends(final=True)
            if not self.wanted:
                state.fail(f"the command ended with {status_text(status)}")

    @property
    def missing(self) -> str:
        """Which ranks have not come, where some have; for a person."""
        came, worlds = set(self._members), {member.adopt.world for member in self._members.values()}
        absent = sorted(set(range(max(worlds, default=0))) - came)
        return f"ranks {listed(absent)} have not come" if absent and self.state.stage == "gather" else ""

    @property
    def all_ended(self) -> bool:
        """Whether every rank's process of this attempt has ended."""
        return self.state.stage == "run" and all(member.ended is not None for member in self._members.values())

    def status(self) -> int:
        """Of ranks that nobody's command stands for: the first that did not end well, else 0."""
        return next((member.ended.status for member in self._members.values() if member.badly and member.ended), 0)

    def stop_asked(self) -> None:
        """A person ends the command: what ends now is no fault."""
        self._stopped = True

    def begin(self) -> None:
        """The command is started, for the first time or again."""
        state = self.state
        for member in self._members.values():
            state.roster.ended(member.proc.host, member.proc.pid)
        self._members, self._of_pid, self._bad = {}, {}, {}
        self._reached = max(self._reached, state.fleet.step())
        self.wanted, self.frozen, self._broken = "", [], False
        state.enter("gather")

    def approve(self, id: str, named: float | None, who: str) -> bool:
        """A person allows what was advised."""
        fault = next((fault for fault in self.state.book.faults if fault.id == id), None)
        remedy = self._advised.get(id)
        if fault is None or remedy is None or fault.state != "advised" or fault.timeline.named != named:
            return False
        del self._advised[id]
        fault.state = "open"
        self._do(fault, remedy, f"{remedy.text} (approved by {who})")
        return True

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Ten times a second."""
        if self.state.stage != "run":
            return
        self._note_first_step()
        if not self._broken and not self._stopped:
            window = self.state.fleet.window(self.state.clock())
            self._judge_ends()
            self._judge_gradients(window)
            self._judge(window)

    def _judge(self, window: Window) -> None:
        ended = frozenset(rank for rank, member in self._members.items() if member.well)
        if self._broken or any(member.badly for member in self._members.values()):
            return  # an end is judged first
        found = judge_host(window, self._limits)  # of several
        found = found or judge_foreign_hang(window, self._limits, self._stuck_seconds, ended)
        if not found and not ended and window.steps_seen != self._judged:
            self._judged = window.steps_seen
            found = judge_slow(window, self._limits)
        for verdict in found:
            if not self._broken:
                self._fault(verdict, window)
        if not found:
            self._went_on(window)

    def _judge_ends(self, final: bool = False) -> None:
        if self._broken or self._stopped or not any(member.badly for member in self._members.values()):
            return
        now = self.state.clock()
        window = self.state.fleet.window(now)
        end = first_end(self._members.values(), window, now, self._log(), final=final)
        if end is not None:
            self._fault(end.verdict, window, end.known, end.error)

    def _judge_gradients(self, window: Window) -> None:
        """A step's bad gradients, once every rank is past that step or had time to be."""
        for step, (at, ranks) in sorted(self._bad.items()):
            past = bool((window.record["step"][window.known] > step).all())
            if self._broken or (not past and self.state.clock() - at < PATIENCE):
                return
            self._bad = {later: told for later, told in self._bad.items() if later < step}
            own = tuple(sorted(rank for rank, before in ranks.items() if before))
            _, verdict = judge_nonfinite(step, [Vote(0, own)], window.ranks)
            if not own and ranks:
                verdict = Verdict(
                    "nonfinite", (), f"gradients are not finite after they were added up, on ranks {listed(sorted(ranks))}",
                    (), ("nobody: they were not seen before the reduce",), 0.5,
                )  # fmt: skip
            self._fault(verdict, window, step=step)
            return

    def _note_first_step(self) -> None:
        """Every rank of an attempt has done a step: from here they went on, and the fault before is over."""
        if self._trained or any(member.began < 0 for member in self._members.values()):
            return
        state = self.state
        self._trained = True
        resumed = min(member.began for member in self._members.values()) - 1
        state.tell("joined", generation=state.generation, resume_step=resumed, disk=resumed >= 0)
        for fault in list(state.book.open_ones()):
            if fault.resumed_generation == state.generation:
                fault.resume_step, fault.steps_redone = resumed, max(0, self._reached - resumed)
                self._close(fault)
        self._reached = -1

    # -- faults -------------------------------------------------------------------------------------------------------

    def _fault(self, verdict: Verdict, window: Window, known: Known | None = None, error: str = "", step: int = -1) -> None:
        state = self.state
        key = (verdict.cause, verdict.ranks)
        if key in self._told:
            return
        at = step if step >= 0 else max(state.fleet.step(), 0)
        if known is not None:
            verdict = replace(verdict, facts=(*verdict.facts, known.fact), playbook=known.cause)
        fault = self._told[key] = state.book.open(self._with_pids(verdict), window, at, state.wall())
        remedy = self.restarts.remedy(verdict, known, error, step)
        acts = state.watch.action == "act"
        ends = verdict.cause in {"exit", "unknown"}
        state.book.remedy(fault, remedy.text if acts or remedy.rung in {"stop", "bear"} else f"advised only: {remedy.text}")
        state.tell("fault.named", **fault.named())
        state.journal.write("fault", id=fault.id, cause=fault.cause, card=fault.card, rung=remedy.rung)
        self._broken = self._broken or ends or verdict.cause == "mismatch"
        if remedy.rung == "bear" or not acts:
            fault.state = "advised"
            state.book.save(fault)
            if remedy.rung == "restart":
                self._advised[fault.id] = remedy
                state.tell("fault.advised", fault=fault.id, remedy=remedy.text)
        else:
            self._do(fault, remedy)
        self._write_evidence()

    def _do(self, fault: Fault, remedy: Remedy, text: str = "") -> None:
        state = self.state
        if text:
            state.book.remedy(fault, text)
        self._broken = True
        # What is spoilt is ended without grace, wherever it is: every rank has the bad gradient by now.
        first = self._members if fault.cause == "nonfinite" else remedy.evict
        self.frozen = [self._members[rank].adopt.pid for rank in first if self._members[rank].ended is None]
        if remedy.rung == "restart":
            self.restarts.done += 1
            self.wanted = "again"
            state.enter("wait")
        else:
            fault.state = "stopped"
            state.book.save(fault)
            self.wanted = "stop"
            state.fail(f"{fault}; {remedy.text}")

    def _went_on(self, window: Window) -> None:
        """What was told as frozen or stuck moves again: nobody has to look any more."""
        for key, fault in list(self._told.items()):
            cause, ranks = key
            if cause not in {"frozen", "stuck"} or fault.state != "advised" or not ranks:
                continue
            if max(window.quiet[rank] for rank in ranks) < 0.5 and max(window.heartbeat_age[rank] for rank in ranks) < 0.5:
                self.state.book.remedy(fault, "it went on by itself")
                self._advised.pop(fault.id, None)
                self._close(fault)
                del self._told[key]

    def _close(self, fault: Fault) -> None:
        fault.state, fault.timeline.trained = "repaired", self.state.wall()
        self.state.book.save(fault)
        self.state.tell("fault.repaired", **fault.repaired())
        self._write_evidence()

    def _write_evidence(self) -> None:
        """What `n9 why F-0001 --run FOLDER` reads."""
        path = Path(self.state.spec.folder) / "evidence.jsonl"
        path.write_bytes(b"".join(evidence.encode(fault.evidence) + b"\n" for fault in self.state.book.faults))

    def _with_pids(self, verdict: Verdict) -> Verdict:
        pids = [
            evidence.Fact("process", str(self._members[rank].adopt.pid), source=f"rank {rank}") for rank in verdict.ranks[:4]
        ]
        return replace(verdict, facts=(*verdict.facts, *pids))

    # -- generations --------------------------------------------------------------------------------------------------

    def _form(self) -> None:
        """Every rank is there."""
        state = self.state
        state.generation += 1
        members = [self._members[rank] for rank in range(len(self._members))]
        state.world = len(members)
        state.roster.places = [member.proc for member in members]
        reason = "start" if state.generation == 1 else "every rank has been started again"
        state.journal.write("generation", generation=state.generation, reason=reason)
        state.journal.write("places", generation=state.generation, resume_step=-1, places=state.roster.table())
        state.fleet.begin(state.generation, state.roster.table(), state.clock())
        state.enter("run")
        self._told, self._trained, self._judged, self._broken = {}, False, -1, False
        state.tell("generation", generation=state.generation, reason=reason)
        named = {str(rank): member.proc.card for rank, member in self._members.items()}
        state.tell("formed", generation=state.generation, resume_step=-1, places=named)
        for fault in state.book.open_ones():
            fault.resumed_generation, fault.timeline.joined = state.generation, state.wall()
            state.book.save(fault)

    def _again_by_itself(self) -> None:
        """The launcher has started its ranks again, without us: what was told about the old ones is over once they train."""
        for fault in self.state.book.faults:
            if fault.state == "advised" and fault.cause in {"exit", "unknown", "frozen", "stuck"}:
                fault.state = "open"
                self._advised.pop(fault.id, None)
                self.state.book.remedy(fault, "its launcher started all ranks again")
        self.begin()

    def write_result(self, status: int, seconds: float, attempts: int) -> None:
        """result.json, as every job has it; processor seconds are the guard's own and the command's."""
        own, command = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        state = self.state
        write_json(
            Path(state.spec.folder) / "result.json",
            {
                "ok": state.stage == "done", "reason": state.reason if state.stage == "failed" else "",
                "generation": state.generation, "committed": state.committed, "results": {}, "status": status,
                "attempts": attempts, "faults": [fault.id for fault in state.book.faults], "seconds": round(seconds, 3),
                "guard_cpu_seconds": round(own.ru_utime + own.ru_stime, 3),
                "command_cpu_seconds": round(command.ru_utime + command.ru_stime, 3),
            },
        )  # fmt: skip
