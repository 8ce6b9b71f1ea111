from __future__ import annotations

import time

import pytest
import torch

from ninthsky.model import Shape
from ninthsky.train import peak
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.job import TrainJob
from ninthsky.train.step.recipe import Recipe

SHAPE = Shape(97, 2, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48)


def test_a_peak_is_the_operations_of_a_product_over_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(100))
    monkeypatch.setitem(peak.SIDE, "cpu", 16)
    monkeypatch.setattr(time, "process_time", lambda: float(next(times)))
    assert peak.matmul_peak(torch.device("cpu"), torch.float32) == 2 * 16**3


def test_mfu_is_a_rank_s_operations_over_its_processor_time_and_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def measured(device: torch.device, dtype: torch.dtype) -> float:
        asked.append(dtype)
        return 1e9

    monkeypatch.setattr(peak, "matmul_peak", measured)
    job = TrainJob(shape=SHAPE, recipe=Recipe(precision="bf16"), mesh=Mesh(dp_shard=2), tokens="", folder="", steps=3,
                   sequence=64, batch=4, seed=0, checkpoint_every=50)  # fmt: skip
    done = [{"step": n, "tokens": 256.0, "seconds": 9.0, "cpu_seconds": cpu} for n, cpu in enumerate((0.5, 0.25, 4.0))]
    told = peak.efficiency(job, [*done, {"step": 3, "skipped": True, "seconds": 1.0}], torch.device("cpu"))
    assert told["mfu"] == pytest.approx(SHAPE.flops_per_token(64) * 128 / 0.5 / 1e9)
    assert told["matmul_gflop_per_second"] == 1.0 and "bf16" in told["matmul_peak_of"] and asked == [torch.bfloat16]
    assert peak.efficiency(job, [], torch.device("cpu")) == {}
