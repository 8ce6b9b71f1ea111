"""Days without faults: how often would somebody be evicted wrongly?

Only what can blame a healthy rank by chance is simulated, the step times: one step every STEP_SECONDS, all ranks in it, drawn
from the recorded noise, and the judge of slow ranks asked at every fourth step about its own windows. Reports, sockets and
hangs are left out: nothing in a healthy fleet makes their judges speak but lost messages, which `clocked` has.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ninthsky.guard.controller.fleet import RECORD_TYPE, STEPS, Window
from ninthsky.guard.drill.noise import Noise
from ninthsky.guard.drill.scenario import GROUPS
from ninthsky.guard.drill.simulator import LOCAL_MS, PER_HOST, Layout
from ninthsky.guard.judges import Limits
from ninthsky.guard.judges.slow import judge_slow

STEP_SECONDS = 10.0
EVERY = 4  # steps between two questions
DAY = 86_400.0
BLOCK = 864  # steps drawn at a time


class Quiet(NamedTuple):
    """`evictions` over `days` of a fleet of `ranks`: every verdict of the judge counts, once an hour at most."""

    days: float
    evictions: int
    ranks: int


def quiet_days(
    days: float, ranks: int, noise: Noise, scale: float, neighbours: float, ratio: float, chance: np.random.Generator
) -> Quiet:
    """`scale`: factor on the noise. `neighbours`: share of hosts on which other work takes wall time now and then."""
    layout = Layout(ranks)
    record = np.zeros(ranks, RECORD_TYPE)
    record["groups"]["id"][:, : len(GROUPS)] = layout.ids
    hosts = np.arange(ranks) // PER_HOST
    names = tuple(f"host-{host:04d}" for host in hosts)
    limits = Limits(slow_ratio=ratio)
    work = chance.uniform(0.85, 1.0, layout.stages)[layout.stage] * LOCAL_MS
    steps = round(days * DAY / STEP_SECONDS)
    wall, cpu = np.empty((ranks, 0)), np.empty((ranks, 0))
    evictions, done, silent_until = 0, 0, 0
    while done < steps:
        count = min(BLOCK, steps - done)
        at = chance.integers(0, len(noise.wall), (ranks, count))
        more = 1 + (noise.wall[at] - 1) * scale
        if neighbours:
            more[_troubled(hosts, neighbours, count, chance)] *= 1.25
        wall = np.hstack([wall[:, -STEPS:], np.maximum(more, 0.2) * work[:, None]])
        cpu = np.hstack([cpu[:, -STEPS:], np.maximum(1 + (noise.cpu[at] - 1) * scale, 0.2) * work[:, None] * 0.35])
        for end in range(wall.shape[1] - count + EVERY, wall.shape[1] + 1, EVERY):
            if end < STEPS or done + end < silent_until:
                continue
            window = Window(
                now=0.0, generation=1, hosts=names, cards=(0,) * ranks, record=record, known=np.zeros(ranks, bool),
                heartbeat_age=np.zeros(ranks), stale_cpu=np.zeros(ranks), busy_cpu=np.zeros(ranks), state=("S",) * ranks,
                unheld=np.zeros(ranks), quiet=np.zeros(ranks), host_silence={}, host_late={},
                local_wall=wall[:, end - STEPS : end], local_cpu=cpu[:, end - STEPS : end], steps_seen=10_000, longest_gap=1.0,
            )  # fmt: skip
            if verdicts := judge_slow(window, limits):
                evictions += len(verdicts)
                silent_until = done + end + round(3600 / STEP_SECONDS)
        done += count
    return Quiet(steps * STEP_SECONDS / DAY, evictions, ranks)


def _troubled(hosts: np.ndarray, share: float, steps: int, chance: np.random.Generator) -> np.ndarray:
    """[ranks, steps]: half the ranks of some hosts, for spells of some minutes."""
    troubled = np.zeros((len(hosts), steps), bool)
    for host in np.flatnonzero(chance.random(hosts[-1] + 1) < share):
        begin, length = int(chance.integers(0, steps)), int(chance.integers(6, 60))
        troubled[(hosts == host) & (np.arange(len(hosts)) % 2 == 0), begin : begin + length] = True
    return troubled
