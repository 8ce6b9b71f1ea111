"""The life of a rank between its start and its last step: prepared, assigned, training, broken, assigned anew."""

from __future__ import annotations

import gc
import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from ninthsky.guard.probe.group import BACKEND, Probe, register
from ninthsky.guard.probe.line import Interrupted, Line
from ninthsky.guard.probe.messages import (
    Assign,
    Bad,
    Broken,
    Committed,
    Corrupt,
    Decide,
    Finished,
    Halt,
    Joined,
    Ready,
    Rendezvous,
    Stop,
)
from ninthsky.guard.probe.record import NONFINITE, Phase, RecordWriter
from ninthsky.model.decoder import Decoder
from ninthsky.run.folder import append_line
from ninthsky.train.control.anchors import kept
from ninthsky.train.control.helm import Helm
from ninthsky.train.control.records import guard_hears
from ninthsky.train.control.steering import SIGNALS
from ninthsky.train.control.trial import Decision, Trial
from ninthsky.train.control.validation import set_apart
from ninthsky.train.cut.parallel import Own
from ninthsky.train.inject import Injector
from ninthsky.train.job import TrainJob
from ninthsky.train.rank.generation import form, leave, serve_store
from ninthsky.train.rank.integrity import Found, Integrity
from ninthsky.train.rank.shadow import mirror
from ninthsky.train.rank.vote import Vote, cast
from ninthsky.train.state import shards
from ninthsky.train.state.replicas import Carried, Replicas
from ninthsky.train.state.saves import Saves
from ninthsky.train.step.device import carrier, device
from ninthsky.train.step.loss import document_loss, next_token_loss
from ninthsky.train.step.trainer import Gate, StepFigures, Trainer
from ninthsky.train.text.cursor import TokenFile
from ninthsky.train.text.mixture import open_reader

if TYPE_CHECKING:  # elastic is the program that this module is imported by: it runs under another name
    from ninthsky.train.rank.elastic import Release

HISTORY = "history.jsonl"


