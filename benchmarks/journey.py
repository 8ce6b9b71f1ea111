"""One run that changes its number of ranks on the way, each leg from the checkpoint of the leg before, as real gloo processes.

The same processes form one group after another (4, 2, 3, 8 ...), so that a leg costs no start. Every rank writes down which
samples it read; together they must be the global batches of a run that never changed, none lost, none read twice. With the
router choices of the unchanged run pinned, weights and losses may differ by rounding alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import xxhash

from ninthsky.model import Decoder, Shape
from ninthsky.model.router import Choices, pinned, recorded
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.state import checkpoint
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss
from ninthsky.train.text.cursor import Cursor

SHAPE = Shape(97, 3, 32, 4, 2, 6, 2, 24, dense_layers=1, dense_dim=48)  # 6 experts: 2 and 3 ranks share them
STEPS, BATCH, SEQUENCE = 20, 13, 16  # 13 rows: no number of ranks shares them evenly
SGD = Recipe(lr=0.5, optimizer="sgd", weight_decay=0.0, warmup=0.0, schedule="constant", clip=0.0)


@dataclass(frozen=True)
class Leg:
    """Some steps on one mesh."""

    mesh: Mesh
    steps: range


@dataclass
class Trace:
    """What a run read and came to. `rows`: (step, sample, digest of the row), in the order of reading."""

    rows: list[tuple[int, int, str]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    digest: str = ""
    begun: list[int] = field(default_factory=list)  # step at which each leg took up


def cursor() -> Cursor:
    rng = np.random.default_rng(0)
    ids = 6 + np.minimum(rng.geometric(0.1, 4000), SHAPE.vocab - 7)
    return Cursor(ids.astype(np.uint16), sequence=SEQUENCE, batch=BATCH, seed=11)


def one_step(trainer: Trainer, trace: Trace, rank: int, ranks: int, choices: Choices | None = None) -> Choices:
    """One step of this rank's share; -> its router choices."""
    step, reader = trainer.step, cursor()
    samples = reader.samples(step, rank, ranks)
    batch = reader.read(step, rank, ranks)
    trace.rows += [
        (step, int(sample), xxhash.xxh3_64_hexdigest(row.tobytes())) for sample, row in zip(samples, batch.numpy(), strict=True)
    ]
    with recorded(trainer.model) as made:
        if choices is None:
            trainer.local_gradients(batch)
        else:
            rows = torch.from_numpy(samples.astype(np.int64)) - step * BATCH
            numbers = rows[:, None] * SEQUENCE + torch.arange(SEQUENCE)
            with pinned(trainer.model, choices.dealt([numbers])):
                trainer.local_gradients(batch)
    trace.losses[step] = trainer.apply(Gate.total(trainer.gather(trainer.gate_values()))).loss
    return made


def alone(recipe: Recipe) -> tuple[Trace, list[Choices]]:
    """The whole run in one process, and its router choices step by step."""
    trace = Trace()
    trainer = Trainer(Decoder(SHAPE, seed=0), next_token_loss, recipe, STEPS)
    choices = [one_step(trainer, trace, 0, 1) for _ in range(STEPS)]
    trace.weights = {name: tensor.detach().numpy().copy() for name, tensor in trainer.whole_state().items()}
    trace.digest = trainer.digest()
    return trace, choices


def travel(rank: int, folder: Path, legs: Sequence[Leg], recipe: Recipe, choices: Sequence[Choices]) -> Trace:
    """This process's part of all legs that it is a rank of. It must not be in a process group yet."""
    trace = Trace()
    for number, leg in enumerate(legs):
        world = leg.mesh.ranks
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/leg-{number}", rank=rank, world_size=world)
        # Other weights than the run's: what is right afterwards came from the checkpoint.
        trainer = Trainer(Decoder(SHAPE, seed=number), next_token_loss, recipe, STEPS, leg.mesh)
        trace.begun.append(checkpoint.restore(trainer, folder / "checkpoint").step)
        for step in leg.steps:
            one_step(trainer, trace, rank, world, choices[step])
        saved = checkpoint.save(trainer, folder / "checkpoint")
        if saved.problem:
            raise OSError(saved.problem)
        trace.digest = trainer.digest()
        trace.weights = {name: tensor.detach().numpy().copy() for name, tensor in trainer.whole_state().items()}
        dist.barrier()
        dist.destroy_process_group()
    return trace


def batches(traces: Sequence[Trace]) -> dict[int, str]:
    """Digest of each step's global batch, put together from what the ranks read. Raises ValueError where a sample is missing
    or was read twice."""
    by_step: dict[int, list[tuple[int, str]]] = {}
    for trace in traces:
        for step, sample, digest in trace.rows:
            by_step.setdefault(step, []).append((sample, digest))
    for step, rows in by_step.items():
        if sorted(sample for sample, _ in rows) != list(range(step * BATCH, (step + 1) * BATCH)):
            raise ValueError(f"step {step} read samples {sorted(sample for sample, _ in rows)}")
    return {step: xxhash.xxh3_128_hexdigest(repr(sorted(rows)).encode()) for step, rows in by_step.items()}


def furthest(one: Trace, other: Trace) -> tuple[float, float]:
    """Largest difference of a weight, and of a loss."""
    weights = max(float(np.abs(one.weights[name] - other.weights[name]).max()) for name in one.weights)
    return weights, max(abs(one.losses[step] - other.losses[step]) for step in one.losses)


def fresh(folder: Path) -> Path:
    """A folder of its own for one journey."""
    path = folder / f"journey-{os.urandom(4).hex()}"
    path.mkdir(parents=True)
    return path
