"""What a watch leaves behind: a folder as a guarded job has it, so that `n9 guard faults`, `serve` and `n9 why` read it too.

job.json (the ranks that are seen), events.jsonl, faults/F-NNNN.json, fleet.bin, and evidence.jsonl for `n9 why`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ninthsky.errors import UserError
from ninthsky.evidence import Fact
from ninthsky.guard.faults import Fault, FaultBook
from ninthsky.guard.judges.verdict import Verdict
from ninthsky.guard.passive.live.crew import Places
from ninthsky.guard.passive.live.processes import Rank
from ninthsky.guard.picture import FILE, Card, Head, write_picture
from ninthsky.guard.spec import HostSpec, JobSpec
from ninthsky.run.folder import append_line

AGAIN_SECONDS = 60.0  # the same fault of the same rank within so long is the same one: told once
PAINT_SECONDS = 1.0
REMEDY = "nothing was done: this watch only looks and tells"

Key = tuple[str, int | str]  # cause and rank
Tell = Callable[[dict[str, Any]], None]


def key_of(verdict: Verdict) -> Key:
    """Verdicts of one key are one fault: of a rank by the cause, without a rank by their words."""
    return verdict.cause, verdict.ranks[0] if verdict.ranks else verdict.text


class Record:
    """Opens and closes faults, writes events and the picture. `tell` gets every event as it is written."""

    def __init__(self, folder: Path, tell: Tell) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                "N9-GRD-051", f"cannot write there: {error}", str(folder), "n9 guard watch ... --folder OUT"
            ) from error
        self.folder = folder.resolve()
        self.book = FaultBook(self.folder / "faults", [])
        self.open: dict[Key, Fault] = {}
        self._tell = tell
        self._closed: dict[Key, tuple[float, Fault]] = {}
        self._painted = 0.0
        self._steps: list[tuple[int, float]] = []
        self._step = (-1, 0.0)

    def describe(self, name: str, command: Sequence[str], host: str, ranks: Sequence[Rank]) -> None:
        """job.json. `world` counts the ranks on this host: the others are not seen."""
        run = "".join(letter if letter.isalnum() else "-" for letter in f"watch-{name}")[:40]
        slots = max((rank.card for rank in ranks), default=0) + 1
        JobSpec(
            run_id=run,
            folder=str(self.folder),
            command=list(command),
            world=slots,
            hosts=[HostSpec(name=host, slots=slots, spares=0)],
        ).save()

    def event(self, kind: str, **fields: Any) -> None:
        """One line of events.jsonl."""
        event = {"kind": kind, "time": round(time.time(), 3), **fields}
        append_line(self.folder / "events.jsonl", event)
        self._tell(event)

    def fault(
        self, verdict: Verdict, places: Places, step: int, facts: Sequence[Fact], ruled_out: Sequence[str], remedy: str
    ) -> Fault:
        """A fault, told once: one that is open, or was until a minute ago, is the same one."""
        key = key_of(verdict)
        now = time.time()
        whole = dataclasses.replace(verdict, facts=verdict.facts + tuple(facts), ruled_out=verdict.ruled_out + tuple(ruled_out))
        fault = self.open.get(key) or self._closed_just_now(key, places.generation, now)
        if fault is not None:
            fault.state = "advised"
            fault.timeline.trained = None
            self.open[key] = fault
            self.book.amend(fault, whole)
            self._keep(fault)
            return fault
        fault = self.book.open(whole, places, step, now)
        fault.evidence = msgspec.structs.replace(
            fault.evidence, remedy=f"{REMEDY}; then advised: {remedy}" if remedy else REMEDY
        )
        fault.state = "advised"
        self.open[key] = fault
        self._keep(fault)
        self.event("fault.named", **fault.named())
        return fault

    def _closed_just_now(self, key: Key, generation: int, now: float) -> Fault | None:
        """A job that was started again begins anew."""
        closed_at, fault = self._closed.get(key, (0.0, None))
        return fault if fault is not None and now - closed_at < AGAIN_SECONDS and fault.generation == generation else None

    def close(self, fault: Fault, what: str) -> None:
        """The job goes on by itself: the fault is over."""
        for key in [key for key, open_ in self.open.items() if open_ is fault]:
            del self.open[key]
            self._closed[key] = (time.time(), fault)
        fault.state = "repaired"
        fault.timeline.trained = time.time()
        self.book.remedy(fault, what)
        self._keep(fault)
        self.event("fault.repaired", **fault.repaired())

    def _keep(self, fault: Fault) -> None:
        self.book.save(fault)
        append_line(self.folder / "evidence.jsonl", msgspec.to_builtins(fault.evidence))

    def paint(self, stage: str, generation: int, step: int, ranks: Sequence[Rank], drawn: Mapping[int, Card]) -> None:
        """The picture for the page, once a second; a full disk costs the picture and nothing else."""
        now = time.time()
        if step > self._step[0]:
            if self._step[0] >= 0:
                self._steps.append((step, round((now - self._step[1]) / (step - self._step[0]), 4)))
            self._step = (step, now)
        if now - self._painted < PAINT_SECONDS and stage == "run":
            return
        self._painted = now
        cards = np.zeros(max((rank.card for rank in ranks), default=0) + 1, np.uint8)
        for rank in ranks:
            cards[rank.card] = drawn.get(rank.rank, Card.WORKING)
        head = Head(time=now, stage=stage, generation=generation, step=step, committed=step, steps=tuple(self._steps[-32:]))
        self._steps.clear()
        with contextlib.suppress(OSError):
            write_picture(self.folder / FILE, head, cards)
