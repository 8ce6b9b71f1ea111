"""A rank's checkpoints under the guard: when they begin, who is asked before they become visible, and what is told."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ninthsky.evidence import Evidence
from ninthsky.guard.probe.line import Line
from ninthsky.guard.probe.messages import Assign, MayCommit, Permit
from ninthsky.run.folder import append_line
from ninthsky.train.state import checkpoint
from ninthsky.train.state.checkpoint.records import not_kept, not_loaded
from ninthsky.train.state.replicas import Carried
from ninthsky.train.step.trainer import Trainer

NOT_TRUSTED = "it was written after the last state that is known to be right"


class Saves:
    """One generation after another. A save that fails, or is skipped, is told in the run's events and never ends the run.

    Only the main thread talks to the controller: the thread that writes never has to be told that its generation ended.
    """

    def __init__(self, line: Line, folder: Path, events: str, carried: dict[str, Carried]) -> None:
        self._line, self._folder, self._events, self._carried = line, folder, Path(events or os.devnull), carried
        self._assign: Assign | None = None
        self._saver: checkpoint.Saver | None = None
        self.keep = 2  # finished checkpoints that stay

    def join(self, assign: Assign, trainer: Trainer) -> None:
        """A new generation (the trainer is its own)."""
        self._assign, self._saver = assign, checkpoint.Saver(trainer, self._folder, self.keep)

    def leave(self) -> None:
        """The generation ended: what is under way never becomes visible."""
        if self._saver is not None:
            self._saver.cancel()
        self._saver = None

    def restore(self, assign: Assign, trainer: Trainer) -> None:
        """The newest good checkpoint, where there is one (collective). Later ones than the guard trusts are set aside for good:
        training does their steps again."""
        newest = assign.verified
        restored = checkpoint.restore(trainer, self._folder, lambda steps: newest is None or steps <= newest + 1)
        if assign.rank == 0 and newest is not None:
            for path in checkpoint.set_aside(self._folder, newest + 1):
                self._record(
                    "checkpoint.set_aside",
                    lambda path=path: not_loaded(self._folder, path.name, NOT_TRUSTED, restored.step),  # type: ignore[misc]
                    step=path.name,
                    reason=NOT_TRUSTED,
                    loaded=restored.step,
                )
        if assign.rank == 0:
            for name, reason in restored.refused.items():
                self._record(
                    "checkpoint.refused",
                    lambda name=name, reason=reason: not_loaded(self._folder, name, reason, restored.step),  # type: ignore[misc]
                    step=name,
                    reason=reason,
                    loaded=restored.step,
                )
        if restored.path is not None:
            for name, part in self._carried.items():
                part.load(json.loads((restored.path / f"{name}.json").read_bytes()))

    def begin(self) -> None:
        """Copies the state and goes on; a thread writes (collective)."""
        saver = self._here()
        notes = {f"{name}.json": json.dumps(part.dump()).encode() for name, part in self._carried.items()}
        problem = saver.begin(notes)
        if problem:
            self._tell(checkpoint.Saved(saver.trainer.step, None, problem))

    def tend(self) -> None:
        """Rank 0, after each step: gives a checkpoint that is whole its name, if this generation still may."""
        self._tell(self._here().advance(self._ask, self._answer, self._line.writing))

    def settle(self) -> checkpoint.Saved | None:
        """Waits for the save under way, and publishes it (collective)."""
        saved = self._here().finish(self._may_commit, self._line.writing)
        self._tell(saved)
        return saved

    def end(self) -> str:
        """Saves the state as it is now, and waits (collective). Returns why there is none."""
        self.settle()
        self.begin()
        saved = self.settle()
        return "it was not begun" if saved is None else saved.problem

    def may_commit(self, step: int) -> bool:
        """Asks the controller, and waits, whether this generation still counts."""
        self._ask(step)
        return self._line.wait_for(Permit, lambda message: message.step == step).allowed

    def _may_commit(self) -> bool:
        return self.may_commit(self._here().trainer.step)

    def _ask(self, step: int) -> None:
        assert self._assign is not None
        self._line.send(MayCommit(self._assign.generation, step))

    def _answer(self, step: int) -> bool | None:
        permit = self._line.take(Permit, lambda message: message.step == step)
        return None if permit is None else permit.allowed

    def _here(self) -> checkpoint.Saver:
        assert self._saver is not None, "between generations there is nothing to save"
        return self._saver

    def _tell(self, saved: checkpoint.Saved | None) -> None:
        if saved is not None and saved.problem and self._assign is not None and self._assign.rank == 0:
            step, problem = saved.step, saved.problem
            self._record("checkpoint.failed", lambda: not_kept(self._folder, step, problem), step=step, reason=problem)

    def _record(self, kind: str, record: Callable[[], Evidence], **fields: Any) -> None:
        """In the run's events and for `n9 why`; in this rank's log alone where the disk takes neither."""
        try:
            append_line(self._events, {"time": time.time(), "kind": kind, "id": record().id, **fields})
        except OSError as error:
            print(f"{kind} {fields}, and it could not be recorded: {error}", file=sys.stderr, flush=True)
