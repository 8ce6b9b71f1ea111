"""What more ranks cost: `python -m benchmarks.scaling`, processor microseconds per token at 1, 2, 4 and 8 ranks of one machine.

The batch of a rank is the same at every number of ranks. In each world the ranks do three things, one after the other: train
together (dp_shard x ep); train side by side without a word to each other, which shows what crowding alone costs; and do the
collectives of a step by themselves. The last line is JSON.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import multiprocessing as mp
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.sides import batch
from ninthsky.model import Decoder, Shape
from ninthsky.model.experts import Experts
from ninthsky.train.cut.collectives import all_gather, reduce_scatter
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss

CUT = Shape(512, 4, 192, 4, 2, 8, 2, 192, dense_layers=1, dense_dim=512)
WORLDS = (1, 2, 4, 8)
LENGTH = 256
ROWS = {4: 6, 16: 3}  # sequences of a rank's batch -> timed steps
WARM = 1


def _trainer(mesh: Mesh | None) -> Trainer:
    return Trainer(Decoder(CUT), next_token_loss, Recipe(), 1000, mesh)


def _timed(step: Callable[[], object], steps: int) -> tuple[float, float]:
    """Median seconds of processor time and of the wall clock, all ranks beginning together."""
    cpus, walls = [], []
    for number in range(-WARM, steps):
        dist.barrier()
        cpu, wall = time.process_time(), time.perf_counter()
        step()
        if number >= 0:
            cpus.append(time.process_time() - cpu)
            walls.append(time.perf_counter() - wall)
    return statistics.median(cpus), statistics.median(walls)


def _step(trainer: Trainer, tokens: torch.Tensor) -> None:
    trainer.local_gradients(tokens)
    trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))


def _collectives(trainer: Trainer, rows: int) -> Callable[[], object]:
    """The bytes of a step by themselves: weights gathered, gradients reduced, tokens to their experts and back, twice."""
    world = dist.get_world_size()
    experts = sum(piece.local.numel() for piece in trainer.pieces if ".experts." in piece.name)
    dense = sum(piece.local.numel() for piece in trainer.pieces if ".experts." not in piece.name)
    own = [torch.zeros(count) for count in (dense, experts) if count]
    whole = [torch.zeros(len(own[0]) * world), torch.zeros(len(own[1]) * max(world // 2, 1))]
    ep = next(module.group for module in trainer.model.modules() if isinstance(module, Experts))
    few = dist.new_subgroups_by_enumeration([[r for r in range(world) if r % 2 == side] for side in (0, 1)])[0]
    sent = torch.zeros(rows * LENGTH * CUT.experts_per_token, CUT.dim)
    arrived = torch.zeros_like(sent)

    def once() -> None:
        for part, all_of_it, group in zip(own, whole, (None, few), strict=True):
            if len(all_of_it) > len(part):
                all_gather(all_of_it, part, group=group)
                reduce_scatter(part, all_of_it, group=group)
        for _ in range(4 * CUT.sparse_layers):
            dist.all_to_all_single(arrived, sent, group=ep)

    return once


def _rank(rank: int, world: int, meeting: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    together, alone = _trainer(Mesh(dp_shard=world, ep=min(world, 2))), _trainer(None)
    found: dict[str, Any] = {}
    for rows, steps in ROWS.items():
        tokens = batch(rows, LENGTH, CUT.vocab, seed=rank)
        found[f"together {rows}"] = _timed(lambda tokens=tokens: _step(together, tokens), steps)  # type: ignore[misc]
        found[f"alone {rows}"] = _timed(lambda tokens=tokens: _step(alone, tokens), steps)  # type: ignore[misc]
        if world > 1:
            found[f"collectives {rows}"] = _timed(_collectives(together, rows), steps)
    answers.put(found)
    dist.barrier()
    dist.destroy_process_group()


def world(ranks: int) -> dict[str, tuple[float, float]]:
    """ "together 4", "alone 4" ...: seconds of a step, processor's and wall's, means over ranks."""
    context = mp.get_context("fork")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(rank, ranks, str(Path(folder) / "meeting"), answers) for rank in range(ranks)]
        started = [context.Process(target=_rank, args=each) for each in arguments]
        for process in started:
            process.start()
        told = [answers.get(timeout=300) for _ in started]
        for process in started:
            process.join()
    return {way: tuple(statistics.mean(one[way][i] for one in told) for i in (0, 1)) for way in told[0]}


def measure() -> dict[int, dict[str, tuple[float, float]]]:
    """`world` for each of WORLDS, in a process that forks before torch has done anything."""
    told = subprocess.run([sys.executable, "-m", "benchmarks.scaling"], capture_output=True, text=True, check=True).stdout
    return {int(ranks): found for ranks, found in json.loads(told.splitlines()[-1]).items()}


if __name__ == "__main__":
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # its first construction imports a good deal, once for all ranks
    print(json.dumps({ranks: world(ranks) for ranks in WORLDS}))