class Rank:
    """One process. `live` returns its exit status."""

    def __init__(
        self, job: TrainJob, line: Line, record: RecordWriter, release: Release, shard_folder: Path, host: str
    ) -> None:
        torch.set_num_threads(1)
        self.whole, self.line, self.record, self.release = job, line, record, release
        self.job = job  # as it is cut in this generation
        self.shard_folder, self.host = shard_folder, host
        self.folder = Path(job.folder)
        self.device = device()
        self.probe = Probe(record, mirror)
        self.probe.cut = release.aborted.is_set
        register(self.probe, self.device.type)
        tokens = TokenFile.open(Path(job.tokens), "train")
        if job.validate_every:
            tokens, apart = set_apart(tokens, job.validation)
        self.cursor = open_reader(tokens, job.sequence, job.batch, job.seed, job.mixture)
        self.injector = Injector(job.faults, self.folder, Path(job.events))
        self.helm = Helm(job.control, job.recipe, self.folder, Path(job.events or "/dev/null"), job.program, job.validate_every)
        self.helm.outward = guard_hears(line, job.faults)
        if job.validate_every:
            self.helm.keep_validation(apart, job.sequence, job.batch)
        # What else goes into replicas and checkpoints, by name.
        self.carried: dict[str, Carried] = {"control": self.helm.control}
        self.integrity = Integrity(job.replay_every, job.digest_parts, job.steps)
        replicated = {**self.carried, "verified": self.integrity.verified}
        self.replicas = Replicas(line, shard_folder, job.replicate_every, job.steps, replicated)
        self.replicas.also = self.integrity.replays.due
        self.saves = Saves(line, self.folder / "checkpoint", job.events, self.carried)
        self.saves.keep = kept(job.control, job.checkpoint_every)
        self.assign: Assign | None = None
        self.trainer: Trainer | None = None
        self._committed = -1  # newest step that was told as committed in this generation
        self._cpu_at_join = 0.0
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
        self.probe.inner = carrier(self.device, "127.0.0.1")
        # What lives now lives long: later collections need not walk it. `leave` has just collected.
        gc.freeze()
        gc.enable()

    def _build(self, *, restoring: bool) -> Trainer:
        model = Decoder(self.job.shape, seed=None if restoring else self.job.seed, held=False)
        trainer = Trainer(model, self._loss, self.job.recipe, self.job.steps, self.job.mesh, self.device)
        trainer.before_reduce.append(self._poison)
        trainer.own_gradients.append(self._miscompute)
        trainer.moments.append(self.probe.at)
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
        self.assign, self.trainer, self.job = assign, None, self.whole.at(assign.world)
        self.line.begin(assign.generation)
        self.release.begin()
        self.injector.rank = assign.rank
        self.record.clear_groups()
        self.record.update(
            generation=assign.generation, rank=assign.rank, step=assign.resume_step, attempt=0, phase=Phase.JOIN, flags=0
        )
        self.probe.inner = carrier(self.device, assign.bind)
        store = serve_store(assign, self.line) if assign.serve_store else None
        where = self.line.wait_for(Rendezvous, lambda message: message.generation == assign.generation)
        form(assign, where, store, self.release.aborted)
        trainer = self._build(restoring=assign.resume_step >= 0)
        if assign.resume_step >= 0:
            self.replicas.restore(assign, trainer, self.whole.at(assign.state_world).mesh if assign.state_world else None)
        else:
            self.saves.restore(assign, trainer)
        self.trainer = trainer
        self.helm.join(assign.rank, self.device)
        self.replicas.begin(assign, trainer)
        self.saves.join(assign, trainer)
        self.integrity.begin(assign, trainer)
        self._committed = -1
        self._cpu_at_join = time.process_time()
        self.record.update(step=trainer.step - 1)
        self.line.send(Joined(assign.generation, assign.rank, trainer.step))

    def _let_go(self) -> None:
        """Leaves nothing of the generation behind: neither its sockets nor what would hold them open."""
        self.record.update(phase=Phase.WAIT)
        self.saves.leave()
        self.integrity.leave()
        self.release.sockets.abort()
        self.trainer = None
        leave(self.probe)
        self.release.out()

    # -- steps --------------------------------------------------------------------------------------------------------

    def _train(self, assign: Assign) -> None:
        trainer = self._trainer()
        while trainer.step < self.job.steps:
            begin, cpu = time.perf_counter(), time.process_time()
            step = trainer.step
            if self.helm.paused:
                self.helm.pause(step, lambda: self.record.update(phase=Phase.PAUSED))
            if (rate := self.injector.rate(step)) != 1.0:
                self.helm.control.inflict(step, rate)
            if self.helm.control.begin(trainer):
                if assign.rank == 0:
                    self._note(assign, step, 0, None, 0.0, 0.0)
                continue
            figures, attempt = self._step(assign, trainer)
            self.integrity.settled(step, figures is not None, self.replicas.due(step))
            self.replicas.after(step, trainer)
            if assign.rank == 0:
                self._note(assign, step, attempt, figures, time.perf_counter() - begin, time.process_time() - cpu)
                self.saves.tend()
            every = self.helm.control.program.checkpoint_every(self.job.checkpoint_every, trainer.step)
            if trainer.step % every == 0 and trainer.step < self.job.steps:
                self.saves.begin()

    def _step(self, assign: Assign, trainer: Trainer) -> tuple[StepFigures | None, int]:
        """One step, with as many attempts as rules and guard decide on. None for figures: it was left behind."""
        step, attempt, control = trainer.step, 0, self.helm.control
        trial, what = control.trial(step, guarded=True), "outlier"
        self.helm.validate(trainer, self.job.mesh.data_rank(assign.rank), self.job.mesh.data_ranks)
        while True:
            vote = self._attempt(assign, trainer, attempt, trial)
            if attempt == 0:
                self.helm.hear(step, vote.signals)
            found = self.integrity.judge(trainer, step, vote.checks, self._samples(step))
            if found is not None and (vote.finite or found.kind != "range"):
                self._wrong(assign, trainer, attempt, found, trial)
                what, attempt = "range" if found.kind == "range" else what, attempt + 1
                continue
            decision = trial.judge(vote.gates) if vote.finite else None
            if decision is not None and decision.verb == "apply":
                self.record.update(phase=Phase.UPDATE)
                figures = trainer.apply(Gate.total(vote.gates))
                control.committed(trainer, decision.reading)
                self.record.update(loss=figures.loss, grad_norm=figures.norm)
                return figures, attempt
            trainer.drop_gradients()
            self.record.update(phase=Phase.VERDICT)
            if decision is None or decision.verb == "ask":
                asked = Bad(assign.generation, step, attempt, vote.bad, shares=self._shares())
                if decision is not None:
                    ranks = list(decision.ranks)
                    asked = Bad(assign.generation, step, attempt, ranks, what, trial.told(), self._shares())  # type: ignore[arg-type]
                decision = self._ask(asked, trial)
            if decision is not None and decision.verb != "again":
                self._leave_behind(assign, trainer, decision)
                return None, attempt
            attempt += 1

    def _wrong(self, assign: Assign, trainer: Trainer, attempt: int, found: Found, trial: Trial) -> None:
        """Numbers are not to be trusted: the step is not applied. Asks the guard, and does what it says."""
        step, generation = trainer.step, assign.generation
        trainer.drop_gradients()
        self.record.update(phase=Phase.VERDICT)
        ranks, figures = list(found.ranks), list(found.figures)
        if found.kind == "range":
            self.line.send(Bad(generation, step, attempt, ranks, "range", figures, self._shares()))
        elif not (ranks or found.suspects):
            if assign.rank == 0:
                append_line(Path(self.job.events), {"time": time.time(), "kind": "replay.off", "step": step, "facts": figures})
            return
        else:
            newest = {"rest": self.replicas.newest, "replicas": step - 2, "replay": self.integrity.verified.step}[found.kind]
            reload = found.kind == "rest" and newest == step - 1 and self.replicas.here()
            suspects = list(found.suspects)
            self.line.send(Corrupt(generation, step, attempt, found.kind, ranks, newest, reload, suspects, figures))
        answer = self.line.wait_for(Decide, lambda message: (message.step, message.attempt) == (step, attempt))
        if answer.action == "restore" and assign.rank in found.ranks:
            self.replicas.reload(trainer)
        elif answer.action == "apply":
            self.integrity.spare(step)
        trial.rotated = int(answer.action == "rotate")

    def _samples(self, step: int) -> Callable[[int], Tensor]:
        """The samples of a share of the step's batch."""
        ranks = self.job.mesh.data_ranks
        return lambda share: self.injector.spoil(self.cursor.read(step, share, ranks), step, share)

    def _shares(self) -> list[int]:
        """Which share of the batch each rank has."""
        return [self.job.mesh.data_rank(rank) for rank in range(self.job.mesh.ranks)]

    def _ask(self, bad: Bad, trial: Trial) -> Decision | None:
        """The guard's answer. None, or "again": the step is tried once more."""
        self.line.send(bad)
        answer = self.line.wait_for(Decide, lambda message: (message.step, message.attempt) == (bad.step, bad.attempt))
        if answer.action == "skip":
            return trial.skipped_by_guard()
        trial.answered(answer.action)
        return None

    def _leave_behind(self, assign: Assign, trainer: Trainer, decision: Decision) -> None:
        if decision.verb == "stop":
            self.line.send(Halt(assign.generation, trainer.step, f"{decision.reason}: n9 why {decision.record}"))
            self.line.wait_for(Assign)  # ends with Stop
        self.helm.leave_behind(trainer, decision, self.folder / "checkpoint", self.saves.settle)

    def _attempt(self, assign: Assign, trainer: Trainer, attempt: int, trial: Trial) -> Vote:
        """Data, gradients, and the vote. The trial says whose samples: of which step, and by how many ranks moved on."""
        step, ranks = trainer.step, self.job.mesh.data_ranks
        begin = time.perf_counter()
        self.record.update(step=step, attempt=attempt, phase=Phase.DATA, flags=0)
        share = (self.job.mesh.data_rank(assign.rank) + trial.rotated) % ranks
        batch = self._samples(trial.batch)(share)
        self.injector.turn_bad(step, attempt)
        self.injector.flip_state(step, attempt, self.integrity.state)
        self.record.update(phase=Phase.LOCAL)
        replayed = trial.batch == step and not trial.rotated and self.integrity.due(step)
        if replayed:
            self.integrity.replay(trainer, step, self._samples(step))
        computing = time.perf_counter()
        self._poison_next = self.injector.due(step, attempt, "nan") is not None
        self.injector.arm(step, attempt)
        cpu, before = time.thread_time(), self.probe.times()
        self.probe.watch()
        self.integrity.work(trainer, batch, replayed)
        self.injector.drag(time.thread_time() - cpu - (self.probe.times().cpu - before.cpu))
        first_bad = self.probe.first_bad()
        gate = trainer.gate_values()
        spent = self.probe.times()
        local_wall = time.perf_counter() - computing - (spent.wall - before.wall)
        local_cpu = time.thread_time() - cpu - (spent.cpu - before.cpu)
        flags = 0 if gate.finite and first_bad is None else NONFINITE
        self.record.update(phase=Phase.GATE, flags=flags)
        self.replicas.before_gate(step)
        signals = self.helm.row(step) if attempt == 0 else [0.0] * SIGNALS
        vote = cast(gate, self.integrity.row(), signals, self.replicas.held, first_bad, self.device)
        self._tell_committed(assign, vote.held)
        self.record.update(
            local_wall=local_wall * 1e3,
            local_cpu=local_cpu * 1e3,
            data=(computing - begin) * 1e3,
            communication=(self.probe.times().wall - before.wall) * 1e3,
        )
        return vote

    def _tell_committed(self, assign: Assign, step: int) -> None:
        """Said by one rank of each host, once for each step."""
        if step > self._committed and assign.hosts.index(assign.hosts[assign.rank]) == assign.rank:
            self.line.send(Committed(assign.generation, step))
        self._committed = max(self._committed, step)

    def _note(
        self, assign: Assign, step: int, attempt: int, figures: StepFigures | None, seconds: float, cpu_seconds: float
    ) -> None:
        """One line of the history. A step that is done again after a regroup is a new line; the last one counts."""
        line: dict[str, Any] = {
            "step": step,
            "attempt": attempt,
            "generation": assign.generation,
            "ranks": assign.world,
            "skipped": figures is None,
            "seconds": round(seconds, 5),
            "cpu_seconds": round(cpu_seconds, 5),  # of the rank that writes
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
        try:
            return (document_loss if self.job.document_mask else next_token_loss)(model, batch)
        finally:  # a stage that is not the last leaves the loss by an exception
            if self.assign is not None and isinstance(model, Decoder):
                self.injector.strike(self.record.state.step, self.record.state.attempt)

    def _poison(self, gradients: Any) -> None:
        self.injector.flip_gradient(gradients)
        if self._poison_next:
            self._poison_next = False
            gradients[0][(0,) * gradients[0].dim()] = math.nan

    def _miscompute(self, own: Sequence[Own]) -> None:
        if self.injector.gradient_factor != 1.0:
            torch._foreach_mul_([one.gradient for one in own], self.injector.gradient_factor)
            self.integrity.produced.accept(own)

    # -- checkpoints and the end --------------------------------------------------------------------------------------

    def _finish(self, assign: Assign) -> None:
        """After the last step: its shard is held, the weights are digested, saved and exported, and all say Finished."""
        trainer, cpu_seconds = self._trainer(), time.process_time() - self._cpu_at_join
        self.replicas.finish()
        digest = trainer.digest()
        self.helm.finish()
        self._tell_committed(assign, self.job.steps - 1)
        problem = self.saves.end()
        if self.job.export:
            self._export(assign, trainer)
        dist.barrier()
        result: dict[str, str | int | float] = {
            "digest": digest,
            "steps": self.job.steps,
            "host": self.host,
            "no_checkpoint": problem,
            "train_cpu_seconds": round(cpu_seconds, 4),
            "replica_cpu_seconds": round(self.replicas.cpu_seconds, 4),
        }
        self.line.send(Finished(assign.generation, assign.rank, result))

    def _export(self, assign: Assign, trainer: Trainer) -> None:
        from ninthsky.model.files import save

        model = trainer.full_model()
        if assign.rank or not self.saves.may_commit(trainer.step):
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
