"""Collectives of the device's back end against sums made on the host: one process per device, or two on the CPU."""

from __future__ import annotations

import multiprocessing as mp
import queue
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ninthsky.evidence import UNKNOWN
from ninthsky.train.cut.collectives import all_gather, reduce_scatter
from ninthsky.train.step.device import collective_backend
from ninthsky.train.vet.case import Verdict

SECONDS = 120.0
MOST = 8  # processes

REMEDY = "another back end for this collective: gloo over the host carries any tensor, slowly"


def collective_verdict(device: torch.device, ranks: int | None = None) -> Verdict:
    """all_reduce, all_gather, reduce_scatter and all_to_all over `ranks` processes, in whole numbers (every sum is exact)
    and in fp32 against any order of summation; equal on all ranks, and equal when done again."""
    name = "collectives"
    if device.type == "cpu":
        ranks, backend = ranks or 2, "gloo"
    else:
        module = torch.get_device_module(device)
        ranks = ranks or min(int(module.device_count()), MOST)
        if ranks < 2:
            return Verdict(name, UNKNOWN, "one device only")  # type: ignore[arg-type]
        try:
            backend = collective_backend(device)
        except (ValueError, KeyError, RuntimeError) as raised:
            return Verdict(name, "fail", f"no back end carries {device.type}: {raised}", REMEDY)
    problems = _on_ranks(ranks, backend, device.type)
    told = next((f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem), "")
    return Verdict(name, "fail" if told else "pass", told, REMEDY if told else "", tests=ranks * len(_DTYPES))


_DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.float64)


def check(rank: int, world: int, device: torch.device) -> str:
    """What is wrong on this rank; empty where nothing is. Collective over the default group."""
    for dtype in _DTYPES:
        for size in (1, 1023, 65_536):
            own = [_numbers(size * world, dtype, other) for other in range(world)]
            mine, total = own[rank].to(device), torch.stack(own).double().sum(0)
            summed = mine.clone()
            dist.all_reduce(summed)
            if not bool((summed.cpu().double() == total).all()):
                return f"all_reduce of {size * world} {dtype} is wrong"
            part = torch.empty(size, dtype=dtype, device=device)
            reduce_scatter(part, mine)
            if not bool((part.cpu().double() == total[rank * size : (rank + 1) * size]).all()):
                return f"reduce_scatter of {size} {dtype} is wrong"
            whole = torch.empty(size * world * world, dtype=dtype, device=device)
            all_gather(whole, mine)
            if not torch.equal(whole.cpu(), torch.cat(own)):
                return f"all_gather of {size * world} {dtype} is wrong"
            sends = [size // world + (to == 0) * (size % world) for to in range(world)]
            arrives = [sends[rank]] * world
            out = torch.empty(sum(arrives), dtype=dtype, device=device)
            dist.all_to_all_single(out, mine[:size], arrives, sends)
            begin = sum(sends[:rank])
            if not torch.equal(out.cpu(), torch.cat([other[begin : begin + sends[rank]] for other in own])):
                return f"all_to_all of {size} {dtype} is wrong"
    real = [torch.randn(4099, generator=torch.Generator().manual_seed(other)) for other in range(world)]
    bits = []
    for _ in range(3):
        summed = real[rank].to(device, copy=True)
        dist.all_reduce(summed)
        bits.append(summed.cpu())
    exact, sizes = torch.stack(real).double().sum(0), torch.stack(real).double().abs().sum(0)
    if bool(((bits[0].double() - exact).abs() > world * 2.0**-24 * sizes).any()):
        return "all_reduce of fp32 errs by more than its roundings"
    if any(not torch.equal(bits[0], other) for other in bits[1:]):
        return "all_reduce gives other bits when done again"
    return ""


def _numbers(count: int, dtype: torch.dtype, rank: int) -> Tensor:
    """Whole numbers small enough that bf16 holds all sums over 8 ranks."""
    return torch.randint(-15, 16, (count,), generator=torch.Generator().manual_seed(100 + rank)).to(dtype)


def _on_ranks(world: int, backend: str, kind: str) -> list[str]:
    context = mp.get_context("spawn")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        ranks = [
            context.Process(target=_rank, args=(rank, world, backend, kind, str(meeting), answers)) for rank in range(world)
        ]
        for process in ranks:
            process.start()
        problems = ["did not answer"] * world
        try:
            for _ in range(world):
                rank, problem = answers.get(timeout=SECONDS)
                problems[rank] = problem
        except queue.Empty:
            pass
        finally:
            for process in ranks:
                process.join(5)
                if process.is_alive():
                    process.kill()
                    process.join()
    return problems


def _rank(rank: int, world: int, backend: str, kind: str, meeting: str, answers: Any) -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu") if kind == "cpu" else torch.device(kind, rank)
    try:
        if kind != "cpu":
            torch.accelerator.set_device_index(rank)
        dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=world)
        answers.put((rank, check(rank, world, device)))
    except Exception as raised:  # a back end that raises has given its answer
        answers.put((rank, f"{type(raised).__name__}: {raised}"[:300]))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
