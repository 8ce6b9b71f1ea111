"""The steps of one generation: data, gradients, the vote, what rules and guard decide about them, the update, its replica."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ninthsky.guard.probe.messages import Assign, Bad, Committed, Corrupt, Decide, Halt
from ninthsky.guard.probe.record import NONFINITE, Phase
from ninthsky.run.folder import append_line
from ninthsky.train.control.steering import SIGNALS
from ninthsky.train.control.trial import Decision, Trial
from ninthsky.train.rank.integrity import Found
from ninthsky.train.rank.vote import Vote, cast
from ninthsky.train.step.trainer import Gate, StepFigures, Trainer

if TYPE_CHECKING:
    from ninthsky.train.rank.life.rank import Rank

HISTORY = "history.jsonl"


class Steps:
    """Made anew for each generation; `run` ends with it."""

    def __init__(self, rank: Rank, assign: Assign, trainer: Trainer) -> None:
        self.assign, self.trainer = assign, trainer
        self.job, self.folder, self.device = rank.job, rank.folder, rank.device
        self.line, self.record, self.probe = rank.line, rank.record, rank.probe
        self.cursor, self.injector, self.inflicted = rank.cursor, rank.injector, rank.inflicted
        self.helm, self.integrity, self.replicas, self.saves = rank.helm, rank.integrity, rank.replicas, rank.saves
        self._committed = -1  # newest step that was told as committed

    def run(self) -> None:
        """Until the job's last step is done. Raises Interrupted, or what a broken collective raises."""
        assign, trainer = self.assign, self.trainer
        while trainer.step < self.job.steps:
            begin, cpu = time.perf_counter(), time.process_time()
            step = trainer.step
            if self.helm.paused:
                self.helm.pause(step, lambda: self.record.update(phase=Phase.PAUSED))
            if (rate := self.injector.rate(step)) != 1.0:
                self.helm.control.inflict(step, rate)
            if self.helm.control.begin(trainer):
                if assign.rank == 0:
                    self._note(step, 0, None, 0.0, 0.0)
                continue
            figures, attempt = self._step()
            self.integrity.settled(step, figures is not None, self.replicas.due(step))
            self.replicas.after(step, trainer)
            if assign.rank == 0:
                self._note(step, attempt, figures, time.perf_counter() - begin, time.process_time() - cpu)
                self.saves.tend()
            every = self.helm.control.program.checkpoint_every(self.job.checkpoint_every, trainer.step)
            if trainer.step % every == 0 and trainer.step < self.job.steps:
                self.saves.begin()

    def _step(self) -> tuple[StepFigures | None, int]:
        """One step, with as many attempts as rules and guard decide on. None for figures: it was left behind."""
        assign, trainer = self.assign, self.trainer
        step, attempt, control = trainer.step, 0, self.helm.control
        trial, what = control.trial(step, guarded=True), "outlier"
        self.helm.validate(trainer, self.job.mesh.data_rank(assign.rank), self.job.mesh.data_ranks)
        while True:
            vote = self._attempt(attempt, trial)
            if attempt == 0:
                self.helm.hear(step, vote.signals)
            found = self.integrity.judge(trainer, step, vote.checks, self._samples(step))
            if found is not None and (vote.finite or found.kind != "range"):
                self._wrong(attempt, found, trial)
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
                self._leave_behind(decision)
                return None, attempt
            attempt += 1

    def _wrong(self, attempt: int, found: Found, trial: Trial) -> None:
        """Numbers are not to be trusted: the step is not applied. Asks the guard, and does what it says."""
        assign, trainer = self.assign, self.trainer
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

    def _leave_behind(self, decision: Decision) -> None:
        assign, trainer = self.assign, self.trainer
        if decision.verb == "stop":
            self.line.send(Halt(assign.generation, trainer.step, f"{decision.reason}: n9 why {decision.record}"))
            self.line.wait_for(Assign)  # ends with Stop
        self.helm.leave_behind(trainer, decision, self.folder / "checkpoint", self.saves.settle)

    def _attempt(self, attempt: int, trial: Trial) -> Vote:
        """Data, gradients, and the vote. The trial says whose samples: of which step, and by how many ranks moved on."""
        assign, trainer = self.assign, self.trainer
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
        self.inflicted.poison_next = self.injector.due(step, attempt, "nan") is not None
        self.injector.arm(step, attempt)
        wall, cpu, before = self.probe.clock(), time.thread_time(), self.probe.times()
        self.probe.watch()
        self.integrity.work(trainer, batch, replayed)
        self.injector.drag(time.thread_time() - cpu - (self.probe.times().cpu - before.cpu))
        first_bad = self.probe.first_bad()
        gate = trainer.gate_values()
        spent = self.probe.times()
        local_wall = self.probe.clock() - wall - (spent.wall - before.wall)
        local_cpu = time.thread_time() - cpu - (spent.cpu - before.cpu)
        flags = 0 if gate.finite and first_bad is None else NONFINITE
        self.record.update(phase=Phase.GATE, flags=flags)
        self.replicas.before_gate(step)
        signals = self.helm.row(step) if attempt == 0 else [0.0] * SIGNALS
        vote = cast(gate, self.integrity.row(), signals, self.replicas.held, first_bad, self.device)
        self.tell_committed(vote.held)
        self.record.update(
            local_wall=local_wall * 1e3,
            local_cpu=local_cpu * 1e3,
            data=(computing - begin) * 1e3,
            communication=(self.probe.times().wall - before.wall) * 1e3,
        )
        return vote

    def tell_committed(self, step: int) -> None:
        """Said by one rank of each host, once for each step."""
        assign = self.assign
        if step > self._committed and assign.hosts.index(assign.hosts[assign.rank]) == assign.rank:
            self.line.send(Committed(assign.generation, step))
        self._committed = max(self._committed, step)

    def _note(self, step: int, attempt: int, figures: StepFigures | None, seconds: float, cpu_seconds: float) -> None:
        """One line of the history. A step that is done again after a regroup is a new line; the last one counts."""
        line: dict[str, Any] = {
            "step": step,
            "attempt": attempt,
            "generation": self.assign.generation,
            "ranks": self.assign.world,
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
