"""What the page shows, as a snapshot for who comes and as small differences for who stays."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ninthsky.guard.faults import Fault
from ninthsky.guard.page.acts import Acts
from ninthsky.guard.page.cards import changes, whole
from ninthsky.guard.page.cost import cost_of, step_seconds
from ninthsky.guard.page.folder import JobFolder
from ninthsky.guard.page.playing import cause_of, steps_of
from ninthsky.guard.picture import WORDS, slots_of
from ninthsky.guard.playbook.book import Playbook, shipped
from ninthsky.proportion import wilson

HISTORY = 100  # faults in a snapshot; a page that stays keeps as many
STRIP = 300  # steps in a snapshot
DELTA_BYTES = 18_000  # of one difference; one is sent each second at most
FAULT_BYTES = 8_000  # of it for faults; those that do not fit go next second
RUN_BYTES = 11  # of one run of cards, at most: "12345,9,8,"
STALE_SECONDS = 5.0  # a picture older than this: the controller is not there


class View:
    """`step` looks at the folder and returns the difference; `snapshot` is the state after the last difference.

    A difference of {"anew": True} says that another job began in this folder: a new View is needed.
    """

    def __init__(self, folder: JobFolder, acts: Acts, book: Playbook | None = None) -> None:
        self.job, self.acts = folder, acts
        self._book = book or shipped()
        self._cards = np.zeros(sum(slots_of(folder.spec)), np.uint8)
        self._figures: dict[str, Any] = {}
        self._owed: dict[str, Fault] = {}  # changed, and not told yet
        self._told: dict[str, dict[str, Any]] = {}
        self._strip: deque[tuple[int, float]] = deque(maxlen=STRIP)
        self._strip_time = 0.0
        folder.look()
        self._began = folder.began
        self._strip.extend(folder.steps)
        if folder.picture is not None:
            self._strip_time = folder.picture.head.time
            if len(folder.picture.cards) == len(self._cards):
                self._cards[:] = folder.picture.cards
        now = time.time()
        self._figures = self.figures(now)
        self._told = {fault.id: self.shown(fault, now) for fault in list(folder.faults.values())[-HISTORY:]}

    def touch(self, fault: Fault) -> None:
        """Something about it was changed by a person: tell it anew."""
        self._owed[fault.id] = fault

    def snapshot(self) -> dict[str, Any]:
        """All that a new reader needs; the next difference fits behind it."""
        spec = self.job.spec
        slots = slots_of(spec)
        return {
            "job": spec.run_id,
            "folder": Path(spec.folder).name,
            "simulated": any("simulated_rank" in word for word in spec.command),
            "injected": len(spec.injected),
            "action": spec.watch.action,
            "world": spec.world,
            "hosts": [host.name for host in spec.hosts],
            "slots": slots[0] if len(set(slots)) == 1 else slots,
            "words": {int(card): word for card, word in WORDS.items()},
            "cards": whole(self._cards),
            "steps": list(self._strip),
            "figures": self._figures,
            "faults": list(self._told.values())[-HISTORY:],
        }

    def step(self, now: float | None = None) -> dict[str, Any]:
        """The difference since the last one: only what changed; empty where nothing did."""
        now = time.time() if now is None else now
        for fault in self.job.look():
            self._owed[fault.id] = fault
        if self._began is not None and self.job.began != self._began:
            return {"anew": True}
        self._began = self.job.began
        delta: dict[str, Any] = {}
        figures = self.figures(now)
        changed = {name: value for name, value in figures.items() if self._figures.get(name) != value}
        if changed:
            delta["figures"] = changed
            self._figures = figures
        if steps := self._new_steps():
            delta["steps"] = steps
        if faults := self._some_faults(now):
            delta["faults"] = faults
        picture = self.job.picture
        if picture is not None and len(picture.cards) == len(self._cards):
            left = DELTA_BYTES - len(msgspec.json.encode(delta))
            if runs := changes(self._cards, picture.cards, max(1, left // RUN_BYTES)):
                delta["cards"] = runs
        return delta

    def _new_steps(self) -> list[tuple[int, float]]:
        picture = self.job.picture
        if picture is None or picture.head.time == self._strip_time:
            return []
        self._strip_time = picture.head.time
        self._strip.extend(picture.head.steps)
        return list(picture.head.steps)

    def _some_faults(self, now: float) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        size = 0
        for name in sorted(self._owed, key=lambda name: (len(name), name), reverse=True):
            shown = self.shown(self._owed[name], now)
            size += len(msgspec.json.encode(shown))
            if told and size > FAULT_BYTES:
                break
            del self._owed[name]
            self._told[name] = shown
            told.append(shown)
        if told:
            self._told = dict(sorted(self._told.items(), key=lambda item: (len(item[0]), item[0]))[-HISTORY:])
        return told[::-1]

    # -- one by one -----------------------------------------------------------------------------------------------------

    def figures(self, now: float) -> dict[str, Any]:
        """The numbers at the top."""
        job = self.job
        picture, faults = job.picture, list(job.faults.values())
        goodput = job.goodput(now)
        false = sum(self.acts.is_false_alarm(fault) for fault in faults)
        figures: dict[str, Any] = {
            "end": job.end,
            "faults": len(faults),
            "open": sum(fault.state != "repaired" for fault in faults),
            "false_alarms": false,
            "step_seconds": round(step_seconds(job.steps), 4),
            "goodput": None if goodput is None else round(goodput, 3),
            "refused": sum(sum(counts.values()) for counts in job.refused.values()),
        }
        if faults:
            figures["false_alarms_high"] = round(wilson(false, len(faults))[1], 3)
        if picture is not None:
            head = picture.head
            figures |= {"stage": head.stage, "generation": head.generation, "step": head.step, "committed": head.committed,
                        "evictions": head.evictions, "calls_lost": head.calls_lost}  # fmt: skip
        figures["stale"] = job.ended is None and (picture is None or now - picture.head.time > STALE_SECONDS)
        return figures

    def shown(self, fault: Fault, now: float) -> dict[str, Any]:
        """A fault as the page has it. Long texts are cut: the file has all of them."""
        evidence = fault.evidence
        job = self.job
        cost = cost_of(fault, job.spec.world, step_seconds(job.steps), job.newest_step, now)
        name = cause_of(fault, self._book)
        known = self._book.causes.get(name)
        judged, approved = self.acts.of(fault, "judged"), self.acts.of(fault, "approve")
        shown: dict[str, Any] = {
            "id": fault.id,
            "name": fault.card or fault.host,
            "rank": fault.rank if fault.card else None,
            "cause": fault.cause,
            "verdict": evidence.verdict[:500],
            "state": fault.state,
            "injected": fault.injected,
            "step": fault.step,
            "began": fault.timeline.began,
            "facts": [str(fact)[:300] for fact in evidence.facts[:8]],
            "ruled_out": [text[:300] for text in evidence.ruled_out[:8]],
            "confidence": evidence.confidence,
            "playbook": name,
            "title": known.title if known else "no entry of the playbook fits",
            "ladder": list(known.ladder) if known else [],
            "steps": [[step.text[:300], step.state, step.seconds] for step in steps_of(fault, self._book)[:16]],
            "now": fault.replaced_by,
            "cost": [cost.steps, cost.seconds, cost.card_hours],
            "named_seconds": fault.seconds("named"),
            "trained_seconds": fault.seconds("trained"),
        }
        if judged is not None:
            shown["judged"] = [judged.act, judged.who, judged.time]
        if approved is not None:
            shown["approved"] = [approved.who, approved.time, self.job.answered.get(fault.id)]
        shown["approvable"] = (
            fault.state == "advised" and "advised only" in evidence.remedy and approved is None and self.job.ended is None
        )
        return shown
