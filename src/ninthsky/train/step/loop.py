"""Training in one process: the distributed trainer's own step, without ranks; resumed to the bit after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ninthsky.errors import UserError
from ninthsky.run.progress import Progress
from ninthsky.train.control.anchors import Anchors, Checkpoints, Copies, kept, leave_behind
from ninthsky.train.control.limits import Limits
from ninthsky.train.control.steering import Control
from ninthsky.train.state import checkpoint
from ninthsky.train.step.recipe import Precision, Recipe, faster_precision, measure_steps
from ninthsky.train.step.trainer import Gate, Loss, StepFigures, Trainer

__all__ = ["Gate", "History", "Precision", "Recipe", "StepFigures", "Trainer", "faster_precision", "fit", "measure_steps"]


HISTORY, CONTROL = "history.jsonl", "control.json"  # beside the state of each checkpoint


@dataclass(frozen=True)
class History:
    """What a run was, step by step; after a resume also the steps before it."""

    steps: tuple[StepFigures, ...]
    digest: str  # of the final weights
    resumed_from: int = 0  # step; 0 where it began anew

    @property
    def losses(self) -> list[float]:
        """Mean loss per step."""
        return [figures.loss for figures in self.steps]


def fit(
    model: nn.Module,
    batch_at: Callable[[int], Any],
    loss: Loss,
    recipe: Recipe,
    steps: int,
    progress: Progress | None = None,
    folder: Path | None = None,
    checkpoint_every: int = 100,
    control: Control | None = None,
    validation: tuple[int, Any] | None = None,
) -> History:
    """Trains `model` in place for `steps` steps. All of its parameters are trained; routers anywhere in it are balanced.

    `batch_at(step)` must be a pure function of the step. `loss(model, batch)` gives (sum, count): gradients are those of
    sum / count. With a `folder` the run is kept there and goes on from its newest good checkpoint: after a kill at any
    moment the same call ends in the same bits. Raises UserError N9-TRN-002 at a loss or gradient that is not finite.
    `control` has the rules that watch the run, none by default; `validation` is (every so many steps, a batch that is never
    trained on). A step that was skipped or rolled back is missing from, or has no effect after, its line of the history.
    Raises UserError N9-TRN-012 where a rule stops the run.
    """
    trainer = Trainer(model, loss, recipe, steps)
    control = control or Control(Limits(mode="off"), recipe)
    copies = Copies(kept(control.limits, checkpoint_every)) if folder is None and control.watches else None
    anchors: Anchors = Copies(0) if folder is None else Checkpoints(folder)
    done: list[StepFigures] = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        restored = checkpoint.restore(trainer, folder)
        if restored.path is not None:
            lines = (restored.path / HISTORY).read_text("utf-8").splitlines()
            done = [StepFigures(**json.loads(line)) for line in lines]
            control.load(json.loads((restored.path / CONTROL).read_text("utf-8")))
    resumed = trainer.step
    if progress is not None and resumed:
        progress.advance(resumed)
    while trainer.step < steps:
        if copies is not None and trainer.step % checkpoint_every == 0:
            copies.add(trainer)
        if not control.begin(trainer):
            if validation is not None and trainer.step and trainer.step % validation[0] == 0:
                control.validated(*trainer.evaluate(validation[1]))
            figures = _step(trainer, control, batch_at, copies or anchors)
            if figures is not None:
                done.append(figures)
        if progress is not None:
            progress.advance(1, **({"loss": done[-1].loss} if done else {}))
        every = control.program.checkpoint_every(checkpoint_every, trainer.step)
        if folder is not None and (trainer.step % every == 0 or trainer.step == steps):
            lines = [json.dumps(asdict(figures)) + "\n" for figures in done]
            notes = {HISTORY: "".join(lines).encode(), CONTROL: json.dumps(control.dump()).encode()}
            saved = checkpoint.save(trainer, folder, keep=kept(control.limits, every), notes=notes)
            if saved.problem and progress is not None:
                progress.note(f"checkpoint of step {saved.step} was not kept: {saved.problem}")
    model.eval()
    return History(tuple(done), trainer.digest(), resumed)


def _step(trainer: Trainer, control: Control, batch_at: Callable[[int], Any], anchors: Anchors) -> StepFigures | None:
    """One step, with as many attempts as the rules ask for. None: it was left behind."""
    trial, heard = control.trial(trainer.step), False
    while True:
        trainer.local_gradients(batch_at(trial.batch))
        gate = trainer.gate_values()
        if not heard:
            control.hear(trainer.step, [control.signals()])
            heard = True
        decision = trial.judge([gate])
        if decision.verb == "apply":
            if not gate.finite:
                raise UserError(
                    "N9-TRN-002",
                    f"step {trainer.step}: loss {gate.loss}, gradient norm {gate.own_norm}",
                    "",
                    "take a lower learning rate; the last checkpoint is whole",
                )
            figures = trainer.apply(Gate.total([gate]))
            control.committed(trainer, decision.reading)
            return figures
        trainer.drop_gradients()
        if decision.verb != "again":
            leave_behind(trainer, control, decision, anchors)
            return None
