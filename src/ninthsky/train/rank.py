"""The life of a rank between its start and its last step: prepared, assigned, training, broken, assigned anew."""

from __future__ import annotations

import gc
import math
import os
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from ninthsky.guard.probe.group import BACKEND, Probe, gloo, register
from ninthsky.guard.probe.line import Interrupted, Line
from ninthsky.guard.probe.messages import (
    Assign,
    Bad,
    Broken,
    Committed,
    Decide,
    Finished,
    Joined,
    MayCommit,
    Permit,
    Ready,
    Rendezvous,
    Shard,
    ShardHeld,
    Stop,
)
from ninthsky.guard.probe.record import NONFINITE, Phase, RecordWriter
from ninthsky.model.decoder import Decoder
from ninthsky.run.folder import append_line
from ninthsky.train import checkpoint, shards
from ninthsky.train.cursor import Cursor, TokenFile
from ninthsky.train.device import device
from ninthsky.train.generation import form, leave, serve_store
from ninthsky.train.inject import Injector
from ninthsky.train.job import TrainJob
from ninthsky.train.loss import next_token_loss
from ninthsky.train.shadow import mirror
from ninthsky.train.trainer import Gate, StepFigures, Trainer

if TYPE_CHECKING:  # elastic is the program that this module is imported by: it runs under another name
    from ninthsky.train.elastic import Release

HISTORY = "history.jsonl"


@dataclass(frozen=True)
class Vote:
    """What every rank knows after the gate of a step."""

    gates: list[Gate]
    bad: list[int]  # ranks that the bad value came from; empty where it arose in the sum
    finite: bool


