"""Faults: named, decided on by the ladder, acted on where that is allowed, and closed when training has gone on."""

from __future__ import annotations

from dataclasses import replace

from ninthsky.guard.controller.fleet import Window
from ninthsky.guard.controller.ladder import Remedy, climb, climb_nonfinite, is_program_error
from ninthsky.guard.controller.regroup import Regroup
from ninthsky.guard.controller.roster import Proc
from ninthsky.guard.controller.state import JobState
from ninthsky.guard.controller.votes import BadStep
from ninthsky.guard.faults import Fault
from ninthsky.guard.judges import Verdict
from ninthsky.guard.probe import messages as m


class Remedies:
    """What is done about verdicts. A regroup is the only remedy that moves ranks."""

    def __init__(self, state: JobState, regroup: Regroup) -> None:
        self._state, self._regroup = state, regroup
        self._bad_steps: dict[int, BadStep] = {}
        self._borne: dict[tuple[str, str], Fault] = {}  # (cause, card) that was told, and nothing is done about
        self._advised: dict[str, Remedy] = {}  # by fault: what would be done, were it allowed

    def fault(self, verdict: Verdict, window: Window | None = None, status: int = 0) -> None:
        """Names a fault, decides, and acts if it may. `status`: exit status where a process ended."""
        state = self._state
        window = window or state.fleet.window(state.clock())
        step = max(state.fleet.step(), state.resume_step + 1)
        remedy = climb(verdict, state.history, state.watch, step, state.wall(), status, state.roster.spares())
        if is_program_error(status):
            state.history.program_errors[step] += 1
        fault = self._borne.pop((verdict.cause, _card(verdict, window)), None)
        if fault is None:
            self._apply(state.book.open(verdict, window, step, state.wall()), remedy, window)
        else:
            fault.state = "open"
            state.book.amend(fault, verdict)
            self._apply(fault, remedy, window, "fault.rung")

    def bad(self, proc: Proc, bad: m.Bad) -> None:
        """Every rank reports the same vote and gets the same answer; the first report decides."""
        step = self._bad_steps.setdefault(bad.step, BadStep(bad.step))
        key = (self._state.generation, bad.attempt)
        if key not in step.answers:
            self._decide(step, bad)
        if key in step.answers:
            self._state.to_rank(proc, step.answers[key])

    def approve(self, id: str, named: float | None, who: str) -> bool:
        """A person allows what was advised for a fault. False where nothing waits for it, or its card moved."""
        state, remedy = self._state, self._advised.get(id)
        fault = next((fault for fault in state.book.faults if fault.id == id), None)
        if remedy is None or fault is None or fault.state != "advised" or fault.timeline.named != named or state.stage != "run":
            return False
        if fault.card and any(state.roster.places[rank].card != fault.card for rank in remedy.evict):
            return False
        del self._advised[id]
        self._borne.pop((fault.cause, fault.card), None)
        fault.state = "open"
        allowed = replace(remedy, text=f"{remedy.text} (approved by {who})")
        self._apply(fault, allowed, state.fleet.window(state.clock()), "fault.rung", approved=True)
        return True

    def is_borne(self, verdict: Verdict, window: Window) -> bool:
        """Whether this was told before and nothing better is at hand now: a slow card is borne until a spare is ready."""
        if (verdict.cause, _card(verdict, window)) not in self._borne:
            return False
        state = self._state
        return state.watch.action == "advise" or verdict.cause != "slow" or state.roster.spares() < len(verdict.ranks)

    def close_repaired(self, step: int) -> None:
        """Committed(step) is said after the gate of step + 1: the first common step after the fault was done."""
        state = self._state
        state.history.rebuilds = 0
        for fault in list(state.book.open_ones()):
            passed = fault.cause not in {"nonfinite", "outlier"} or step >= fault.step
            repaired = fault.resumed_generation == state.generation and passed
            if state.stage == "run" and repaired:
                self._close(fault)

    def close_all(self) -> None:
        """The job's last step is the proof for those still open."""
        for fault in list(self._state.book.open_ones()):
            self._close(fault)

    # -- within -------------------------------------------------------------------------------------------------------

    def _apply(
        self, fault: Fault, remedy: Remedy, window: Window, kind: str = "fault.named", *, approved: bool = False
    ) -> None:
        state = self._state
        free = remedy.rung in {"redo", "rotate"}  # these two change nothing that was asked for
        acts = state.watch.action == "act" or free or approved
        state.book.remedy(fault, remedy.text if acts else f"advised only: {remedy.text}")
        state.tell(kind, **fault.named())
        state.journal.write("fault", id=fault.id, cause=fault.cause, card=fault.card, rung=remedy.rung)
        if remedy.rung == "stop":
            fault.state = "stopped"
            state.book.save(fault)
            state.fail(f"{fault}; {remedy.text}")
        elif not acts or remedy.rung == "bear":
            if remedy.rung in {"regroup", "rebuild"}:
                self._advised[fault.id] = remedy
            self._bear(fault, remedy)
        elif remedy.rung in {"regroup", "rebuild"}:
            state.history.rebuilds += remedy.rung == "rebuild"
            if fault.cause == "host":
                for host in sorted({state.roster.places[rank].host for rank in remedy.evict}):
                    state.lose(host)
            for rank in remedy.evict:
                self._evict(state.roster.places[rank], fault)
            if state.stage in {"collect", "wait"}:
                fault.resumed_generation = state.generation  # the regroup under way repairs this one too
                state.enter("collect")
            else:
                self._regroup.begin(str(fault))

    def _bear(self, fault: Fault, remedy: Remedy) -> None:
        """Nothing is done, by the person's wish or because nothing better is at hand. Told once."""
        state = self._state
        fault.state = "advised"
        state.book.save(fault)
        self._borne[fault.cause, fault.card] = fault
        state.tell("fault.advised", fault=fault.id, remedy=remedy.text)
        if fault.cause in {"exit", "nonfinite"}:  # here the ranks cannot go on by themselves
            state.fail(f'{fault}. Nothing was done, because [guard] action is "advise". Advised: {remedy.text}')

    def _evict(self, proc: Proc, fault: Fault) -> None:
        state = self._state
        proc.out = True
        if fault.cause == "host":
            return
        now = state.wall()
        state.history.evictions.append(now)
        state.history.card_failures[proc.card] += 1
        state.journal.write("eviction", at=now, card=proc.card)
        if state.history.card_failures[proc.card] >= state.watch.card_failures:
            state.keep_out(proc.card, f"it failed {state.history.card_failures[proc.card]} times")

    def _decide(self, step: BadStep, bad: m.Bad) -> None:
        state = self._state
        finding, verdict = step.judge(state.generation, bad, state.spec.world)
        remedy = climb_nonfinite(finding, len(step.votes), step.first_rank, state.watch, bad.what)
        window = state.fleet.window(state.clock())
        kind = "fault.named" if step.fault is None else "fault.rung"
        if step.fault is None:
            step.fault = state.book.open(verdict, window, bad.step, state.wall())
        else:
            state.book.amend(step.fault, verdict)
        if remedy.rung in {"redo", "rotate"} or (remedy.rung == "skip" and state.watch.action == "act"):
            step.decided(state.generation, bad.attempt, remedy.rung)
            step.fault.resumed_generation, step.fault.resume_step = state.generation, bad.step - 1
            step.fault.steps_redone += remedy.rung != "skip"
        elif bad.what == "outlier" and state.watch.action == "advise" and remedy.rung != "stop":
            step.decided(state.generation, bad.attempt, "apply")
        elif remedy.rung == "regroup":
            step.card_replaced()
        self._apply(step.fault, remedy, window, kind)

    def _close(self, fault: Fault) -> None:
        fault.state, fault.timeline.trained = "repaired", self._state.wall()
        self._state.book.save(fault)
        self._state.tell("fault.repaired", **fault.repaired())


def _card(verdict: Verdict, window: Window) -> str:
    """The card a fault of this verdict is filed under, as in FaultBook.open."""
    return window.place(verdict.ranks[0]) if verdict.ranks and verdict.cause != "host" else ""
