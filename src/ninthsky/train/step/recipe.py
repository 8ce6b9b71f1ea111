"""How weights move: the numbers of a training run, and the learning rate at each step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Recipe:
    """AdamW, Muon, or plain SGD (which hides no fault of a gradient's scale), with a schedule and clipping.

    `warmup` and `decay` are shares of all steps. `wsd` holds the rate and lets it fall to `final` x lr over the last `decay`;
    `cosine` falls from the end of the warm-up. `balance` is how far a router's bias moves per step (DeepSeek-V3: 0.001).
    bf16 is autocast over fp32 weights.
    """

    lr: float = 3e-3
    weight_decay: float = 0.1
    warmup: float = 0.1
    decay: float = 0.2
    final: float = 0.05
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    momentum: float = 0.95  # Muon's
    balance: float = 1e-3
    precision: Precision = "fp32"
    micro_batches: int = 1  # parts in which a rank's batch goes through; also the pipeline's
    z_loss: float = 0.0  # on the output's log Z (PaLM: 1e-4); not part of the loss that is told
    recompute: Literal["none", "layer"] = "none"  # what the backward does again instead of keeping it
    compile: bool = False  # elementwise steps by torch.compile (model/formulas.py); needs a C++ compiler

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of `step` (from 0) in a run of `steps`."""
        warm = max(round(self.warmup * steps), 1) if self.warmup else 0
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine":
            done = (step - warm) / max(steps - warm, 1)
            return self.lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        falling = max(round(self.decay * steps), 1)
        left = min(max(steps - step, 0) / falling, 1.0)
        return self.lr * (self.final + (1 - self.final) * left)


def measure_steps(budget_seconds: float, step: Callable[[], object], warm: int = 2, timed: int = 5, least: int = 10) -> int:
    """How many steps fit into a time: `step` is done a few times on the wall clock, the median counts.

    The measured steps are part of what a caller throws away: fix the number (`ctx.fixed`), then start from step 0.
    """
    for _ in range(warm):
        step()
    seconds = []
    for _ in range(timed):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return max(int(budget_seconds / max(statistics.median(seconds), 1e-6)), least)


def faster_precision(step: Callable[[Precision], object], gain: float = 1.1, repeats: int = 3) -> Precision:
    """bf16 where it gains at least `gain` on this device, else fp32: steps of both in turn, medians of CPU seconds."""
    seconds: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    for repeat in range(repeats + 1):
        for precision, times in seconds.items():
            begin = time.process_time()
            step(precision)
            if repeat:  # the first of each warms up
                times.append(time.process_time() - begin)
    return "bf16" if statistics.median(seconds["fp32"]) > gain * statistics.median(seconds["bf16"]) else "fp32"
