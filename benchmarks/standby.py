"""`python -m benchmarks.standby`: the controller dies or freezes, again and again; how long nobody watches, and who is named.

Simulated ranks, two hosts, a standby with a folder of its own. Each round is a job of its own: it trains, then
`kill` (the controller alone), `both` (together with a rank), or `freeze` (SIGSTOP with a rank killed; woken when all is mended,
it must be refused). Counted: seconds until the standby leads, until the dead rank is named, steps lost, what the ranks noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.observing import Enough, places_of
from benchmarks.report import median_interval, publish
from ninthsky.guard.drill import drill_job
from ninthsky.guard.faults import Fault
from ninthsky.guard.job import Standby, run_job
from ninthsky.run.folder import read_json

STRIKE_AT = 8  # step
STEPS_AFTER = 10


class Round:
    """One strike, seen from its job's events."""

    def __init__(self, kind: str, folder: Path, work_ms: float) -> None:
        self.kind, self.other = kind, folder / "standby"
        spec = drill_job(folder / "job", 2, [], work_ms)
        plan = json.loads(spec.env["N9_SIMULATED"]) | {"steps": 1_000_000}
        self.spec = msgspec.structs.replace(
            spec, env={"N9_SIMULATED": json.dumps(plan)}, standby=Standby(folder=str(self.other))
        )
        self.at = self.leads = self.named = 0.0
        self.rank = -1
        self.controller = 0
        self.generations = 0
        self.woken = False
        self._end = 0

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        self.generations += kind == "generation"
        if kind == "commit" and event["step"] >= STRIKE_AT and not self.at:
            self._strike()
        elif kind == "controller.leads" and self.at and event["controller"] == "standby":
            self.leads = event["time"]
        elif kind == "fault.named" and not self.named:
            self.named = event["time"]
        elif kind in {"fault.repaired", "controller.recovered"} and self.at and not self.woken:
            if self.kind == "freeze" and kind == "fault.repaired":
                os.kill(self.controller, signal.SIGCONT)
                self.woken = True
        elif kind == "commit" and self.leads and (self.named or self.kind == "kill"):
            self._end = self._end or event["step"] + STEPS_AFTER
            if event["step"] >= self._end:
                raise Enough

    def _strike(self) -> None:
        self.controller = (read_json(Path(self.spec.folder) / "controller.json") or {})["pid"]
        pids = [pid for _, _, pid in places_of(self.spec)]
        self.at = time.time()
        os.kill(self.controller, signal.SIGSTOP if self.kind == "freeze" else signal.SIGKILL)
        if self.kind != "kill":
            self.rank = random.randrange(len(pids))
            os.kill(pids[self.rank], signal.SIGKILL)

    def result(self) -> dict[str, Any]:
        paths = sorted((self.other / "faults").glob("F-*.json"))
        faults = [msgspec.json.decode(path.read_bytes(), type=Fault) for path in paths]
        expected = [] if self.kind == "kill" else [("exit", self.rank)]
        log = (Path(self.spec.folder) / "logs" / "controller.log").read_text()
        return {
            "kind": self.kind,
            "leads": self.leads - self.at,
            "named": self.named - self.at if self.named else None,
            "right": [(fault.cause, fault.rank) for fault in faults] == expected,
            "lost": sum(fault.committed_steps_lost for fault in faults),
            "generations": self.generations,
            "refused": self.kind != "freeze" or "standby leads now" in log,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="of each kind")
    parser.add_argument("--work-ms", type=float, default=50.0)
    parser.add_argument("--minutes", type=float, default=4.0, help="no more rounds after this time")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    results: list[dict[str, Any]] = []
    for _ in range(arguments.repeats):
        for kind in ("kill", "both", "freeze"):
            if time.monotonic() > end:
                break
            with tempfile.TemporaryDirectory(prefix="bench-standby-") as scratch:
                played = Round(kind, Path(scratch), arguments.work_ms)
                with contextlib.suppress(Enough):
                    run_job(played.spec, played)
                results.append(played.result())
                print(results[-1], flush=True)
    figures: dict[str, Any] = {"rounds": len(results), "load": os.getloadavg()[0]}
    figures |= median_interval([result["leads"] for result in results], "standby_leads_s")
    figures["standby_leads_s_max"] = max(result["leads"] for result in results)
    named = [result["named"] for result in results if result["named"] is not None]
    if named:
        figures |= {**median_interval(named, "rank_named_s"), "rank_named_s_max": max(named)}
    figures["right"] = sum(result["right"] for result in results)
    figures["refused"] = sum(result["refused"] for result in results if result["kind"] == "freeze")
    figures["frozen"] = sum(result["kind"] == "freeze" for result in results)
    figures["committed_steps_lost"] = sum(result["lost"] for result in results)
    figures["undisturbed"] = sum(result["generations"] == 1 for result in results if result["kind"] == "kill")
    figures["kills"] = sum(result["kind"] == "kill" for result in results)
    rows = [
        ("the standby leads, after the strike (s)", figures["standby_leads_s"], f"worst {figures['standby_leads_s_max']:.2f}"),
        ("rank killed with it: named (s)", figures.get("rank_named_s", "-"), f"worst {figures.get('rank_named_s_max', 0):.2f}"),
        ("rounds with the right faults", figures["right"], f"of {figures['rounds']}"),
        ("controller killed alone: ranks noticed nothing", figures["undisturbed"], f"of {figures['kills']}"),
        ("frozen one, woken: refused", figures["refused"], f"of {figures['frozen']}"),
        ("committed steps lost", figures["committed_steps_lost"], ""),
    ]
    publish("standby", rows, figures)


if __name__ == "__main__":
    main()
