"""One rank of a plain DDP job, run by each tool's own Python: imports nothing of ours.

    python plain.py FOLDER --tool torchrun|nvrx|torchft|dlrover|ours [--prefix] [--timeout SECONDS]

Each attempt goes on from FOLDER/checkpoint.pt (rank 0 writes one every ten steps) as a careful user of the tool would write it.
Rank 0 writes a line to FOLDER/history.jsonl for each step, every rank one to FOLDER/rank-R.jsonl when it begins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PASSES = 4
CHECKPOINT_EVERY = 10  # steps


class Tool:
    """What a tool wants to be called in the script: nothing, for most."""

    def __init__(self, given: argparse.Namespace, rank: int) -> None:
        self.given, self.rank = given, rank

    def model(self, module: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.parallel.DistributedDataParallel(module)

    def optimizer(self, model: torch.nn.Module) -> Any:
        return torch.optim.SGD(model.parameters(), lr=1e-3)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        yield

    def step(self) -> None: ...


class Nvrx(Tool):
    """Heartbeats or sections for its launcher, and its detector's report."""

    def __init__(self, given: argparse.Namespace, rank: int) -> None:
        super().__init__(given, rank)
        from nvidia_resiliency_ext.fault_tolerance import RankMonitorClient  # type: ignore[import-not-found]

        self.monitor: Any = RankMonitorClient() if given.watch else None
        if self.monitor:
            self.monitor.init_workload_monitoring()
        self.detector: Any = None
        if given.detector:
            from detector import without_cupti  # type: ignore[import-not-found]

            self.detector = without_cupti()
            self.reported = time.monotonic()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        timed = self.detector.detection_section(name, profile_cuda=False) if self.detector else contextlib.nullcontext()
        if self.given.watch == "sections":
            self.monitor.start_section(name)
        with timed:
            yield
        if self.given.watch == "sections":
            self.monitor.end_section(name)

    def step(self) -> None:
        if self.given.watch == "heartbeats":
            self.monitor.send_heartbeat()
        if self.detector is None:
            return
        due = torch.tensor([float(time.monotonic() - self.reported > self.given.detector)])
        dist.broadcast(due, 0)
        if due:
            self.reported = time.monotonic()
            report = self.detector.generate_report()
            if self.rank == 0:
                said = report.identify_stragglers()["straggler_sections_relative"]
                for name, ids in said.items():
                    for one in ids:
                        print(f"STRAGGLER rank {one.rank} in {name}", flush=True)


class Torchft(Tool):
    """One replica group for each rank; the lighthouse and its restarts are the launcher's."""

    def __init__(self, given: argparse.Namespace, rank: int, module: torch.nn.Module) -> None:
        super().__init__(given, rank)
        from torch._C._distributed_c10d import TCPStore
        from torchft import Manager, ProcessGroupGloo  # type: ignore[import-not-found]

        limit = timedelta(seconds=given.timeout)
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # of this replica alone
        self.module, self.inner = module, torch.optim.SGD(module.parameters(), lr=1e-3)
        self.manager = Manager(
            pg=ProcessGroupGloo(timeout=limit), min_replica_size=1, replica_id=f"rank-{rank}-", use_async_quorum=True,
            timeout=limit, quorum_timeout=limit, rank=0, world_size=1, store_addr="127.0.0.1", store_port=self.store.port,
            hostname="127.0.0.1",
            state_dict=lambda: {"model": module.state_dict()}, init_sync=False,
            load_state_dict=lambda state: module.load_state_dict(state["model"]),
        )  # fmt: skip

    def model(self, module: torch.nn.Module) -> torch.nn.Module:
        from torchft import DistributedDataParallel

        return DistributedDataParallel(self.manager, module)

    def optimizer(self, model: torch.nn.Module) -> Any:
        from torchft import Optimizer

        return Optimizer(self.manager, self.inner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tool", default="torchrun")
    parser.add_argument("--prefix", action="store_true", help="names of its own in the store for each attempt")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds, of every collective")
    parser.add_argument("--watch", default="", help="NVRx: heartbeats or sections")
    parser.add_argument("--detector", type=float, default=0.0, help="NVRx: seconds between reports of its straggler detector")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    begun = given.folder / f"rank-{rank}.jsonl"
    attempt = len(begun.read_text().splitlines()) if begun.exists() else 0
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256))
    if given.tool == "torchft":
        tool: Tool = Torchft(given, rank, module)
    else:
        join(given, attempt)
        tool = Nvrx(given, rank) if given.tool == "nvrx" else Tool(given, rank)
    step, saved = 0, given.folder / "checkpoint.pt"
    if given.tool != "torchft" and saved.exists():
        state = torch.load(saved)
        step = state["step"]
        module.load_state_dict(state["model"])
    model = tool.model(module)
    optimizer = tool.optimizer(model)
    note(begun, {"pid": os.getpid(), "attempt": attempt, "restored": step})
    while True:
        step = train(tool, model, optimizer, step)
        if rank == 0:
            note(given.folder / "history.jsonl", {"step": step, "attempt": attempt, "time": time.time()})
            if step % CHECKPOINT_EVERY == 0 and given.tool != "torchft":
                torch.save({"step": step, "model": module.state_dict()}, given.folder / "checkpoint.new")
                os.replace(given.folder / "checkpoint.new", saved)


def join(given: argparse.Namespace, attempt: int) -> None:
    """The first group; with a prefix per attempt where that is asked."""
    limit = timedelta(seconds=given.timeout)
    if not given.prefix:
        dist.init_process_group("gloo", timeout=limit)
        return
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://"))
    dist.init_process_group("gloo", store=PrefixStore(f"attempt-{attempt}", store), rank=rank, world_size=world, timeout=limit)


def train(tool: Tool, model: Any, optimizer: Any, step: int) -> int:
    """One step: three passes by oneself, a last one that all reduce. -> steps done (with torchft: committed)."""
    optimizer.zero_grad()
    with tool.section("compute"), model.no_sync():
        for _ in range(PASSES - 1):
            (model(torch.randn(128, 256)).square().mean() / PASSES).backward()
    with tool.section("reduce"):
        (model(torch.randn(128, 256)).square().mean() / PASSES).backward()
        optimizer.step()
    tool.step()
    return tool.manager.current_step() if isinstance(tool, Torchft) else step + 1


def note(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
