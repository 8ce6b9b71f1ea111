"""How fast: products per dtype, copies within the device and to the host.

Speeds are told, not judged, unless the person says what to expect, or the device contradicts itself: a copy moves fewer bytes
than a sum of two tensors, and cannot take far longer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ninthsky.train.step.device import synchronize
from ninthsky.train.vet.case import lacking, short

CONTRADICTION = 6.0  # times what the sum takes, for two thirds of its bytes
REPEATS = 7
LONGEST = 2.0  # seconds for one speed, after which the repeats made so far have to do


@dataclass(frozen=True)
class Speed:
    """One measured speed. `least` is what the person expected, `problem` what speaks against the device."""

    name: str
    value: float
    unit: str
    least: float | None = None
    problem: str = ""


def speeds(device: torch.device, size: int, bytes_: int, expected: dict[str, float] | None = None) -> list[Speed]:
    """Peak of square products of `size`, and bandwidths over `bytes_`: medians of seven.

    `expected` maps a speed's name to the least that the person accepts.
    """
    found: list[Speed] = []
    numbers = torch.randn(size, size)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        try:
            a, b = (numbers.to(dtype).to(device, copy=True) for _ in range(2))
            seconds = _median(lambda a=a, b=b: torch.mm(a, b), device)  # type: ignore[misc]
        except Exception as raised:
            if not lacking(raised):  # what is merely not offered stands in the operators' table
                problem = f"{type(raised).__name__}: {(str(raised).splitlines() or [''])[0][:160]}"
                found.append(Speed(f"matmul {short(dtype)}", 0.0, "TFLOP/s", problem=problem))
            continue
        found.append(Speed(f"matmul {short(dtype)}", 2 * size**3 / seconds / 1e12, "TFLOP/s"))
    count = bytes_ // 4
    near = torch.ones(count)
    far, other = near.to(device, copy=True), torch.zeros(count, device=device)
    within = _median(lambda: other.copy_(far), device)
    added = _median(lambda: torch.add(far, far, out=other), device)
    problem = ""
    if within > CONTRADICTION * added:
        problem = f"a copy of {bytes_ / 1e6:.0f} MB takes {within / added:.0f} times what the sum of two such tensors takes"
    found.append(Speed("copy within", 2 * bytes_ / within / 1e9, "GB/s", problem=problem))
    found.append(Speed("sum of two", 3 * bytes_ / added / 1e9, "GB/s"))
    if device.type != "cpu":
        found.append(Speed("host to device", bytes_ / _median(lambda: far.copy_(near), device) / 1e9, "GB/s"))
        found.append(Speed("device to host", bytes_ / _median(lambda: near.copy_(far), device) / 1e9, "GB/s"))
    return [_held(speed, expected or {}) for speed in found]


def _held(speed: Speed, expected: dict[str, float]) -> Speed:
    least = expected.get(speed.name)
    problem = speed.problem
    if least is not None and speed.value < least:
        problem = problem or f"{speed.value:.3g} {speed.unit} where {least:g} was expected"
    return Speed(speed.name, speed.value, speed.unit, least, problem)


def _median(work: Callable[[], object], device: torch.device) -> float:
    taken: list[float] = []
    while len(taken) <= REPEATS and sum(taken) < LONGEST:
        begin = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - begin)
    return max(statistics.median(taken[1:] or taken), 1e-9)  # the first warms up
