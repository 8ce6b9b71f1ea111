"""Saving beside the training: a copy in the foreground, everything else in a thread, one rename at the end."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from ninthsky.train.state.checkpoint.seal import checkpoints, describe, seal, sync_folder, write_synced
from ninthsky.train.state.checkpoint.writing import Part, PlanError, Receipt, State, leave_receipt, take_receipts
from ninthsky.train.step.device import host_buffer, synchronize
from ninthsky.train.step.trainer import Trainer

REFUSED = "this generation may no longer commit"
POLL_SECONDS = 0.02
# How long rank 0 waits for the others' receipts: a fixed time, and a multiple of what its own part took.
PATIENCE_SECONDS, PATIENCE = 60.0, 10.0

Visible = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Saved:
    """What became of a checkpoint: its folder, or the reason why there is none."""

    step: int
    path: Path | None
    problem: str = ""


@dataclass
class _Saving:
    """One save under way. `problem` counts once `thread` has ended; sealed where it is empty then."""

    step: int
    partial: Path
    staged: State = field(repr=False)
    problem: str = ""
    asked: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def ended(self) -> bool:
        return self.thread is not None and not self.thread.is_alive()

    def join(self) -> None:
        assert self.thread is not None
        self.thread.join()


class Saver:
    """Writes `folder/step-N`, N the number of finished steps, one at a time; of finished ones `keep` stay.

        saver.begin()                     # every rank: copies the state, starts to write; "" or why not
        saver.advance(ask, answer)        # rank 0, once a step: asks whether it may commit, and gives the folder its name
        saver.finish(may_commit)          # every rank, collective: waits for the one under way, publishes, agrees
        saver.cancel()                    # the generation ended: nothing of it becomes visible

    Every rank checks its copy to be finite, writes it and reads it back; rank 0 seals what all have written, last. An older
    checkpoint goes only after the new one has its name. What fails is told as `problem`, never raised: a run does not end
    because a disk is full. The next save does not wait for one under way: it is skipped, and told.
    """

    def __init__(self, trainer: Trainer, folder: Path, keep: int = 2) -> None:
        self.trainer, self.folder, self.keep = trainer, folder, keep
        self.rank = dist.get_rank() if trainer.distributed else 0
        self.world = dist.get_world_size() if trainer.distributed else 1
        self._part: Part | None = None
        self._staged: dict[str, torch.Tensor] = {}
        self._saving: _Saving | None = None
        self._cleaner: threading.Thread | None = None

    @property
    def under_way(self) -> bool:
        """Whether a save has begun whose outcome nobody has taken. Rank 0 knows it for all."""
        return self._saving is not None

    def begin(self, notes: dict[str, bytes] | None = None) -> str:
        """Starts a save of the state as it is now (collective). -> empty, or why none was started: the same on every rank.

        `notes` are rank 0's files that belong to this very state, sealed with it.
        """
        step = self.trainer.step
        partial, problem = self._open(step) if self.rank == 0 else (None, "")
        if self.world > 1:
            told = [str(partial), problem]
            dist.broadcast_object_list(told, src=0)
            partial, problem = Path(told[0]), told[1]
        if problem or partial is None:
            return problem
        if self._part is None:
            try:
                self._part = Part(self.trainer.distributed_state(), self.rank, self.world)
            except PlanError as error:  # every rank's
                if self.rank == 0:
                    shutil.rmtree(partial, ignore_errors=True)
                return _told(error)
        saving = _Saving(step, partial, self._stage())
        self._saving = saving
        work = self._lead if self.rank == 0 else self._follow
        saving.thread = threading.Thread(target=work, args=(saving, self._part, notes or {}), name="checkpoint", daemon=True)
        saving.thread.start()
        return ""

    def advance(
        self,
        ask: Callable[[int], None],
        answer: Callable[[int], bool | None],
        visible: Visible = nullcontext,
    ) -> Saved | None:
        """On rank 0, without waiting: what became of the save under way, None while that is not known.

        `ask(step)` is called once it is sealed; `answer(step)` tells, None while there is no answer, whether it may be named.
        """
        saving = self._saving
        if saving is None or not saving.ended:
            return None
        if not saving.problem:
            if not saving.asked:
                saving.asked = True
                ask(saving.step)
            allowed = answer(saving.step)
            if allowed is None:
                return None
            saving.problem = "" if allowed else REFUSED
        self._saving = None
        return self._publish(saving, visible)

    def finish(self, may_commit: Callable[[], bool] = lambda: True, visible: Visible = nullcontext) -> Saved | None:
        """Waits for the save under way and publishes it (collective). None where there is none."""
        saving, self._saving = self._saving, None
        saved = None
        if saving is not None:
            saving.join()
            if self.rank == 0:
                if not saving.problem and not may_commit():
                    saving.problem = REFUSED
                saved = self._publish(saving, visible)
                if self._cleaner is not None:
                    self._cleaner.join()
        if self.world > 1:
            told = [saved]
            dist.broadcast_object_list(told, src=0)
            saved = told[0]
        return saved

    def cancel(self) -> None:
        """Lets go of the save under way; its thread ends by itself and leaves nothing visible."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.cancelled.set()

    # -- foreground -----------------------------------------------------------------------------------------------------

    def _open(self, step: int) -> tuple[Path | None, str]:
        """An empty folder for a new save, or why there is none."""
        if self._saving is not None:
            return None, f"skipped: the checkpoint of step {self._saving.step} is still being written"
        if self._cleaner is not None:
            self._cleaner.join()
        partial = self.folder / f".step-{step}.{os.urandom(4).hex()}.part"
        try:
            for left in self.folder.glob(".step-*"):  # by a kill, or by a generation that ended
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir(parents=True)
        except OSError as error:
            return None, _told(error)
        return partial, ""

    def _stage(self) -> State:
        """A copy on the host, in the memory of the last one, unless a save that was given up on still reads that."""
        state, before = self.trainer.state_shard(), self._saving
        if before is not None and not before.ended:
            self._staged = {}
        for name, tensor in state.items():
            held = self._staged.get(name)
            if held is None or (held.shape, held.dtype) != (tensor.shape, tensor.dtype):
                held = self._staged[name] = host_buffer(tensor)
            held.copy_(tensor, non_blocking=True)
        synchronize(self.trainer.device)
        return {name: self._staged[name] for name in state}

    def _publish(self, saving: _Saving, visible: Visible) -> Saved:
        final = self.folder / f"step-{saving.step}"
        before = self.folder / f".step-{saving.step}.old"  # of the same step, where it was done again
        if not saving.problem:
            try:
                with visible():
                    if final.exists():
                        final.rename(before)
                    saving.partial.rename(final)
                sync_folder(self.folder)
            except OSError as error:
                saving.problem = _told(error)
        gone = [saving.partial] if saving.problem else [before, *checkpoints(self.folder)[self.keep :]]
        self._cleaner = threading.Thread(target=_remove, args=(gone,), name="checkpoint-cleaner", daemon=True)
        self._cleaner.start()
        return Saved(saving.step, None if saving.problem else final, saving.problem)

    # -- in the thread --------------------------------------------------------------------------------------------------

    def _write(self, saving: _Saving, part: Part) -> Receipt:
        try:
            return part.write(saving.staged, saving.partial)
        except Exception as error:  # whatever it is, it is told and the run goes on
            where = f"rank {self.rank}: " if self.world > 1 else ""
            return Receipt(where + _told(error))

    def _follow(self, saving: _Saving, part: Part, _: dict[str, bytes]) -> None:
        receipt = self._write(saving, part)
        saving.problem = receipt.problem
        try:
            leave_receipt(saving.partial, self.rank, receipt)
        except OSError as error:  # rank 0 will miss the receipt, and tell
            saving.problem = saving.problem or _told(error)

    def _lead(self, saving: _Saving, part: Part, notes: dict[str, bytes]) -> None:
        begin = time.monotonic()
        receipts = {0: self._write(saving, part)}
        try:
            self._gather(saving, receipts, time.monotonic() - begin)
            problems = [receipts[rank].problem for rank in sorted(receipts) if receipts[rank].problem]
            if problems:
                saving.problem = problems[0]
                return
            files = part.finish(saving.partial, [receipts[rank] for rank in range(self.world)])
            for name, content in notes.items():
                write_synced(saving.partial / name, content)
            files |= {name: describe(saving.partial / name) for name in (".metadata", *notes)}
            seal(saving.partial, saving.step, files)
        except Exception as error:
            saving.problem = _told(error)
        if saving.cancelled.is_set():
            shutil.rmtree(saving.partial, ignore_errors=True)

    def _gather(self, saving: _Saving, receipts: dict[int, Receipt], own_seconds: float) -> None:
        """Adds the other ranks' receipts. Raises TimeoutError where one does not come in time, or the generation ended."""
        end = time.monotonic() + PATIENCE_SECONDS + PATIENCE * own_seconds
        while missing := set(range(self.world)) - receipts.keys():
            receipts |= take_receipts(saving.partial, missing)
            if len(receipts) == self.world:
                return
            if saving.cancelled.is_set():
                raise TimeoutError("the generation ended while it was written")
            if time.monotonic() > end:
                raise TimeoutError(f"rank {min(missing)} did not say that it had written its part")
            time.sleep(POLL_SECONDS)


def save(
    trainer: Trainer,
    folder: Path,
    may_commit: Callable[[], bool] = lambda: True,
    keep: int = 2,
    notes: dict[str, bytes] | None = None,
) -> Saved:
    """Writes `folder/step-N` and waits for it (collective): for callers with nothing to do meanwhile. Told, never raised."""
    saver = Saver(trainer, folder, keep)
    problem = saver.begin(notes)
    if problem:
        return Saved(trainer.step, None, problem)
    saved = saver.finish(may_commit)
    assert saved is not None
    return saved


def _remove(paths: list[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
