"""A job's folder as the controller leaves it, without a controller: spec, events, faults, and the picture of the fleet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ninthsky.evidence import Evidence, Fact
from ninthsky.guard.faults import Fault, Timeline
from ninthsky.guard.picture import FILE, Card, Head, slots_of
from ninthsky.guard.spec import HostSpec, Injected, JobSpec, Watch
from ninthsky.run.folder import append_line, write_json


class JobFiles:
    """Writes what a controller would write. `cards` is one Card per slot."""

    def __init__(self, folder: Path, hosts: int = 2, slots: int = 2, spares: int = 1, **watch: Any) -> None:
        self.folder = folder
        self.spec = JobSpec(
            run_id="made",
            folder=str(folder),
            command=["python", "-m", "ninthsky.guard.drill.simulated_rank"],
            world=hosts * slots,
            hosts=[HostSpec(name=f"node-{number:04d}", slots=slots, spares=spares) for number in range(hosts)],
            watch=Watch(**{"action": "act", **watch}),
            injected=[Injected("freeze", 3, 12)],
        )
        self.spec.save()
        self.cards = np.full(sum(slots_of(self.spec)), Card.WORKING, np.uint8)
        self.began = time.time() - 100
        self.step = 10
        self.event("generation", generation=1, reason="start", at=self.began)
        self.event("joined", generation=1, resume_step=-1, at=self.began + 10)
        self.draw()

    def event(self, kind: str, at: float | None = None, **fields: Any) -> None:
        record = {"time": time.time() if at is None else at, "kind": kind, "job": "made", **fields}
        append_line(self.folder / "events.jsonl", record)

    def draw(self, steps: int = 1) -> None:
        self.step += steps
        done = tuple((self.step - steps + n + 1, 0.5) for n in range(steps))
        head = Head(time=time.time(), stage="run", generation=1, step=self.step, committed=self.step - 1, steps=done)
        draft = self.folder / "draft"
        draft.write_bytes(msgspec.json.encode(head) + b"\n" + self.cards.tobytes())
        draft.replace(self.folder / FILE)

    def fault(self, number: int = 1, *, remedy: str = "regrouped, another card takes its place", **changes: Any) -> Fault:
        began = time.time() - 5
        fault = Fault(
            **{
                "id": f"F-{number:04d}",
                "cause": "slow",
                "state": "open",
                "injected": False,
                "generation": 1,
                "step": self.step,
                "rank": 3,
                "host": "node-0001",
                "card": "node-0001/1",
                "timeline": Timeline(began=began, noticed=began + 2, named=began + 2.5),
                "evidence": Evidence(
                    id=f"F-{number:04d}",
                    kind="fault",
                    subject="card node-0001/1 (rank 3)",
                    verdict="own work takes longer <b>than</b> the others'",
                    facts=(Fact("local time against the peers' median", 1.7, 1.5, "x", "records"),),
                    ruled_out=("the data: its peers read as much",),
                    remedy=remedy,
                    confidence=0.97,
                ),
                **changes,
            }
        )
        write_json(self.folder / "faults" / f"{fault.id}.json", msgspec.to_builtins(fault))
        return fault
