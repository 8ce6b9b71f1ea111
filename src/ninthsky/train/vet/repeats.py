"""The same question again: a device must give the same bits each time, alone and while another thread keeps it busy.

A run here is reproduced to the bit after a fault, and a card is convicted by doing its step again elsewhere; a device whose
sums change with the order of arrival can do neither.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

from ninthsky.train.step.device import synchronize
from ninthsky.train.vet.case import Case, Finding, Operator, Probe, bits, first, leaf, lie, short

REMEDY = "torch.use_deterministic_algorithms(True) before the run, or detour the operator to the host"


@contextmanager
def load(device: torch.device) -> Iterator[list[int]]:
    """Keeps the device busy from a second thread, on a stream of its own where it has streams. Gives its count of rounds."""
    stop, rounds = threading.Event(), [0]
    begun = threading.Event()

    def work() -> None:
        side = torch.ones(193, 211, device=device)
        other = torch.ones(211, 97, device=device)
        while not stop.wait(0.0005):  # lets the first thread have the interpreter
            torch.mm(side, other).sum()
            synchronize(device)
            rounds[0] += 1
            begun.set()

    def run() -> None:
        if hasattr(torch.get_device_module(device), "Stream") and device.type != "cpu":
            with torch.Stream(device):
                work()
        else:
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    begun.wait(10)
    try:
        yield rounds
    finally:
        stop.set()
        thread.join()


def again(operator: Operator, device: torch.device, seed: int, times: int, loaded: bool) -> Iterator[Finding]:
    """Each float case of the operator `times` times over, forward and gradient, in the trainer's dtypes."""
    name = f"{times} times the same bits{', under load' if loaded else ''}"
    for dtype in (torch.float32, torch.bfloat16):
        for case in operator.tests:
            if isinstance(case, Probe) or dtype not in case.dtypes:
                continue
            problem = ""
            try:
                problem = _differs(case, dtype, device, torch.Generator().manual_seed(seed), times)
            except Exception as raised:  # told by the case itself; here only that it could not be repeated
                problem = f"{type(raised).__name__} while it was repeated"
            if problem:
                yield Finding(operator.name, name, short(dtype), problem=f"{case.name}: {problem}")
                break
        else:
            yield Finding(operator.name, name, short(dtype))


def _differs(case: Case, dtype: torch.dtype, device: torch.device, generator: Generator, times: int) -> str:
    inputs = [lie(x.to(dtype) if x.is_floating_point() else x, "plain", device) for x in case.draw(generator)]
    upstream: Tensor | None = None
    before: list[Tensor] = []
    for time in range(times):
        leaves = leaf(inputs) if case.back else inputs
        out = first(case.run(*leaves))
        seen = [out.detach().cpu()]
        if case.back:
            if upstream is None:
                upstream = torch.randn(out.shape, generator=generator).to(out.dtype).to(device)
            out.backward(upstream)
            seen += [x.grad.cpu() for x in leaves if x.grad is not None]
        if before and any(bool((bits(one) != bits(other)).any()) for one, other in zip(before, seen, strict=True)):
            return f"other bits at time {time + 1}"
        before = seen
    return ""
