"""A rank between its start and its last step: it prepares, then lives through one generation after another."""

from __future__ import annotations

import gc
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from ninthsky.guard.probe.group import BACKEND, Probe, register
from ninthsky.guard.probe.line import Interrupted, Line
from ninthsky.guard.probe.messages import Assign, Broken, Finished, Joined, Ready, Rendezvous, Stop
from ninthsky.guard.probe.record import Phase, RecordWriter
from ninthsky.model.decoder import Decoder
from ninthsky.train.control.anchors import kept
from ninthsky.train.control.helm import Helm
from ninthsky.train.control.records import guard_hears
from ninthsky.train.control.validation import set_apart
from ninthsky.train.inject import Injector
from ninthsky.train.job import TrainJob
from ninthsky.train.rank.generation import form, leave, serve_store
from ninthsky.train.rank.integrity import Integrity
from ninthsky.train.rank.life.inflicted import Inflicted
from ninthsky.train.rank.life.steps import Steps
from ninthsky.train.rank.shadow import mirror
from ninthsky.train.state import shards
from ninthsky.train.state.replicas import Carried, Replicas
from ninthsky.train.state.saves import Saves
from ninthsky.train.step.device import carrier, device
from ninthsky.train.step.trainer import Gate, Trainer
from ninthsky.train.text.cursor import TokenFile
from ninthsky.train.text.mixture import open_reader

if TYPE_CHECKING:  # elastic is the program that this module is imported by: it runs under another name
    from ninthsky.train.rank.elastic import Release


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
        self.inflicted = Inflicted(self.injector, record, self.integrity, job.document_mask)
        replicated = {**self.carried, "verified": self.integrity.verified}
        self.replicas = Replicas(line, shard_folder, job.replicate_every, job.steps, replicated)
        self.replicas.also = self.integrity.replays.due
        self.saves = Saves(line, self.folder / "checkpoint", job.events, self.carried)
        self.saves.keep = kept(job.control, job.checkpoint_every)
        self.trainer: Trainer | None = None
        self._cpu_at_join = 0.0
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
        trainer = Trainer(model, self.inflicted.loss, self.job.recipe, self.job.steps, self.job.mesh, self.device)
        trainer.before_reduce.append(self.inflicted.poison)
        trainer.own_gradients.append(self.inflicted.miscompute)
        trainer.moments.append(self.probe.at)
        return trainer

    def _generation(self, assign: Assign) -> str:
        """Trains until the job is done or the generation ends. Returns why it ended; empty where the job is done.

        Raises whatever is no failure of a collective: the process ends then, and the agent tells how.
        """
        try:
            self._join(assign)
            steps = Steps(self, assign, self._trainer())
            steps.run()
            self._finish(steps)
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
        self.trainer, self.job = None, self.whole.at(assign.world)
        self.inflicted.assigned = True
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

    # -- checkpoints and the end --------------------------------------------------------------------------------------

    def _finish(self, steps: Steps) -> None:
        """After the last step: its shard is held, the weights are digested, saved and exported, and all say Finished."""
        assign, trainer, cpu_seconds = steps.assign, steps.trainer, time.process_time() - self._cpu_at_join
        self.replicas.finish()
        digest = trainer.digest()
        self.helm.finish()
        steps.tell_committed(self.job.steps - 1)
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