class Rank:
    """One process. `live` returns its exit status."""

    def __init__(
        self, job: TrainJob, line: Line, record: RecordWriter, release: Release, shard_folder: Path, host: str
    ) -> None:
        torch.set_num_threads(1)
        self.job, self.line, self.record, self.release = job, line, record, release
        self.shard_folder, self.host = shard_folder, host
        self.folder = Path(job.folder)
        self.device = device()
        self.probe = Probe(record, mirror)
        register(self.probe, self.device.type)
        tokens = TokenFile.open(Path(job.tokens), "train")
        self.cursor = Cursor(tokens.tokens, job.sequence, job.batch, job.seed)
        self.injector = Injector(job.faults, self.folder, Path(job.events))
        self.assign: Assign | None = None
        self.trainer: Trainer | None = None
        self._last_held = -1  # newest step of this rank's state that needs no further copy
        self._poison_next = False
        self._stopped = False

    def live(self) -> int:
        """Prepares, then serves one generation after another until it is told to stop."""
        self._prepare()
        self.record.update(phase=Phase.WAIT)
        self.line.send(Ready())
        while True:
            try:
                assign = self.line.wait_for(Assign)
            except Interrupted as ended:
                if isinstance(ended.message, Stop):
                    self.record.update(phase=Phase.DONE)
                    return 0
                continue  # Abort of a generation that this rank has let go
            problem = self._generation(assign)
            finished = self.trainer.step - 1 if self.trainer is not None else assign.resume_step
            self._let_go()
            if self._stopped:
                return 0
            if problem:
                self.line.send(Broken(assign.generation, finished, problem))

    # -- generations --------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """One whole step on a throw-away mesh, so that everything that is slow the first time has been done."""
        dist.init_process_group(BACKEND, store=HashStore(), rank=0, world_size=self.job.mesh.ranks)
        trainer = self._build(restoring=False)
        trainer.local_gradients(self.cursor.read(0, 0, self.job.mesh.data_ranks))
        gates = trainer.gather(trainer.gate_values())
        trainer.apply(Gate.total(gates))
        shards.write(self.shard_folder, 0, 0, trainer.state_shard(), {})
        trainer.load_shard(shards.read(self.shard_folder, 0, 0)[0])
        shards.remove_before(self.shard_folder, 0, 1)
        del trainer
        leave(self.probe)
        self.probe.inner = gloo("127.0.0.1")
        # What lives now lives long: later collections need not walk it. `leave` has just collected.
        gc.freeze()
        gc.enable()

    def _build(self, *, restoring: bool) -> Trainer:
        model = Decoder(self.job.shape, seed=None if restoring else self.job.seed)
        trainer = Trainer(model, self._loss, self.job.recipe, self.job.steps, self.job.mesh, self.device)
        trainer.before_reduce.append(self._poison)
        return trainer

    def _generation(self, assign: Assign) -> str:
        """Trains until the job is done or the generation ends. Returns why it ended; empty where the job is done.

        Raises whatever is no failure of a collective: the process ends then, and the agent tells how.
        """
        try:
            self._join(assign)
            self._train(assign)
            self._finish(assign)
        except Interrupted as ended:
            self._stopped = isinstance(ended.message, Stop)
            return str(ended.message)
        except (RuntimeError, shards.ShardError) as error:
            if not (self.probe.failure or self.trainer is None or isinstance(error, shards.ShardError)):
                raise
            traceback.print_exc(limit=-4)
            sys.stderr.flush()
            return self.probe.failure or f"{type(error).__name__}: {str(error)[:300]}"
        return ""

    def _join(self, assign: Assign) -> None:
        self.assign, self.trainer = assign, None
        self.line.begin(assign.generation)
        self.release.begin()
        self.injector.rank = assign.rank
        self.record.clear_groups()
        self.record.update(
            generation=assign.generation, rank=assign.rank, step=assign.resume_step, attempt=0, phase=Phase.JOIN, flags=0
        )
        self.probe.inner = gloo(assign.bind)
        store = serve_store(assign, self.line) if assign.serve_store else None
        where = self.line.wait_for(Rendezvous, lambda message: message.generation == assign.generation)
        form(assign, where, store, self.release.aborted)
        trainer = self._build(restoring=assign.resume_step >= 0)
        if assign.resume_step >= 0:
            tensors, _ = shards.read(self.shard_folder, assign.rank, assign.resume_step)
            trainer.load_shard(tensors)
        else:
            restored = checkpoint.restore(trainer, self.folder / "checkpoint")
            if restored.refused and assign.rank == 0:
                print(f"refused checkpoints: {restored.refused}", file=sys.stderr, flush=True)
        self.trainer = trainer
        self._last_held = trainer.step - 1
        self.record.update(step=trainer.step - 1)
        self.line.send(Joined(assign.generation, assign.rank, trainer.step))

    def _let_go(self) -> None:
        """Leaves nothing of the generation behind: neither its sockets nor what would hold them open."""
        self.record.update(phase=Phase.WAIT)
        self.release.sockets.abort()
        self.trainer = None
        leave(self.probe)
        self.release.out()

    # -- steps --------------------------------------------------------------------------------------------------------

    def _train(self, assign: Assign) -> None:
        trainer = self._trainer()
        while trainer.step < self.job.steps:
            begin = time.perf_counter()
            step = trainer.step
            figures, attempt = self._step(assign, trainer)
            self._keep(assign, trainer, step)
            if assign.rank == 0:
                self._note(assign, step, attempt, figures, time.perf_counter() - begin)
            if trainer.step % self.job.checkpoint_every == 0 and trainer.step < self.job.steps:
                self._checkpoint(assign, trainer)

    def _step(self, assign: Assign, trainer: Trainer) -> tuple[StepFigures | None, int]:
        """One step, with as many attempts as the guard decides on. None for figures: it was skipped."""
        step, attempt, rotated = trainer.step, 0, 0
        while True:
            vote = self._attempt(assign, trainer, attempt, rotated)
            if vote.finite and not rotated:
                self.record.update(phase=Phase.UPDATE)
                figures = trainer.apply(Gate.total(vote.gates))
                self.record.update(loss=figures.loss, grad_norm=figures.norm)
                return figures, attempt
            trainer.drop_gradients()
            self.record.update(phase=Phase.VERDICT)
            self.line.send(Bad(assign.generation, step, attempt, vote.bad))
            answer = self.line.wait_for(Decide, lambda message: (message.step, message.attempt) == (step, attempt))  # noqa: B023
            if answer.action == "skip":
                trainer.step += 1
                return None, attempt
            attempt, rotated = attempt + 1, int(answer.action == "rotate")

    def _attempt(self, assign: Assign, trainer: Trainer, attempt: int, rotated: int) -> Vote:
        """Data, gradients, and the vote. `rotated`: by how many ranks the samples are moved on."""
        step, ranks = trainer.step, self.job.mesh.data_ranks
        begin = time.perf_counter()
        self.record.update(step=step, attempt=attempt, phase=Phase.DATA, flags=0)
        batch = self.cursor.read(step, (assign.rank + rotated) % ranks, ranks)
        computing = time.perf_counter()
        self.record.update(phase=Phase.LOCAL)
        self._poison_next = self.injector.due(step, attempt, "nan") is not None
        cpu, before = time.thread_time(), self.probe.times()
        self.probe.watch()
        trainer.local_gradients(batch)
        self.injector.drag(time.thread_time() - cpu - (self.probe.times().cpu - before.cpu))
        first_bad = self.probe.first_bad()
        gate = trainer.gate_values()
        spent = self.probe.times()
        local_wall = time.perf_counter() - computing - (spent.wall - before.wall)
        local_cpu = time.thread_time() - cpu - (spent.cpu - before.cpu)
        flags = 0 if gate.finite and first_bad is None else NONFINITE
        self.record.update(phase=Phase.GATE, flags=flags)
        if self._last_held < step - 1:
            self.line.wait_for(ShardHeld, lambda message: (message.rank, message.step) == (assign.rank, step - 1))
            self._last_held = step - 1
        vote = self._vote(gate, first_bad)
        # Every rank stood here, so every rank finished the step before, and waited until its shard was held.
        self._tell_committed(assign, step - 1)
        self.record.update(
            local_wall=local_wall * 1e3,
            local_cpu=local_cpu * 1e3,
            data=(computing - begin) * 1e3,
            communication=(self.probe.times().wall - before.wall) * 1e3,
        )
        return vote

    def _vote(self, gate: Gate, first_bad: int | None) -> Vote:
        """The gate. The rank whose bad value left it first is where it came from; one that never left comes after all."""
        own = torch.tensor(
            [*gate.values(), math.inf if first_bad is None else first_bad], dtype=torch.float64, device=self.device
        )
        everyone = torch.empty(dist.get_world_size() * len(own), dtype=torch.float64, device=self.device)
        dist.all_gather_into_tensor(everyone, own)
        rows = everyone.view(-1, len(own)).tolist()
        gates = [Gate.of(row) for row in rows]
        suspects = {rank: row[-1] for rank, row in enumerate(rows) if not gates[rank].finite or row[-1] < math.inf}
        bad = [rank for rank, number in suspects.items() if number == min(suspects.values())]
        total = Gate.total(gates)
        return Vote(gates, bad, not bad and math.isfinite(total.square_norm) and math.isfinite(total.loss))

    def _keep(self, assign: Assign, trainer: Trainer, step: int) -> None:
        """Writes this rank's state after `step` and announces it."""
        written = shards.write(self.shard_folder, assign.rank, step, trainer.state_shard(), {}, self.line.writing)
        self.line.send(Shard(assign.generation, assign.rank, step, written.size, written.xxh3))
        shards.remove_before(self.shard_folder, assign.rank, step - 1)

    def _tell_committed(self, assign: Assign, step: int) -> None:
        """Said by one rank of each host."""
        if step >= 0 and assign.hosts.index(assign.hosts[assign.rank]) == assign.rank:
            self.line.send(Committed(assign.generation, step))

    def _note(self, assign: Assign, step: int, attempt: int, figures: StepFigures | None, seconds: float) -> None:
        """One line of the history. A step that is done again after a regroup is a new line; the last one counts."""
        line: dict[str, Any] = {
            "step": step,
            "attempt": attempt,
            "generation": assign.generation,
            "skipped": figures is None,
            "seconds": round(seconds, 5),
            "time": time.time(),
        }
        if figures is not None:
            line |= {
                "loss": figures.loss,
                "norm": figures.norm,
                "lr": figures.lr,
                "tokens": figures.tokens,
                "tokens_per_second": round(figures.tokens / seconds, 1),
            }
        append_line(self.folder / HISTORY, line)

    # -- faults inflicted on purpose ----------------------------------------------------------------------------------

    def _loss(self, model: Any, batch: Tensor) -> tuple[Tensor, float]:
        result = next_token_loss(model, batch)
        if self.assign is not None:
            self.injector.strike(self.record.state.step, self.record.state.attempt)
        return result

    def _poison(self, gradients: Any) -> None:
        if self._poison_next:
            self._poison_next = False
            gradients[0][(0,) * gradients[0].dim()] = math.nan

    # -- checkpoints and the end --------------------------------------------------------------------------------------

    def _checkpoint(self, assign: Assign, trainer: Trainer) -> str:
        """Returns why there is none. A save that fails does not end the run."""
        saved = checkpoint.save(trainer, self.folder / "checkpoint", lambda: self._may_commit(assign, trainer.step))
        if saved.problem and assign.rank == 0:
            append_line(
                Path(self.job.events or os.devnull),
                {"time": time.time(), "kind": "checkpoint.failed", "step": saved.step, "reason": saved.problem},
            )
        return saved.problem

    def _may_commit(self, assign: Assign, step: int) -> bool:
        self.line.send(MayCommit(assign.generation, step))
        return self.line.wait_for(Permit, lambda message: message.step == step).allowed

    def _finish(self, assign: Assign) -> None:
        """After the last step: its shard is held, the weights are digested, saved and exported, and all say Finished."""
        trainer, last = self._trainer(), self.job.steps - 1
        if self._last_held < last:
            self.line.wait_for(ShardHeld, lambda message: (message.rank, message.step) == (assign.rank, last))
            self._last_held = last
        digest = trainer.digest()
        self._tell_committed(assign, last)
        problem = self._checkpoint(assign, trainer)
        if self.job.export:
            self._export(assign, trainer)
        dist.barrier()
        result: dict[str, str | int | float] = {
            "digest": digest,
            "steps": self.job.steps,
            "host": self.host,
            "no_checkpoint": problem,
        }
        self.line.send(Finished(assign.generation, assign.rank, result))

    def _export(self, assign: Assign, trainer: Trainer) -> None:
        from ninthsky.model.files import save

        model = trainer.full_model()
        if assign.rank or not self._may_commit(assign, trainer.step):
            return
        draft, final = self.folder / ".export.part", self.folder / "export"
        shutil.rmtree(draft, ignore_errors=True)
        save(model, draft, Path(self.job.tokens) / "tokenizer.json")
        with self.line.writing():
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)

    def _trainer(self) -> Trainer:
        assert self.trainer is not None
        return self.trainer
