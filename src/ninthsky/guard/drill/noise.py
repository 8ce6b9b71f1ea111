"""How much the steps of real processes differ: recorded once, drawn from by the simulator.

`noise.json` holds local times of steps, each divided by its rank's median, on both clocks; and how it was recorded.
Ranks on crowded processor cores differ far more than accelerators do: a scenario's `conditions.noise` scales it.
"""

from __future__ import annotations

import json
import time
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ninthsky.guard.probe.record import SIZE, parse, read_raw

SETTLING = 5  # first steps of a rank, left out
LOOK_SECONDS = 0.03


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


def follow(memory: Path, jobs: str, seconds: float, how: str) -> Noise:
    """Reads the records of ranks that are at work on this host, as their agents do, for so long; changes nothing.

    `jobs` is a pattern of folder names under `memory` (`n9-RUN-*`). Of each rank and generation the first steps are left out.
    """
    seen: dict[tuple[str, int, int], dict[int, tuple[float, float]]] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for path in memory.glob(f"{jobs}/slot-*.record"):
            found = parse(read_raw(path) or bytes(SIZE))
            if found is not None and found.rank >= 0 and found.local_wall > 0:
                steps = seen.setdefault((path.parent.name, found.generation, found.rank), {})
                steps[found.step] = (found.local_wall, found.local_cpu)
        time.sleep(LOOK_SECONDS)
    return relative([np.array([steps[step] for step in sorted(steps)]) for steps in seen.values()], how)


def relative(times: list[NDArray[np.float64]], how: str) -> Noise:
    """Of ranks' times [steps, 2], each against its own rank's median."""
    long_enough = [rows[SETTLING:] for rows in times if len(rows) >= 4 * SETTLING]
    pairs = np.concatenate([rows / np.median(rows, axis=0) for rows in long_enough])
    return Noise(pairs[:, 0], pairs[:, 1], how)
