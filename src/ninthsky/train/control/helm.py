"""Control inside a rank under the guard: what it adds to the vote, a person's orders, pauses, validation, and records."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist

from ninthsky.evidence import Evidence
from ninthsky.run.folder import append_line, read_json, write_json
from ninthsky.train.control.anchors import Checkpoints, leave_behind
from ninthsky.train.control.limits import Limits
from ninthsky.train.control.orders import FOLDER, Orders, decode, encode, open_box
from ninthsky.train.control.program import Program
from ninthsky.train.control.records import recorder
from ninthsky.train.control.steering import Control
from ninthsky.train.control.trial import Decision
from ninthsky.train.control.validation import validation_cursor
from ninthsky.train.step.recipe import Recipe
from ninthsky.train.step.trainer import Trainer

PROGRAM = "program.json"
TICK_SECONDS = 0.25  # of a pause: a small collective each time, so that a rank that fails meanwhile is noticed


class Helm:
    """One for the life of a process; `join` at each generation. Only rank 0 reads orders and keeps records.

    Every rank adds `row` to its gate, hands all rows to `hear`, and asks `control` what its gates mean.
    """

    def __init__(
        self, limits: Limits, recipe: Recipe, folder: Path, events: Path, replay: Program | None, validate_every: int
    ) -> None:
        self.folder, self.events, self.validate_every = folder, events, validate_every
        self.control = Control(limits, recipe, replay=replay, tell=self._record)
        self.orders: Orders | None = None
        self._validation: Any = None
        self._announced = b""
        self._step, self._rank = 0, -1
        self._tell: Callable[[Evidence], None] | None = None
        self.outward: Callable[[Evidence], None] | None = None  # who else hears of records

    def keep_validation(self, tokens: np.ndarray, sequence: int, batch: int) -> None:
        """The tokens that every validation is on. Raises UserError N9-TRN-001 where they are too few."""
        self._validation = validation_cursor(tokens, sequence, batch)

    def join(self, rank: int, device: torch.device) -> None:
        """A new generation; the state was loaded, or is a fresh one."""
        self._rank, self._device, self._announced = rank, device, b""
        self.orders, self._tell = None, None
        if rank == 0 and self.control.replay is None:
            self.orders, self._tell = Orders(open_box(self.folder)), recorder(self.folder, self.events)

    # -- a step -------------------------------------------------------------------------------------------------------

    def validate(self, trainer: Trainer, data_rank: int, data_ranks: int) -> None:
        """This rank's share of the validation pass that is due before the trainer's next step (collective)."""
        if self._validation is not None and trainer.step and trainer.step % self.validate_every == 0:
            self.control.validated(*trainer.evaluate(self._validation.read(0, data_rank, data_ranks)))

    def row(self, step: int) -> list[float]:
        """This rank's numbers for the first gate of `step`; orders that came hold from the step after it."""
        self._step = step
        if self.orders is not None:
            due = self.orders.due(self.control.state.orders, step + 1)
            self._announced = encode(due) if due else b""
            self._tell_refused()
        return self.control.signals(len(self._announced))

    def hear(self, step: int, rows: Sequence[Sequence[float]]) -> None:
        """All ranks' numbers; where rank 0 has orders to tell, a broadcast follows (collective)."""
        size = self.control.hear(step, rows)
        if size:
            self._take(size)

    def leave_behind(self, trainer: Trainer, decision: Decision, checkpoints: Path, settle: Callable[[], object]) -> None:
        """As anchors.leave_behind, on the run's checkpoints (collective)."""
        leave_behind(trainer, self.control, decision, Checkpoints(checkpoints, settle))

    # -- pauses -------------------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        return self.control.state.paused

    def pause(self, step: int, told: Callable[[], None]) -> None:
        """Waits before `step` until a person says resume (collective, again and again). `told` is called at each tick."""
        while self.paused:
            told()
            time.sleep(TICK_SECONDS)
            if self.orders is not None:
                due = self.orders.due(self.control.state.orders, step)
                self._announced = encode(due) if due else b""
                self._tell_refused()
            size = torch.tensor([len(self._announced)], dtype=torch.int64, device=self._device)
            dist.broadcast(size, src=0)
            if int(size):
                self._take(int(size))

    def finish(self) -> None:
        """After the last step: the program is what a twin follows."""
        if self._rank == 0:
            write_json(self.folder / FOLDER / PROGRAM, msgspec.to_builtins(self.control.program))

    # -- within -------------------------------------------------------------------------------------------------------

    def _take(self, size: int) -> None:
        raw = torch.empty(size, dtype=torch.uint8, device=self._device)
        if self._rank == 0:
            raw.copy_(torch.frombuffer(bytearray(self._announced), dtype=torch.uint8))
        dist.broadcast(raw, src=0)
        due = decode(raw.cpu().numpy().tobytes())
        self.control.take(due)
        self._announced = b""
        for given in due if self._rank == 0 else ():
            values = ", ".join(f"{name} = {value:g}" for name, value in given.order.values.items())
            text = f"{given.order.verb} {values}".strip()
            self._event("control.order", text=text, step=given.step, order=given.order.number)

    def _record(self, record: Evidence) -> None:
        if self._tell is not None:
            self._tell(record)
            if self.outward is not None:
                self.outward(record)

    def _tell_refused(self) -> None:
        if self.orders is not None and self.orders.refused:
            self._event("control.refused", reason=self.orders.refused)
            self.orders.refused = ""

    def _event(self, kind: str, **fields: Any) -> None:
        append_line(self.events, {"time": time.time(), "kind": kind, **fields})


def read_program(folder: Path) -> Program:
    """What a finished stage's steps were done with."""
    return msgspec.convert(read_json(folder / FOLDER / PROGRAM) or {}, Program)
