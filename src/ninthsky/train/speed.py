"""How long a step of a job takes, measured on as many ranks as the job has: `python -m ninthsky.train.speed JOB.json FOLDER`.

Ranks are forked from a process that has imported torch already, so the measurement costs seconds. Nothing of it is kept but
the number. The last line printed is JSON: {"seconds": {"fp32": ...}, "cpu_seconds": {...}}.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from ninthsky.errors import UserError

WARM_STEPS, TIMED_STEPS = 2, 6
GAIN = 1.1  # by which bf16 must beat fp32 in processor time to be taken


def measure(job: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Seconds per step, on the wall and of processor time, for each precision that the job allows.

    Raises UserError N9-TRN-004 when the ranks do not get so far.
    """
    command = [sys.executable, "-m", "ninthsky.train.speed", str(job), str(folder)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError("N9-TRN-004", f"the speed could not be measured: {last}", str(job), " ".join(command))
    found: dict[str, dict[str, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _rank(rank: int, path: Path, folder: Path, said: Any) -> None:
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    from ninthsky.guard.probe.group import BACKEND, Probe, register
    from ninthsky.guard.probe.record import RecordWriter
    from ninthsky.model.decoder import Decoder
    from ninthsky.train.job import load_job
    from ninthsky.train.state import shards
    from ninthsky.train.step.device import carrier, device
    from ninthsky.train.step.loss import document_loss, next_token_loss
    from ninthsky.train.step.trainer import Gate, Trainer
    from ninthsky.train.text.cursor import TokenFile
    from ninthsky.train.text.mixture import open_reader

    torch.set_num_threads(1)
    gc.enable()
    job, where = load_job(path), device()
    ranks = job.mesh.ranks
    register(Probe(RecordWriter(folder / f"record-{rank}"), carrier(where, "127.0.0.1")), where.type)
    dist.init_process_group(
        BACKEND, store=FileStore(str(folder / "store"), ranks), rank=rank, world_size=ranks, timeout=timedelta(seconds=300)
    )
    cursor = open_reader(TokenFile.open(Path(job.tokens), "train"), job.sequence, job.batch, job.seed, job.mixture)
    found: dict[str, dict[str, float]] = {"seconds": {}, "cpu_seconds": {}}
    for precision in job.precisions:
        recipe = replace(job.recipe, precision=precision)  # type: ignore[arg-type]
        loss = document_loss if job.document_mask else next_token_loss
        model = Decoder(job.shape, seed=job.seed, held=False)
        trainer = Trainer(model, loss, recipe, WARM_STEPS + TIMED_STEPS, job.mesh, where)
        walls, cpus = [], []
        for step in range(WARM_STEPS + TIMED_STEPS):
            wall, cpu = time.perf_counter(), time.process_time()
            trainer.local_gradients(cursor.read(step, job.mesh.data_rank(rank), job.mesh.data_ranks))
            trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
            shards.write(folder, rank, step, trainer.state_shard(), {})
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        found["seconds"][precision] = statistics.median(walls[WARM_STEPS:])
        found["cpu_seconds"][precision] = statistics.median(cpus[WARM_STEPS:])
    dist.barrier()
    if rank == 0:
        said.send(found)


def main() -> int:
    """Forks the ranks and prints what rank 0 found."""
    gc.disable()  # as in elastic.py
    import torch

    import ninthsky.train.step.trainer  # noqa: F401 - what every rank needs, imported once before the fork
    from ninthsky.train.job import load_job

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # its first construction imports a good deal more
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    job = load_job(path)
    context = multiprocessing.get_context("fork")
    hear, say = context.Pipe(duplex=False)
    ranks = [context.Process(target=_rank, args=(rank, path, folder, say), daemon=True) for rank in range(job.mesh.ranks)]
    gc.freeze()
    for process in ranks:
        process.start()
    say.close()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        print(f"ranks ended with {[process.exitcode for process in ranks]}", file=sys.stderr)
        return 1
    print(json.dumps(hear.recv()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
