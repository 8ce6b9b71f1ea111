"""Takes in what hosts tell of themselves: the reason of a fault, before it or soon after, or a fault or advice of its own."""

from __future__ import annotations

import msgspec

from ninthsky.evidence import Fact
from ninthsky.guard import protocol as p
from ninthsky.guard.controller.fleet import Window
from ninthsky.guard.controller.remedies import Remedies
from ninthsky.guard.controller.state import JobState
from ninthsky.guard.faults import Fault
from ninthsky.guard.judges import Limits, Verdict
from ninthsky.guard.judges.data import judge_loading
from ninthsky.guard.judges.trouble import Finding, Sighting, is_reason, judge_trouble, title_of
from ninthsky.guard.probe import messages as m
from ninthsky.guard.telemetry.note import Note

LATE_SECONDS = 30.0  # so long after a fault was named its reason may still come
LOOK_SECONDS = 1.0
SAID = 6  # facts of a rule, and faults beside it, that are filed
RECENT = 16  # faults that a late note may belong to


class Troubles:
    """`heard` takes an agent's notes, `judge` is asked with every window while nobody else has a verdict."""

    def __init__(self, state: JobState, remedies: Remedies) -> None:
        self._state, self._remedies = state, remedies
        self._look_at = 0.0

    def heard(self, host: str, said: p.Notes) -> None:
        """Notes and problems of one agent."""
        for problem in said.problems[:4]:
            self._state.tell("telemetry.problem", host=host, text=problem[:300])
        if said.dropped:
            self._state.tell("telemetry.dropped", host=host, count=said.dropped)
        self.take(host, said.notes)

    def take(self, host: str, notes: list[Note]) -> None:
        """Notes alone; those that were known are passed over."""
        for sighting in self._state.sightings.take(host, notes, self._state.clock()):
            for fault in reversed(self._state.book.faults[-RECENT:]):
                if self._belongs(sighting, fault):
                    self._add(sighting, fault)
                    break

    def anomaly(self, said: m.Anomaly) -> None:
        """A rule of the training fired about the loss: filed as a fault, beside what happened to cards since it began.
        What the training does about it is the training's; nobody is moved."""
        state = self._state
        if any(fault.evidence.where.get("record") == said.record for fault in state.book.faults):
            return  # its step was done again
        beside = [fault for fault in state.book.faults if said.onset - 1 <= fault.step <= said.step and fault.cause != "loss"]
        facts = tuple(Fact("seen by the training", text, None, "", f"n9 why {said.record}") for text in said.facts[:SAID])
        facts += tuple(
            Fact("fault since it began", f"{fault.id}, {fault.cause}", None, "", f"{fault.evidence.subject}, step {fault.step}")
            for fault in beside[-SAID:]
        )
        ruled_out = tuple(said.ruled_out)
        if not beside:
            ruled_out += ("what the guard sees of cards and hosts: no fault since it began",)
        verdict = Verdict("loss", (), said.verdict, facts, ruled_out, None)
        fault = state.book.open(verdict, state.fleet.window(state.clock()), said.step, state.wall())
        fault.injected = said.injected
        if said.remedy.startswith("advised only"):
            fault.state = "advised"
        else:
            fault.state, fault.timeline.trained = "repaired", fault.timeline.named
        fault.evidence = msgspec.structs.replace(
            fault.evidence,
            verdict=said.verdict + (" (injected by this run)" if said.injected else ""),
            where={**fault.evidence.where, "record": said.record, "onset": said.onset},
            decided_by=f"rule {said.rule} of [train.control]",
        )
        state.book.remedy(fault, said.remedy.replace("advised only: ", "advised by [train.control]: ", 1))
        state.tell("fault.named", **fault.named())

    def halted(self, reason: str) -> None:
        """A rule stopped the training: its fault is what a person must look at."""
        for fault in self._state.book.faults:
            record = fault.evidence.where.get("record")
            if record is not None and str(record) in reason:
                fault.state = "stopped"
                self._state.book.save(fault)

    def judge(self, window: Window, limits: Limits) -> None:
        """Names what nobody else took up."""
        if window.now < self._look_at:
            return
        self._look_at = window.now + LOOK_SECONDS
        for verdict in judge_loading(window, limits):
            self._remedies.warn(verdict, window)
        found = [sighting for sighting in self._state.sightings.fresh(window.now) if not sighting.used]
        for finding in judge_trouble(window, found, limits) if found else []:
            if self._state.over:
                return
            if finding.verdict.cause == "trouble":
                self._remedies.fault(finding.verdict, window)
            else:
                self._remedies.warn(finding.verdict, window)
                self._doubt_idle(finding, window)
            for sighting in finding.sightings:
                sighting.used = True

    def _doubt_idle(self, finding: Finding, window: Window) -> None:
        """A card's own fault where it holds no rank now: no spare before it was tested."""
        cards = {sighting.card for sighting in finding.sightings if sighting.note.weight == "hard" and sighting.card}
        for card in cards - {window.place(rank) for rank in range(window.ranks)}:
            self._state.suspects.doubt_card(card, self._state.book.faults[-1].id)

    def _belongs(self, sighting: Sighting, fault: Fault) -> bool:
        """Whether a note that comes late is the reason of a fault, of which none is known yet or the same."""
        line, now = fault.timeline, self._state.wall()
        if line.named is None or now - line.named > LATE_SECONDS:
            return False
        if sighting.host not in fault.host.split(", ") or (sighting.card and fault.card and sighting.card != fault.card):
            return False
        known, hard = fault.evidence.where.get("playbook"), "hard" in fault.evidence.where
        if known is not None and known != sighting.note.cause and (hard or sighting.note.weight != "hard"):
            return False
        began = self._state.clock() - (now - (line.began or line.named))
        return is_reason(sighting, fault.cause, fault.evidence.verdict, began)

    def _add(self, sighting: Sighting, fault: Fault) -> None:
        state, cause = self._state, sighting.note.cause
        sighting.used = True
        began = state.clock() - (state.wall() - (fault.timeline.began or state.wall()))
        fact = sighting.fact(began)
        news = fault.evidence.where.get("playbook") != cause
        state.book.explain(fault, fact, cause, title_of(cause), hard=sighting.note.weight == "hard")
        if news:  # a second note of the same is written into the fault, and not told
            state.tell("fault.evidence", fault=fault.id, text=f"{fact}", playbook=cause)
