"""`python -m benchmarks.regroup`: how the time from a kill to the next common gate grows with the number of ranks.

Simulated ranks (no torch: exit notice, generation, inventories, places, store, a star of sockets) show the guard's own part;
real ones (FSDP2 over gloo's full mesh) show all of it. All on one machine: with more ranks than cores they take turns, so real
times grow with the work of building and of the first step, not with the protocol.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.guard import make_job
from benchmarks.observing import Enough, places_of
from benchmarks.report import publish
from ninthsky.guard.drill import drill_job
from ninthsky.guard.job import HostSpec, JobSpec, run_job
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.job import load_job

WORK_MS = 20.0  # of a simulated step


class Killer:
    """Kills one rank after another, each when a spare is ready on every host."""

    def __init__(self, spec: JobSpec, kills: int, minutes: float = 1.5) -> None:
        self.spec, self.kills, self.end = spec, kills, time.monotonic() + 60 * minutes
        self.random = random.Random(0)
        self.spares: set[str] = set()
        self.timer = threading.Timer(0, self._strike)
        self.struck = 0.0
        self.seconds: list[float] = []

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "joined" and event["generation"] == 1:
            self.spares = {host.name for host in self.spec.hosts}
            self._later()
        elif kind == "fault.repaired":
            self.seconds.append(event["time"] - self.struck)
        elif kind == "process.ended":
            self.spares.discard(event["host"])
        elif kind == "spare.ready":
            self.spares.add(event["host"])
            if len(self.spares) == len(self.spec.hosts):
                self._later()
        if len(self.seconds) == self.kills or time.monotonic() > self.end:
            self.timer.cancel()
            raise Enough

    def _later(self) -> None:
        """One strike is due at a time, however often spares are told to be ready."""
        self.timer.cancel()
        self.timer = threading.Timer(self.random.uniform(0.5, 1.5), self._strike)
        self.timer.daemon = True
        self.timer.start()

    def _strike(self) -> None:
        _, _, pid = self.random.choice(places_of(self.spec))
        self.struck = time.time()
        os.kill(pid, signal.SIGKILL)


def simulated(folder: Path, ranks: int) -> JobSpec:
    spec = drill_job(folder, ranks // 2, [], WORK_MS)
    plan = json.loads(spec.env["N9_SIMULATED"]) | {"steps": 1_000_000}
    return msgspec.structs.replace(spec, env={"N9_SIMULATED": json.dumps(plan)})


def real(folder: Path, ranks: int) -> JobSpec:
    spec = make_job(folder, "nano")
    path = Path(spec.command[-1])
    job = load_job(path)
    msgspec.structs.replace(job, mesh=Mesh(dp_shard=ranks, ep=2), batch=max(job.batch, ranks)).save(path)
    hosts = [HostSpec(name=host.name, slots=ranks // 2, spares=1) for host in spec.hosts]
    return msgspec.structs.replace(spec, world=ranks, hosts=hosts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=4, help="at each number of ranks")
    parser.add_argument("--simulated", type=int, nargs="*", default=[4, 8, 16, 32])
    parser.add_argument("--real", type=int, nargs="*", default=[4, 8])
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"load_before": os.getloadavg()[0]}
    rows = []
    for name, make, sizes in (("simulated", simulated, arguments.simulated), ("real", real, arguments.real)):
        for ranks in sizes:
            folder = Path(tempfile.mkdtemp(prefix="n9-regroup-"))
            killer = Killer(make(folder / folder.name[-8:], ranks), arguments.kills)
            with contextlib.suppress(Enough):
                run_job(killer.spec, killer)
            shutil.rmtree(folder)
            if not killer.seconds:
                raise SystemExit(f"{ranks} {name} ranks: no fault was repaired in time")
            median, most = float(np.median(killer.seconds)), max(killer.seconds)
            figures |= {f"{name}_{ranks}_s": median, f"{name}_{ranks}_max_s": most, f"{name}_{ranks}_n": len(killer.seconds)}
            rows.append(
                (f"{ranks} {name} ranks: kill -> gate", f"{median:.2f} s, at most {most:.2f}", f"n = {len(killer.seconds)}")
            )
            print(rows[-1], flush=True)
    publish("regroup", rows, figures)


if __name__ == "__main__":
    main()
