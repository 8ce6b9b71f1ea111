"""The drill on a simulated fleet and a made clock, with a fresh seed. `python -m benchmarks.drill [--faults 1000] [--days 90]`.

Three parts: many faults on a fleet of middling size; a few at 18,432 ranks, with the controller's processor time there; and
days without faults. The seed was not used while the judges were worked on (those were 1 to 30 and 20261124).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.report import publish
from ninthsky.guard.drill.clocked import ClockedDrill
from ninthsky.guard.drill.noise import recorded
from ninthsky.guard.drill.scenario import Conditions, Effects
from ninthsky.guard.drill.sheet import mix, run_clocked
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--large-faults", type=int, default=12)
    parser.add_argument("--days", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=20_261_125)
    given = parser.parse_args()

    def show(text: str) -> None:
        print(f"simulated: {text}", flush=True)

    figures: dict[str, Any] = run_clocked(given.ranks, given.faults, given.seed, mix(), given.days, show)
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
