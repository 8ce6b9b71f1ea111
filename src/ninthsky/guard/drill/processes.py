"""A drill: simulated ranks in real processes, faults on purpose, the real controller and agents. Needs no torch."""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from ninthsky.guard.job import HostSpec, Injected, JobSpec, Watch, run_job

Kind = Literal["kill", "freeze", "nan"]
CAUSES: dict[str, str] = {"kill": "exit", "freeze": "frozen", "nan": "nonfinite"}
STEPS_BETWEEN = 25  # so that a spare is ready again before the next fault
FIRST_STEP = 10


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """What a drill showed. Seconds are medians from the injection, by cause of those faults that were drawn."""

    faults: int
    exact: int  # cause and rank right
    wrong: int
    committed_steps_lost: int
    named_seconds: dict[str, float]
    training_seconds: dict[str, float]
    simulated: bool = True


def draw(faults: int, ranks: int, seed: int) -> list[Injected]:
    """The faults of a drill: kind and rank by chance, one every STEPS_BETWEEN steps."""
    chance = random.Random(seed)
    kinds: tuple[Kind, ...] = ("kill", "freeze", "nan")
    return [Injected(chance.choice(kinds), chance.randrange(ranks), FIRST_STEP + STEPS_BETWEEN * n) for n in range(faults)]


def drill_job(
    folder: Path,
    ranks_per_host: int,
    injected: list[Injected],
    work_ms: float,
    *,
    hosts: int = 2,
    steps: int | None = None,
    orders: Path | None = None,
    worlds: list[int] | None = None,
) -> JobSpec:
    """Hosts of simulated ranks, one spare each. `steps`: by default so many that the last fault is repaired. `orders`: see
    live.py. `worlds`: smaller numbers of ranks that it goes on with."""
    marks = folder / "marks"
    marks.mkdir(parents=True)
    if steps is None:
        steps = max((fault.step for fault in injected), default=0) + STEPS_BETWEEN
    plan = {"steps": steps, "work_ms": work_ms, "marks": str(marks), "inject": msgspec.to_builtins(injected)}
    plan |= {"orders": str(orders)} if orders else {}
    return JobSpec(
        run_id=f"drill-{folder.name[-12:].replace('_', '-')}-{os.getpid()}",
        folder=str(folder),
        command=[sys.executable, "-m", "ninthsky.guard.drill.simulated_rank"],
        env={"N9_SIMULATED": json.dumps(plan)},
        world=hosts * ranks_per_host,
        worlds=worlds or [],
        hosts=[HostSpec(name=f"host-{host}", slots=ranks_per_host, spares=1) for host in range(hosts)],
        watch=Watch(action="act", max_evictions_per_hour=10_000, card_failures=10_000, kernel_log="off", selftest="off"),
        injected=injected,
    )


def run_drill(faults: int, ranks_per_host: int, seed: int, on_event: Callable[[dict[str, Any]], None]) -> Sheet:
    """Runs it in a scratch folder. Raises UserError N9-GRD-001 when the job did not come through."""
    injected = draw(faults, 2 * ranks_per_host, seed)
    with tempfile.TemporaryDirectory(prefix="n9-drill-") as scratch:
        spec = drill_job(Path(scratch) / "job", ranks_per_host, injected, work_ms=100.0)
        result = run_job(spec, on_event)
        # Each simulated rank writes down when it struck itself: the true beginning, which the guard can only reckon back.
        began = {
            (CAUSES[fault.kind], fault.rank, fault.step): float((Path(spec.folder) / "marks" / str(number)).read_text())
            for number, fault in enumerate(injected)
        }
    exact = 0
    named: dict[str, list[float]] = {}
    training: dict[str, list[float]] = {}
    for fault in result.faults:
        start = began.get((fault.cause, fault.rank or 0, fault.step))
        if start is None:
            continue
        exact += 1
        for into, moment in ((named, fault.timeline.named), (training, fault.timeline.trained)):
            if moment is not None:
                into.setdefault(fault.cause, []).append(moment - start)
    return Sheet(
        faults=faults,
        exact=exact,
        wrong=len(result.faults) - exact,
        committed_steps_lost=sum(fault.committed_steps_lost for fault in result.faults),
        named_seconds={cause: round(statistics.median(values), 3) for cause, values in named.items()},
        training_seconds={cause: round(statistics.median(values), 3) for cause, values in training.items()},
    )
