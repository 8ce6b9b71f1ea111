"""`python -m benchmarks.cost`: what the guard costs: processor seconds by role, per collective, and wall time beside bare.

Watching: simulated ranks (each computes a quarter of its step and waits the rest) at several step times; controller, agents
and ranks are counted by the kernel over the same seconds. The share is of all three together; a real rank computes more than
a quarter of the time, so that a real job's share is smaller. States of these ranks are small, and copied every eighth step
(--every): what copies of real states cost is measured by `benchmarks.guard` and `benchmarks.shipping`, and stated with k there.

Collective: the same small all-reduce through gloo and through the guard's group around gloo, in turns, in two processes.
Wall: a script of two processes that multiplies and reduces, with and without the guard's group and record, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.observing import Enough, parent_of, places_of
from benchmarks.report import median_interval, publish
from ninthsky.guard.agent.spawner import process_state
from ninthsky.guard.drill import drill_job
from ninthsky.guard.job import JobSpec, Standby, run_job
from ninthsky.guard.probe.record import SIZE, parse, read_raw
from ninthsky.run.folder import read_json

HOSTS = 2


class Counter:
    """Counts processor seconds over `repeats` stretches of undisturbed training, then ends the job."""

    def __init__(self, spec: JobSpec, seconds: float, repeats: int) -> None:
        self.spec, self.seconds, self.repeats = spec, seconds, repeats
        self.stretches: list[dict[str, float]] = []
        self.finished = False
        self._started = False

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] == "joined" and not self._started:
            self._started = True
            threading.Thread(target=self._count, daemon=True).start()
        if event["kind"] == "commit" and self.finished:
            raise Enough

    def _count(self) -> None:
        time.sleep(2.0)
        folder = Path(self.spec.folder)
        controller = (read_json(folder / "controller.json") or {})["pid"]
        standby = (read_json(folder / "standby.json") or {}).get("pid")
        ranks = [pid for _, _, pid in places_of(self.spec)]
        agents = sorted({parent_of(pid) for pid in ranks})
        roles = {"controller": [controller], "agents": agents, "ranks": ranks} | ({"standby": [standby]} if standby else {})
        for _ in range(self.repeats):
            before, steps, begin = self._used(roles), self._steps(), time.monotonic()
            time.sleep(self.seconds)
            passed, after = time.monotonic() - begin, self._used(roles)
            cores = {role: (after[role] - before[role]) / passed for role in roles}
            watching = sum(cores[role] for role in roles if role != "ranks")
            total = watching + cores["ranks"]
            step = passed / max(1, self._steps() - steps)
            self.stretches.append({**cores, "watching_share": watching / total, "step_s": step, "all_cores": total})
        self.finished = True

    def _used(self, roles: dict[str, list[int]]) -> dict[str, float]:
        return {role: sum(process_state(pid)[1] for pid in pids) for role, pids in roles.items()}

    def _steps(self) -> int:
        """The newest step of rank 0."""
        host, slot, _ = places_of(self.spec)[0]
        record = parse(read_raw(self.spec.memory_folder(host) / f"slot-{slot}.record") or bytes(SIZE))
        return record.step if record is not None else 0


def watching(
    folder: Path, ranks: int, step: float, seconds: float, repeats: int, every: int, standby: bool
) -> list[dict[str, float]]:
    """Cores by role in each stretch."""
    spec = drill_job(folder / f"watch-{ranks}-{int(step * 1000)}-{standby}", ranks // HOSTS, [], step * 1e3)
    plan = json.loads(spec.env["N9_SIMULATED"]) | {"steps": 1_000_000, "replicate_every": every}
    spec = msgspec.structs.replace(
        spec, env={"N9_SIMULATED": json.dumps(plan)}, standby=Standby() if standby else None
    )  # fmt: skip
    counter = Counter(spec, seconds, repeats)
    with contextlib.suppress(Enough):
        run_job(counter.spec, counter)
    return counter.stretches


# -- what the probe costs in the rank ---------------------------------------------------------------------------------------


def _rank(rank: int, port: int, folder: str, rounds: int, answer: Any) -> None:
    """Two processes, each group in turns: seconds of processor per collective, and wall seconds of a step."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    from ninthsky.guard.probe.group import GuardGroup, Probe, gloo
    from ninthsky.guard.probe.record import RecordWriter

    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, 2, rank == 0)
    make = gloo("127.0.0.1")

    def group(name: str) -> dist.ProcessGroup:
        return make(PrefixStore(name, store), rank, 2, timedelta(seconds=60))

    guard = Probe(RecordWriter(Path(folder) / f"{rank}.record"), make)
    guard.by_turns = True  # as it is set where gloo carries
    bare, guarded = group("bare"), GuardGroup(guard, group("inner"), rank, 2)
    guarded.setGroupName("guarded")
    small, left, right = torch.ones(256), torch.randn(256, 256), torch.randn(256, 256)

    def collectives(of: dist.ProcessGroup) -> tuple[float, float]:
        begin, wall = time.process_time(), time.perf_counter()
        for _ in range(200):
            of.allreduce([small]).wait()
        return (time.process_time() - begin) / 200, (time.perf_counter() - wall) / 200

    def step(of: dist.ProcessGroup) -> float:
        begin = time.perf_counter()
        for _ in range(40):
            left.mul_(0.5).add_(right @ left)
            left.div_(left.norm())
            of.allreduce([small]).wait()
        return time.perf_counter() - begin

    figures: list[tuple[float, ...]] = []
    for turn in range(rounds):
        order = (bare, guarded) if turn % 2 == 0 else (guarded, bare)
        cpu = {id(each): collectives(each) for each in order}
        wall = {id(each): step(each) for each in order}
        figures.append((cpu[id(bare)][0], cpu[id(guarded)][0], wall[id(bare)], wall[id(guarded)]))
    if rank == 0:
        answer.put(figures[2:])  # the first turns connect and allocate


