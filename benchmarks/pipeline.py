"""How much of a pipeline's time is waiting: each schedule on two real stages, beside what its own arithmetic says.

`python -m benchmarks.pipeline`. Two gloo ranks, a core each; a machine that does other work shows more waiting than there is.
The theory takes all forwards to be equal and a backward to be twice as long; here the last stage has the output layer too.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.report import publish
from ninthsky.model import Decoder, Shape
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.cut.schedule import Name, Schedule
from ninthsky.train.step.loss import next_token_loss
from ninthsky.train.step.recipe import Recipe
from ninthsky.train.step.trainer import Gate, Trainer

SHAPE = Shape(vocab=512, layers=8, dim=192, heads=6, kv_heads=2, experts=8, experts_per_token=2, expert_dim=192, dense_layers=0)
STAGES, ROWS, LENGTH = 2, 8, 128
CASES: list[tuple[Name, int, int]] = [  # schedule, parts, micro-batches
    ("1f1b", 1, 2), ("1f1b", 1, 8), ("interleaved", 2, 2), ("interleaved", 2, 8), ("interleaved", 4, 8),
    ("zero-bubble", 1, 2), ("zero-bubble", 1, 8), ("zero-bubble", 2, 8),
]  # fmt: skip


@contextmanager
def waiting() -> Iterator[list[float]]:
    """Seconds that this process waits for what others send, added up in the list's only element."""
    spent, receive = [0.0], dist.irecv

    class Timed:
        def __init__(self, work: Any) -> None:
            self.work = work

        def wait(self) -> None:
            begin = time.perf_counter()
            self.work.wait()
            spent[0] += time.perf_counter() - begin

    def irecv(tensor: Tensor, **where: Any) -> Any:
        return Timed(receive(tensor, **where))

    distributed: Any = dist
    distributed.irecv = irecv
    try:
        yield spent
    finally:
        distributed.irecv = receive


def measure(steps: int) -> list[tuple[float, float]]:
    """(share of the schedule's time that this rank waits, seconds of the schedule), medians over steps, for each case."""
    rows = []
    for schedule, parts, micros in CASES:
        mesh = Mesh(pp=STAGES, schedule=schedule, parts=parts)
        trainer = Trainer(Decoder(SHAPE, held=False), next_token_loss, Recipe(micro_batches=micros), steps + 1, mesh)
        assert trainer.pipeline is not None
        shares, seconds = [], []
        for step in range(steps + 1):
            batch = torch.randint(SHAPE.vocab, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))
            dist.barrier()
            with waiting() as spent:
                begin = time.perf_counter()
                trainer.local_gradients(batch)
                # Who is done before the others waits too.
                own, longest = time.perf_counter() - begin, torch.tensor(time.perf_counter() - begin)
                dist.all_reduce(longest, op=dist.ReduceOp.MAX)
            trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
            if step:  # the first one warms up
                shares.append((spent[0] + float(longest) - own) / float(longest))
                seconds.append(float(longest))
        rows.append((float(torch.tensor(shares).median()), float(torch.tensor(seconds).median())))
    return rows


def _rank(rank: int, meeting: str, steps: int, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=STAGES)
    answers.put(measure(steps))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=7)
    steps = parser.parse_args().steps
    context = mp.get_context("fork")
    answers: Any = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        ranks = [context.Process(target=_rank, args=(rank, meeting, steps, answers), daemon=True) for rank in range(STAGES)]
        for process in ranks:
            process.start()
        found = [answers.get() for _ in ranks]
        for process in ranks:
            process.join()
    rows, figures = [], {}
    for number, (schedule, parts, micros) in enumerate(CASES):
        idle = sum(rank[number][0] for rank in found) / STAGES
        theory = Schedule.of(schedule, STAGES, parts, micros)
        rows.append(
            (
                f"{schedule}, {parts} parts, {micros} micro-batches",
                round(theory.idle, 3),
                round(idle, 3),
                round(found[0][number][1], 3),
                theory.held(0),
            )
        )
        figures[f"idle_{schedule}_{parts}_{micros}"] = idle
    columns = ("pp = 2", "idle by arithmetic", "idle measured", "seconds", "activations held by stage 0")
    publish("pipeline", rows, figures, columns)


if __name__ == "__main__":
    main()
