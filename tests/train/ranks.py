"""Runs a function on several gloo ranks, each a fork of this process, and gives back what each returned."""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = Callable[..., Any]


def on_ranks(world: int, work: Work, *args: Any, folder: Path, seconds: float = 200.0) -> list[Any]:
    """`work(rank, *args)` on `world` ranks that meet through a file in `folder`. Fails with the first rank's traceback."""
    context = mp.get_context("fork")  # nothing is imported again
    answers: Any = context.Queue()
    meeting = folder / f"meeting-{world}-{work.__name__}-{os.urandom(4).hex()}"
    ranks = [context.Process(target=_rank, args=(rank, world, meeting, work, args, answers)) for rank in range(world)]
    for process in ranks:
        process.start()
    results: dict[int, Any] = {}
    try:
        while len(results) < world:
            try:
                rank, good, value = answers.get(timeout=seconds)
            except queue.Empty:
                raise AssertionError(f"ranks {sorted(set(range(world)) - results.keys())} did not answer") from None
            if not good:
                raise AssertionError(f"rank {rank}:\n{value}")
            results[rank] = value
    finally:
        for process in ranks:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
    return [results[rank] for rank in range(world)]


def _rank(rank: int, world: int, meeting: Path, work: Work, args: tuple[Any, ...], answers: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
        answers.put((rank, True, work(rank, *args)))
    except BaseException:
        answers.put((rank, False, traceback.format_exc()))
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
