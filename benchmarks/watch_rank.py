"""One rank of a plain DDP job that knows nothing of Ninthsky: what benchmarks/watch.py watches from outside.

    torchrun --nproc-per-node 4 benchmarks/watch_rank.py FOLDER

A file FOLDER/rank-R makes rank R, with `sleep` or `lock`, sleep or wait for a lock for ever (until SIGUSR1); with `passes N`,
take N micro-batches a step in place of 4; with `loader S`, wait S seconds a step for a thread that brings its data.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

PASSES = 4


class Woken(Exception):
    pass


def wake(*_: Any) -> None:
    raise Woken


def load_batch(order: Path) -> int:
    """The number of micro-batches; here a rank gets stuck."""
    try:
        said = order.read_text().split()
    except OSError:
        return PASSES
    if said[:1] == ["passes"]:
        return int(said[1])
    if said[:1] == ["loader"]:
        brought: queue.Queue[None] = queue.Queue()
        threading.Timer(float(said[1]), brought.put, [None]).start()
        brought.get()
    with contextlib.suppress(Woken):
        if said[:1] == ["sleep"]:
            time.sleep(1e6)
        if said[:1] == ["lock"]:
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
    return PASSES


def main() -> None:
    signal.signal(signal.SIGUSR1, wake)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    order = Path(sys.argv[1]) / f"rank-{rank}"
    torch.manual_seed(rank)
    layers = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256))
    model = DistributedDataParallel(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(10**9):
        passes = load_batch(order)
        for number in range(passes):
            last = number == passes - 1
            with contextlib.nullcontext() if last else model.no_sync():
                (model(torch.randn(128, 256)).square().mean() / passes).backward()
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and step % 20 == 0:
            print(f"step {step}", flush=True)


if __name__ == "__main__":
    assert "RANK" in os.environ, "start it with torchrun"
    main()
