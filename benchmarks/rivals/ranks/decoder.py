"""One rank of benchmarks/rivals/torchrun.py: the guard's model, mesh, tokens and step under `torchrun`, with no guard.

    torchrun ... benchmarks/rivals/ranks/decoder.py TRAIN.json [--prefix] [--timeout SECONDS]

Written as a careful user of torchrun would: each attempt goes on from the newest good checkpoint. `--prefix` gives each attempt
names of its own in the store, which torchrun keeps over a restart.
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ninthsky.model.decoder import Decoder
from ninthsky.run.folder import append_line
from ninthsky.train.job import load_job
from ninthsky.train.state import checkpoint
from ninthsky.train.step.device import device
from ninthsky.train.step.loss import next_token_loss
from ninthsky.train.step.trainer import Gate, Trainer
from ninthsky.train.text.cursor import Cursor, TokenFile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("--prefix", action="store_true")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds, of every collective")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    job, attempt = load_job(arguments.job), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    # Groups made later, as FSDP2's mesh makes them, take this one and not the first group's.
    dist.distributed_c10d.default_pg_timeout = timedelta(seconds=arguments.timeout)
    store, rank, world = next(rendezvous("env://"))
    if arguments.prefix:
        store = PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=arguments.timeout))
    trainer = Trainer(Decoder(job.shape, seed=job.seed), next_token_loss, job.recipe, job.steps, job.mesh, device())
    folder = Path(job.folder)
    restored = checkpoint.restore(trainer, folder / "checkpoint")
    cursor = Cursor(TokenFile.open(Path(job.tokens), "train").tokens, job.sequence, job.batch, job.seed)
    append_line(folder / f"rank-{rank}.jsonl", {"pid": os.getpid(), "attempt": attempt, "restored": restored.step})
    while trainer.step < job.steps:
        step = trainer.step
        trainer.local_gradients(cursor.read(step, rank, world))
        trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
        if rank == 0:
            append_line(folder / "history.jsonl", {"step": step, "attempt": attempt, "time": time.time()})
        if trainer.step % job.checkpoint_every == 0:
            checkpoint.save(trainer, folder / "checkpoint")


if __name__ == "__main__":
    main()