def probe(folder: Path, rounds: int) -> list[tuple[float, ...]]:
    """(processor seconds of a bare and of a guarded collective, wall seconds of 40 bare and 40 guarded steps), each turn."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, port, str(folder), rounds, answer)) for rank in range(2)]
    for process in processes:
        process.start()
    figures: list[tuple[float, ...]] = answer.get(timeout=300)
    for process in processes:
        process.join(30)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of one stretch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=32)
    parser.add_argument("--ranks", type=int, nargs="*", default=[4, 8])
    parser.add_argument("--steps", type=float, nargs="*", default=[0.1, 0.25, 1.0])
    parser.add_argument("--every", type=int, default=8, help="steps between two copies of the (small) states")
    parser.add_argument("--standby", action="store_true", help="with a standby controller beside")
    parser.add_argument("--no-probe", action="store_true")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-cost-"))
    rows: list[tuple[Any, ...]] = []
    figures: dict[str, Any] = {"load_before": os.getloadavg()[0], "standby": arguments.standby}
    for ranks in arguments.ranks:
        for step in arguments.steps:
            stretches = watching(folder, ranks, step, arguments.seconds, arguments.repeats, arguments.every, arguments.standby)
            name = f"r{ranks}_s{int(step * 1000)}"
            figures |= median_interval([stretch["watching_share"] for stretch in stretches], f"{name}_watching")
            means = {key: float(np.mean([stretch[key] for stretch in stretches])) for key in stretches[0]}
            figures |= {f"{name}_{key}": value for key, value in means.items() if key != "watching_share"}
            rows.append((
                f"{ranks} ranks, steps of {means['step_s']:.2f} s: watching / all",
                f"{100 * figures[f'{name}_watching']:.2f} %",
                f"controller {1e3 * means['controller']:.1f}, agents {1e3 * means['agents']:.1f} thousandths of a core",
            ))  # fmt: skip
    if not arguments.no_probe:
        turns = probe(folder, arguments.rounds)
        extra = [1e6 * (guarded - bare) for bare, guarded, _, _ in turns]
        slower = [guarded / bare - 1.0 for _, _, bare, guarded in turns]
        figures |= median_interval(extra, "collective_us") | median_interval(slower, "wall_overhead")
        low, high = figures["collective_us_ci_low"], figures["collective_us_ci_high"]
        rows.append(("probe, per collective (us of processor)", figures["collective_us"], f"[{low:.1f}, {high:.1f}]"))
        low, high = 100 * figures["wall_overhead_ci_low"], 100 * figures["wall_overhead_ci_high"]
        rows.append((
            "wall: guarded / bare, 40 steps in turns", f"{100 * figures['wall_overhead']:+.2f} %", f"[{low:+.2f}, {high:+.2f}]"
        ))  # fmt: skip
    shutil.rmtree(folder)
    publish("cost", rows, figures)


if __name__ == "__main__":
    main()
