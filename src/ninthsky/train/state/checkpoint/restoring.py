"""Loading the newest good checkpoint, whatever mesh wrote it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from ninthsky.errors import UserError
from ninthsky.model.router import Router
from ninthsky.train.state.checkpoint.metadata import load_into
from ninthsky.train.state.checkpoint.seal import check, checkpoints, step_of
from ninthsky.train.step.trainer import Trainer


@dataclass(frozen=True)
class Restored:
    """Where a trainer stands now, and which newer checkpoints were refused, with the reason."""

    step: int
    path: Path | None
    refused: dict[str, str] = field(default_factory=dict)


def restore(trainer: Trainer, folder: Path, wanted: Callable[[int], bool] = lambda step: True) -> Restored:
    """Loads the newest good checkpoint of `folder` into the trainer, whatever mesh wrote it (collective); of those only whose
    number of finished steps is `wanted`.

    Each rank reads its share of the files to the last byte. Bad checkpoints are refused with the reason and the one before is
    tried; with none left the trainer stays as it was built.
    Raises UserError N9-TRN-003 where a checkpoint is whole and does not fit: another model's.
    """
    path, refused = _newest_good(trainer, folder, wanted)
    if path is None:
        return Restored(trainer.step, None, refused)
    state = trainer.distributed_state()
    if problem := _attempt(lambda: load_into(state, path, alone=not trainer.distributed)):
        raise UserError("N9-TRN-003", f"{path.name}: {problem}", str(path), "it is of another model: take another folder")
    trainer.step = int(state["step"])
    return Restored(trainer.step, path, refused)


def load_weights(model: nn.Module, path: Path) -> int:
    """Weights of one checkpoint into an uncut module, whatever mesh wrote it; -> its step.

    Raises UserError N9-TRN-003 where the checkpoint is bad, or of another model.
    """
    problem = check(path)
    if not problem:
        state = {f"weight/{name}": parameter.data for name, parameter in model.named_parameters()}
        routers = [(name, module) for name, module in model.named_modules() if isinstance(module, Router)]
        state |= {f"bias/{name}": router.e_score_correction_bias for name, router in routers}
        state["step"] = torch.zeros((), dtype=torch.int64)
        problem = _attempt(lambda: load_into(state, path, alone=True))
    if problem:
        raise UserError("N9-TRN-003", f"{path.name}: {problem}", str(path), "n9 train check FOLDER: which ones are good")
    return int(state["step"])


def _newest_good(trainer: Trainer, folder: Path, wanted: Callable[[int], bool]) -> tuple[Path | None, dict[str, str]]:
    rank, world = (dist.get_rank(), dist.get_world_size()) if trainer.distributed else (0, 1)
    listed: list[Any] = [None]
    if rank == 0:
        listed = [[path for path in checkpoints(folder) if wanted(step_of(path))]]
    if world > 1:
        dist.broadcast_object_list(listed, src=0)
    refused: dict[str, str] = {}
    for path in listed[0]:
        problems: list[Any] = [check(path, rank, world)]
        if world > 1:
            problems = [""] * world
            dist.all_gather_object(problems, check(path, rank, world))
        problem = next(filter(None, problems), "")
        if not problem:
            return path, refused
        refused[path.name] = problem
    return None, refused


def _attempt(work: Callable[[], object]) -> str:
    """Empty, or why a checkpoint could not be loaded."""
    try:
        work()
    except (OSError, RuntimeError, CheckpointException, pickle.UnpicklingError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
