"""Faults: named, decided on by the ladder, acted on where that is allowed, and closed when training has gone on."""

from __future__ import annotations

from dataclasses import replace

from ninthsky.guard import protocol as p
from ninthsky.guard.controller.corruption import Corruption
from ninthsky.guard.controller.fleet import Window
from ninthsky.guard.controller.known import Known, known_cause
from ninthsky.guard.controller.ladder import Means, Remedy, climb, climb_nonfinite, is_program_error
from ninthsky.guard.controller.regroup import Regroup
from ninthsky.guard.controller.roster import Proc
from ninthsky.guard.controller.state import JobState
from ninthsky.guard.controller.votes import BadStep
from ninthsky.guard.controller.worlds import largest
from ninthsky.guard.faults import Fault
from ninthsky.guard.judges import Verdict
from ninthsky.guard.judges.exit import judge_exit
from ninthsky.guard.playbook.book import shipped
from ninthsky.guard.probe import messages as m

WARNED_SECONDS = 3_600.0  # before a warning about the same card or host is given again
EASED_SECONDS = 1.0  # without progress anywhere; less, and ranks get on
EASED = 16  # newest faults that may be over
MOVES = frozenset({"rebuild", "regroup", "shrink", "restart", "rollback"})  # rungs that form a new generation


class Remedies:
    """What is done about verdicts. A regroup is the only remedy that moves ranks."""

    def __init__(self, state: JobState, regroup: Regroup) -> None:
        self._state, self._regroup = state, regroup
        self._bad_steps: dict[int, BadStep] = {}
        self._corruption = Corruption(state.watch)
        self._borne: dict[tuple[str, str], Fault] = {}  # (cause, card) that was told, and nothing is done about
        self._advised: dict[str, Remedy] = {}  # by fault: what would be done, were it allowed
        self._warned: dict[tuple[str, str], Fault] = {}  # (cause in the playbook, card or host) of which advice was given

    def ended(self, rank: int, exited: p.Exited, echoes: list[tuple[int, str]]) -> None:
        """The process of a rank ended. What its log says may forbid that anything is started again."""
        known = known_cause(exited.tail) if is_program_error(exited.status) else None
        verdict = judge_exit(rank, exited, echoes)
        if known is not None:
            verdict = replace(verdict, facts=(*verdict.facts, known.fact))
        self.fault(verdict, status=exited.status, known=known)

    def fault(self, verdict: Verdict, window: Window | None = None, status: int = 0, known: Known | None = None) -> None:
        """Names a fault, decides, and acts if it may. `status`: exit status where a process ended; `known`: its last words."""
        state = self._state
        window = window or state.fleet.window(state.clock())
        step = max(state.fleet.step(), state.resume_step + 1)
        verdict = state.sightings.explain(verdict, window)
        if verdict.hard:  # the card's fault, whatever the program said of it as it ended
            status, known = min(status, 0), None
        remedy = climb(verdict, state.history, state.watch, step, state.wall(), status, self._means(verdict), known)
        if is_program_error(status):
            state.history.program_errors[step] += 1
        fault = self._borne.pop((verdict.cause, _card(verdict, window)), None) or self._foretold(verdict, window, step)
        if fault is None:
            fault = state.book.open(verdict, window, step, state.wall())
            if verdict.cause == "unknown" and not verdict.ranks:
                state.suspects.doubt_links(self._hosts_in_doubt(window), fault)
            self._apply(fault, remedy, window)
        else:
            fault.state = "open"
            state.book.amend(fault, verdict)
            self._apply(fault, remedy, window, "fault.rung")

    def _hosts_in_doubt(self, window: Window) -> list[str]:
        """Where collectives broke, the first first; of a hang in which all stand, all hosts."""
        broken = sorted(self._state.broken, key=lambda rank: self._state.broken[rank][0])
        return list(dict.fromkeys(window.hosts[rank] for rank in (broken or range(window.ranks))))

    def warn(self, verdict: Verdict, window: Window) -> None:
        """Advice about a card or a host, told once; a fault that comes of it later goes on under the same number."""
        state = self._state
        place = window.place(verdict.ranks[0]) if verdict.ranks else verdict.host
        before = self._warned.get((verdict.playbook, place))
        if before is not None and state.wall() - (before.timeline.named or 0.0) < WARNED_SECONDS:
            return
        step = max(state.fleet.step(), state.resume_step + 1)
        fault = self._warned[verdict.playbook, place] = state.book.open(verdict, window, step, state.wall())
        fault.state = "advised"
        known = shipped().causes.get(verdict.playbook)
        drain = f"drain {place} at the next checkpoint. " if known is None or known.kind == "hardware" else ""
        state.book.remedy(fault, f"advised only: {drain}{known.person if known else ''}".strip())
        state.tell("fault.named", **fault.named())
        state.journal.write("fault", id=fault.id, cause=fault.cause, card=fault.card, rung="bear")
        if verdict.ranks and drain:
            text = "regrouped, another card takes the place: its host told of trouble"
            self._advised[fault.id] = Remedy("regroup", text, verdict.ranks)

    def _foretold(self, verdict: Verdict, window: Window, step: int) -> Fault | None:
        """The warning that this fault comes of, which becomes it."""
        if not verdict.playbook or not verdict.ranks or verdict.cause == "host":
            return None
        state = self._state
        places = (_card(verdict, window), window.hosts[verdict.ranks[0]])
        key = next(((verdict.playbook, place) for place in places if (verdict.playbook, place) in self._warned), None)
        if key is None:
            return None
        fault = self._warned.pop(key)
        if fault.state != "advised":
            return None
        self._advised.pop(fault.id, None)
        state.book.turn_into(fault, verdict, window, step, state.wall())
        return fault

    def _means(self, verdict: Verdict) -> Means:
        """What would be left, were the blamed cards out."""
        state, roster = self._state, self._state.roster
        places = [roster.places[rank] for rank in verdict.ranks]
        if verdict.cause == "host":
            cards = roster.usable_cards({proc.host for proc in places})
        else:
            last = state.watch.card_failures - 1
            gone = {proc.card for proc in places if state.history.card_failures[proc.card] >= last} - roster.kept_out
            cards = roster.usable_cards() - len(gone)
        room = largest(state.spec.world, state.spec.worlds, cards)
        return Means(state.world, room, roster.spares(), state.saved)

    def bad(self, bad: m.Bad) -> m.Decide | None:
        """Every rank reports the same vote and gets the same answer; the first report decides. None where there is no answer:
        a new generation begins, or the job has ended."""
        step = self._bad_steps.setdefault(bad.step, BadStep(bad.step))
        key = (self._state.generation, bad.attempt)
        if key not in step.answers:
            self._decide(step, bad)
        return step.answers.get(key)

    def corrupt(self, told: m.Corrupt) -> m.Decide | None:
        """As `bad`: numbers that are wrong and finite."""
        key = (self._state.generation, told.step, told.attempt)
        if key not in self._corruption.faults:
            self._wrong(told, key)
        return self._corruption.answers.get(key)

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

    def ease(self, cause: str, window: Window) -> None:
        """What was borne of this cause is over where ranks get on again: told as repaired, and again if it comes again."""
        if float(window.quiet.min(initial=EASED_SECONDS)) < EASED_SECONDS:
            self._eased(cause)

    def _eased(self, cause: str) -> None:
        """By the book, which a controller that was started again has read."""
        borne = [fault for fault in self._state.book.faults[-EASED:] if fault.cause == cause and fault.state == "advised"]
        for fault in borne:
            self._borne.pop((fault.cause, fault.card), None)
            self._state.book.remedy(fault, "it ended by itself, nobody was moved")
            self.close(fault)

    def close_repaired(self, step: int) -> None:
        """Committed(step) is said after the gate of step + 1: the first common step after the fault was done."""
        state = self._state
        state.history.rebuilds = 0
        for fault in list(state.book.open_ones()):
            passed = fault.cause not in {"nonfinite", "outlier", "corrupt"} or step >= fault.step
            repaired = fault.resumed_generation == state.generation and passed
            if state.stage == "run" and repaired:
                self.close(fault)

    def close_all(self) -> None:
        """The job's last step is the proof for those still open."""
        self._eased("data")
        for fault in list(self._state.book.open_ones()):
            self.close(fault)

    # -- within -------------------------------------------------------------------------------------------------------

    def _apply(
        self, fault: Fault, remedy: Remedy, window: Window, kind: str = "fault.named", *, approved: bool = False
    ) -> None:
        state = self._state
        free = remedy.rung in {"redo", "rotate", "restore", "apply"}  # these change nothing that was asked for
        acts = state.watch.action == "act" or free or approved
        state.book.remedy(fault, remedy.text if acts else f"advised only: {remedy.text}")
        state.tell(kind, **fault.named())
        state.journal.write("fault", id=fault.id, cause=fault.cause, card=fault.card, rung=remedy.rung)
        if remedy.rung == "stop":
            fault.state = "stopped"
            state.book.save(fault)
            state.fail(f"{fault}; {remedy.text}")
        elif not acts or remedy.rung == "bear":
            if remedy.rung in MOVES:
                self._advised[fault.id] = remedy
            self._bear(fault, remedy)
        elif remedy.rung in MOVES:
            if remedy.rung in {"rebuild", "restart", "rollback"}:
                state.history.rebuilds += 1
            if remedy.rung in {"restart", "rollback"}:
                self._replace_all()
            if fault.cause == "host":
                for host in sorted({state.roster.places[rank].host for rank in remedy.evict}):
                    state.lose(host)
            for rank in remedy.evict:
                self._evict(state.roster.places[rank], fault, remedy.blamed)
            if state.stage in {"collect", "wait"}:
                fault.resumed_generation = state.generation  # the regroup under way repairs this one too
                self._regroup.distrust(remedy.verified)
                state.enter("collect")
            else:
                self._regroup.begin(str(fault), remedy.verified)

    def _bear(self, fault: Fault, remedy: Remedy) -> None:
        """Nothing is done, by the person's wish or because nothing better is at hand. Told once."""
        state = self._state
        fault.state = "advised"
        state.book.save(fault)
        self._borne[fault.cause, fault.card] = fault
        state.tell("fault.advised", fault=fault.id, remedy=remedy.text)
        if fault.cause in {"exit", "nonfinite"}:  # here the ranks cannot go on by themselves
            state.fail(f'{fault}. Nothing was done, because [guard] action is "advise". Advised: {remedy.text}')

    def _replace_all(self) -> None:
        """No process of a rank goes on; no card is blamed for it."""
        state = self._state
        state.history.restarts.append(state.wall())
        state.journal.write("restart", at=state.wall())
        for proc in state.roster.places:
            proc.out = True

    def _evict(self, proc: Proc, fault: Fault, blamed: bool) -> None:
        state = self._state
        proc.out = True
        if fault.cause == "host" or not blamed:
            return
        now = state.wall()
        state.history.evictions.append(now)
        state.history.card_failures[proc.card] += 1
        state.journal.write("eviction", at=now, card=proc.card)
        if state.history.card_failures[proc.card] >= state.watch.card_failures:
            state.keep_out(proc.card, f"it failed {state.history.card_failures[proc.card]} times")
        state.suspects.doubt(proc, fault)

    def _decide(self, step: BadStep, bad: m.Bad) -> None:
        state = self._state
        finding, verdict = step.judge(state.generation, bad, state.world)
        remedy = climb_nonfinite(finding, len(step.votes), step.first_rank, state.watch, bad.what)
        window = state.fleet.window(state.clock())
        verdict = state.sightings.explain(verdict, window)
        kind = "fault.named" if step.fault is None else "fault.rung"
        if step.fault is None:
            step.fault = state.book.open(verdict, window, bad.step, state.wall())
        else:
            state.book.amend(step.fault, verdict)
        if remedy.rung in {"redo", "rotate", "apply"} or (remedy.rung == "skip" and state.watch.action == "act"):
            step.decided(state.generation, bad.attempt, remedy.rung)
            step.fault.resumed_generation, step.fault.resume_step = state.generation, bad.step - 1
            step.fault.steps_redone += remedy.rung != "skip"
        elif bad.what in {"outlier", "range"} and state.watch.action == "advise" and remedy.rung != "stop":
            step.decided(state.generation, bad.attempt, "apply")
        elif remedy.rung == "regroup":
            step.card_replaced()
        self._apply(step.fault, remedy, window, kind)

    def _wrong(self, told: m.Corrupt, key: tuple[int, int, int]) -> None:
        state = self._state
        now, step = state.wall(), told.step

        def rung(verdict: Verdict) -> Remedy:
            return climb(verdict, state.history, state.watch, step, now, 0, self._means(verdict))

        window, cards = state.fleet.window(state.clock()), [proc.card for proc in state.roster.places]
        verdict, remedy = self._corruption.judge(told, cards, rung)
        borne = self._borne.get(("corrupt", _card(verdict, window)))
        fault = self._corruption.faults[key] = borne or state.book.open(verdict, window, step, now)
        if remedy.rung == "restore":
            self._corruption.decided(told, state.generation, "restore")
            fault.resumed_generation, fault.resume_step = state.generation, step - 1
            fault.steps_redone += 1
        elif state.watch.action == "advise" and remedy.rung != "stop":
            self._corruption.decided(told, state.generation, "apply")
        if borne is None:
            self._apply(fault, remedy, window)

    def close(self, fault: Fault) -> None:
        """It is over."""
        fault.state, fault.timeline.trained = "repaired", self._state.wall()
        self._state.book.save(fault)
        self._state.tell("fault.repaired", **fault.repaired())


def _card(verdict: Verdict, window: Window) -> str:
    """The card a fault of this verdict is filed under, as in FaultBook.open."""
    return window.place(verdict.ranks[0]) if verdict.ranks and verdict.cause != "host" else ""
