"""How much the steps of real processes differ: recorded once, drawn from by the simulator.

`noise.json` holds local times of steps, each divided by its rank's median, on both clocks; and how it was recorded.
"""

from __future__ import annotations

import json
import tempfile
import threading
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ninthsky.guard.drill.processes import drill_job
from ninthsky.guard.job import run_job
from ninthsky.guard.probe.record import parse, read_raw

SETTLING = 5  # first steps of a rank, left out


class Noise(NamedTuple):
    """Pairs of relative local times [steps], medians 1: one step's wall time and its processor time belong together."""

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64]
    how: str

    def draw(self, chance: np.random.Generator, ranks: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """One step of each rank."""
        at = chance.integers(0, len(self.wall), ranks)
        return self.wall[at], self.cpu[at]


def recorded() -> Noise:
    """The noise that comes with the package."""
    tree = json.loads(resources.files(__package__).joinpath("noise.json").read_text("utf-8"))
    return Noise(np.array(tree["wall"]), np.array(tree["cpu"]), tree["how"])


def record(steps: int, work_ms: float, how: str) -> Noise:
    """Runs 4 simulated ranks in real processes (see simulated_rank.py) and reads their records as an agent does."""
    with tempfile.TemporaryDirectory(prefix="n9-noise-") as scratch:
        spec = drill_job(Path(scratch) / "job", 2, [], work_ms, steps)
        seen: dict[tuple[str, int], tuple[float, float]] = {}
        done = threading.Event()

        def follow() -> None:
            while not done.wait(work_ms / 4e3):
                for host in spec.hosts:
                    for path in spec.memory_folder(host.name).glob("slot-*.record"):
                        found = parse(read_raw(path) or bytes(448))
                        if found is not None and found.rank >= 0 and found.local_wall > 0:
                            seen[f"{path}", found.step] = (found.local_wall, found.local_cpu)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        run_job(spec, lambda _: None)
        done.set()
        follower.join()
    walls: list[float] = []
    cpus: list[float] = []
    for path in sorted({path for path, _ in seen}):
        times = np.array([pair for (of, step), pair in sorted(seen.items()) if of == path and step >= SETTLING])
        if len(times):
            relative = times / np.median(times, axis=0)
            walls += relative[:, 0].tolist()
            cpus += relative[:, 1].tolist()
    return Noise(np.array(walls), np.array(cpus), how)
