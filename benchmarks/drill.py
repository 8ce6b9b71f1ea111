"""The drill on a simulated fleet with a fresh seed: made clock, `python -m benchmarks.drill [--faults 1000] [--days 90]`.

Three parts: many faults on a fleet of middling size, in as many processes as there are cores; a few at 18,432 ranks, with the
controller's processor time there; and days without faults. With `--sockets 20`: so many minutes at 18,432 ranks over the real
protocol, and nothing else. The seed was not used while the judges were worked on (those were 1 to 30, 101 to 300 and 20261124).
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.report import publish
from ninthsky.guard.drill.clocked import ClockedDrill
from ninthsky.guard.drill.noise import recorded
from ninthsky.guard.drill.quiet import Quiet
from ninthsky.guard.drill.scenario import Conditions, Effects
from ninthsky.guard.drill.sheet import mix, quiet_of, run_sockets, sheet
from ninthsky.guard.drill.simulator import SimulatedFleet, Strike
from ninthsky.guard.judges.hang import WaitFor

LARGE = 18_432


def hang_judge_ms() -> float:
    """One wait-for graph over all groups of 18,432 ranks, one of which is stuck: median of five, milliseconds."""
    fleet = SimulatedFleet(LARGE, 0, recorded(), Conditions(), np.random.default_rng(1))
    fleet.rank[:] = fleet.holder[:] = np.arange(LARGE)
    fleet.generation[:] = 1
    fleet.start(1, 0, 0.0)
    fleet.strike(Strike(Effects(halts="local"), np.array([7_777]), frozenset([972]), 0.0), 0.0)
    fleet.advance(10.0)
    record = fleet.records(np.arange(LARGE), 10.0)
    spent = []
    for _ in range(5):
        begin = time.process_time()
        graph = WaitFor(record)
        spent.append((time.process_time() - begin) * 1e3)
        if np.flatnonzero(graph.roots).tolist() != [7_777]:
            raise AssertionError("the wait-for graph does not lead to the stuck rank")
    return float(np.median(spent))


def part(ranks: int, faults: int, seed: int) -> ClockedDrill:
    """One process's share of the faults, without what cannot travel back."""
    drill = ClockedDrill(ranks, mix(), seed, lambda text: print(f"simulated: {text[:150]}", flush=True))
    drill.run(faults)
    del drill.on_told, drill.agents, drill.fleet, drill.conductor
    return drill


def many(ranks: int, faults: int, seed: int, days: float) -> dict[str, Any]:
    """The sheet of all shares together."""
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers) as pool:
        shares = [faults // workers + (number < faults % workers) for number in range(workers)]
        drills = list(pool.map(part, [ranks] * workers, shares, [seed + 100 * number for number in range(workers)]))
        quiet = list(
            pool.map(
                quiet_of, [ranks] * workers, [mix()] * workers, [seed + n for n in range(workers)], [days / workers] * workers
            )
        )
    whole = drills[0]
    for other in drills[1:]:
        whole.outcomes += other.outcomes
        whole.simulated, whole.spent = whole.simulated + other.simulated, whole.spent + other.spent
        whole.memory_mb = max(whole.memory_mb, other.memory_mb)
    return sheet(whole, Quiet(sum(q.days for q in quiet), sum(q.evictions for q in quiet), quiet[0].ranks))


def over_sockets(minutes: float, seed: int) -> None:
    """18,432 ranks in real time; the agents' process shares this machine with the controller."""
    figures = run_sockets(LARGE, 1_000, seed, mix(), minutes, 0.0, lambda text: print(f"simulated: {text[:150]}", flush=True))
    rows = [
        ["simulated, over sockets: exact", figures["exact"], f"n = {figures['faults']}, {figures['simulated_seconds']:.0f} s"],
        ["wrong, unknown, missed", f"{figures['wrong']}, {figures['unknown']}, {figures['missed']}", ""],
        *(
            [f"p99 {name}, s", figures[f"p99_{name}_s"], limit]
            for name, limit in (("exit", "<= 5"), ("hang", "<= 15"), ("slow", "<= 60"))
        ),
        ["controller with encryption, of a core", figures["controller_core"], "<= 0.15"],
        ["controller, MB", figures["controller_mb"], "<= 300"],
        ["page's differences, bytes/s", figures["page_bytes_per_s"], "<= 20,000"],
        ["agents' process, of a core", figures["agents_core"], f"behind the clock by {figures['agents_late_s']} s at most"],
    ]  # fmt: skip
    publish("drill_sockets", rows, figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--large-faults", type=int, default=12)
    parser.add_argument("--days", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=20_261_125)
    parser.add_argument("--sockets", type=float, default=0.0, metavar="MINUTES")
    given = parser.parse_args()
    if given.sockets:
        over_sockets(given.sockets, given.seed)
        return

    def show(text: str) -> None:
        print(f"simulated: {text}", flush=True)

    figures = many(given.ranks, given.faults, given.seed, given.days)
    large = ClockedDrill(LARGE, mix(), given.seed + 1, show)
    large.run(given.large_faults)
    exact = sum(outcome.result == "exact" for outcome in large.outcomes)
    figures |= {
        "controller_core": large.spent / large.simulated,
        "controller_mb": large.memory_mb,
        "large_ranks": LARGE,
        "large_faults": len(large.outcomes),
        "large_exact": exact,
        "large_mb_per_s": large.bytes / large.simulated / 1e6,
        "hang_judge_ms": hang_judge_ms(),
    }
    rows: list[list[Any]] = [
        ["simulated: named exactly", figures["exact"], f"{figures['exact_ci_low']} or more (95 %), n = {figures['faults']}"],
        ["wrong, unknown, missed", f"{figures['wrong']}, {figures['unknown']}, {figures['missed']}", f"{given.ranks} ranks"],
        *(
            [f"p99 {name}, s", figures[f"p99_{name}_s"], limit]
            for name, limit in (("exit", "<= 5"), ("hang", "<= 15"), ("slow", "<= 60"))
        ),
        [
            "wrong evictions per 30 days, at most",
            figures["wrong_evictions_upper_per_30_days"],
            f"{figures['quiet_days']} days, <= 1",
        ],
        [f"{LARGE} ranks: exact", f"{exact} of {len(large.outcomes)}", f"{large.simulated:.0f} s of made time"],
        [f"{LARGE} ranks: controller, of a core", figures["controller_core"], "<= 0.15; no sockets, no encryption"],
        [f"{LARGE} ranks: controller, MB", figures["controller_mb"], "<= 300"],
        [f"{LARGE} ranks: wait-for graph, ms", figures["hang_judge_ms"], "< 100"],
    ]
    rows += [
        [f"  {name}", f"{row['exact']} of {row['n']}", f"median {row['median_s']} s, p99 {row['p99_s']} s"]
        for name, row in figures["classes"].items()
    ]
    publish("drill", rows, figures)


if __name__ == "__main__":
    main()
