"""The matmul peak of this device, measured, and a step's share of it (MFU)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from ninthsky.train.job import TrainJob
from ninthsky.train.step.device import synchronize

SIDE = {"cpu": 2048}  # of the square matrices; 8192 on accelerators


def matmul_peak(device: torch.device, dtype: torch.dtype, repeats: int = 3) -> float:
    """Operations per second of one square matrix product, the best of `repeats`.

    On a CPU per second of this process's processor time, on torch's threads as they are set: what other processes take from
    the machine is not counted against it. On an accelerator per second of the clock.
    """
    side = SIDE.get(device.type, 8192)
    a = torch.full((side, side), 0.5, device=device, dtype=dtype)
    out = torch.empty_like(a)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    torch.mm(a, a, out=out)
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        begin = clock()
        torch.mm(a, a, out=out)
        synchronize(device)
        best = min(best, clock() - begin)
    return 2.0 * side**3 / best


def efficiency(job: TrainJob, history: Sequence[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """`mfu`: the median step's share of the matmul peak that this device reaches now, and what that peak is.

    Operations by formula (Shape.flops_per_token) of a rank's share of a step's tokens, over what one rank's step took: of its
    own processor time on a CPU, of the clock elsewhere, everything in the step included. {} where no step was done.
    """
    clock = "cpu_seconds" if device.type == "cpu" else "seconds"
    speeds = [line["tokens"] / job.mesh.ranks / line[clock] for line in history if "tokens" in line and line.get(clock)]
    if not speeds:
        return {}
    peak = matmul_peak(device, torch.bfloat16 if job.recipe.precision == "bf16" else torch.float32)
    source = (
        f"{job.recipe.precision} product of {SIDE.get(device.type, 8192)}-square matrices on this {device.type}, after training"
    )
    return {
        "mfu": job.shape.flops_per_token(job.sequence) * statistics.median(speeds) / peak,
        "matmul_gflop_per_second": peak / 1e9,
        "matmul_peak_of": source,
    }
