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
from ninthsky.train import checkpoint
from ninthsky.train.recipe import Precision, Recipe, faster_precision, measure_steps
from ninthsky.train.trainer import Gate, Loss, StepFigures, Trainer

__all__ = ["Gate", "History", "Precision", "Recipe", "StepFigures", "Trainer", "faster_precision", "fit", "measure_steps"]


HISTORY = "history.jsonl"  # beside the state of each checkpoint


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
) -> History:
    """Trains `model` in place for `steps` steps. All of its parameters are trained; routers anywhere in it are balanced.

    `batch_at(step)` must be a pure function of the step. `loss(model, batch)` gives (sum, count): gradients are those of
    sum / count. With a `folder` the run is kept there and goes on from its newest good checkpoint: after a kill at any
    moment the same call ends in the same bits. Raises UserError N9-TRN-002 at a loss or gradient that is not finite.
    """
    trainer = Trainer(model, loss, recipe, steps)
    done: list[StepFigures] = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        restored = checkpoint.restore(trainer, folder)
        if restored.path is not None:
            lines = (restored.path / HISTORY).read_text("utf-8").splitlines()
            done = [StepFigures(**json.loads(line)) for line in lines]
    resumed = trainer.step
    if progress is not None and resumed:
        progress.advance(resumed)
    while trainer.step < steps:
        trainer.local_gradients(batch_at(trainer.step))
        gate = trainer.gate_values()
        if not gate.finite:
            raise UserError(
                "N9-TRN-002",
                f"step {trainer.step}: loss {gate.loss}, gradient norm {gate.own_norm}",
                "",
                "take a lower learning rate; the last checkpoint is whole",
            )
        done.append(trainer.apply(Gate.total([gate])))
        if progress is not None:
            progress.advance(1, loss=done[-1].loss)
        if folder is not None and (trainer.step % checkpoint_every == 0 or trainer.step == steps):
            lines = [json.dumps(asdict(figures)) + "\n" for figures in done]
            saved = checkpoint.save(trainer, folder, notes={HISTORY: "".join(lines).encode()})
            if saved.problem and progress is not None:
                progress.note(f"checkpoint of step {saved.step} was not kept: {saved.problem}")
    model.eval()
    return History(tuple(done), trainer.digest(), resumed)
