"""`n9 guard watch` on a real torchrun job of four gloo ranks that knows nothing of it: who is named, and after how long.

    python -m benchmarks.watch [--repeats 10] [--only freeze,slow2 --name watch-some] [--seed N]

Rank and moment are drawn by chance. Controls: the job by itself, and beside two processes that burn the processor which one
of its ranks is bound to. *wrong*: a rank was named that is not the bad one (in a control: any), *unknown*: a fault was told,
nobody blamed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.disturb import burners, stuttering
from benchmarks.report import publish
from ninthsky.guard.passive.live.processes import Rank, find_ranks

RANKS = 4
LIMIT = {
    "kill": 20.0, "freeze": 20.0, "sleep": 60.0, "lock": 60.0, "slow1.5": 90.0, "slow2": 90.0, "slow2 beside burners": 90.0,
    "stutters": 120.0, "loader": 400.0,
}  # fmt: skip
PASSES = {"slow1.5": 6, "slow2": 8, "slow2 beside burners": 8}
CAUSES = {"kill": {"exit"}, "freeze": {"frozen"}, "sleep": {"stuck"}, "lock": {"stuck"}}
CONTROLS = {"quiet": 60.0, "noisy": 90.0}
LONG = {"loader", *CONTROLS}  # done a third as often
CALM = (12.0, 16.0)  # seconds of watching before a fault: with less, the patience is three times as long
LOADER_SECONDS = 0.3  # that the rank waits for its data in each step
STUTTER_SECONDS = 0.15  # stopped, and as long not


class Job:
    """A torchrun job in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "job.log"
        with self.log.open("wb") as log:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "--standalone",
                 str(Path(__file__).with_name("watch_rank.py")), str(folder)],
                stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while "step 40" not in self.log.read_text("utf-8", "replace"):
            if time.monotonic() > deadline or self.launcher.poll() is not None:
                raise RuntimeError(f"the job did not start: {self.log.read_text('utf-8', 'replace')[-2000:]}")
            time.sleep(0.2)
        self.ranks: dict[int, Rank] = {rank.rank: rank for rank in find_ranks([self.launcher.pid])}

    def order(self, rank: int, text: str | None) -> None:
        path = self.folder / f"rank-{rank}"
        if text is None:
            path.unlink()
        else:
            draft = path.with_suffix(".new")
            draft.write_text(text)
            draft.replace(path)

    def end(self) -> None:
        for rank in self.ranks.values():
            try:
                os.kill(rank.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.launcher.kill()
        self.launcher.wait()


class Watch:
    """`n9 guard watch` as a process."""

    def __init__(self, job: Job, number: int) -> None:
        self.folder = job.folder / f"watch-{number}"
        n9 = Path(sys.executable).parent / "n9"
        self.process = subprocess.Popen(
            [n9, "guard", "watch", "--pid", str(job.launcher.pid), "--folder", self.folder, "--json"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self.events("watch.ranks"):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError("the watch did not start")
            time.sleep(0.1)

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]
        return [event for line in lines if (event := json.loads(line))["kind"] == kind]

    def first_fault(self, seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if named := self.events("fault.named"):
                return named[0]
            time.sleep(0.1)
        return None

    def end(self) -> float:
        """Its processor share for each rank."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        return float(self.events("watch.end")[-1]["processor_share_per_rank"])


@contextmanager
def job() -> Iterator[Job]:
    with tempfile.TemporaryDirectory() as folder:
        made = Job(Path(folder))
        try:
            yield made
        finally:
            made.end()


def strike(job: Job, kind: str, rank: int) -> None:
    if kind == "kill":
        os.kill(job.ranks[rank].pid, signal.SIGKILL)
    elif kind == "freeze":
        os.kill(job.ranks[rank].pid, signal.SIGSTOP)
    elif kind != "stutters":
        job.order(
            rank, f"passes {PASSES[kind]}" if kind in PASSES else f"loader {LOADER_SECONDS}" if kind == "loader" else kind
        )


def undo(job: Job, kind: str, rank: int) -> None:
    if kind in {"kill", "stutters"}:
        return
    if kind == "freeze":
        os.kill(job.ranks[rank].pid, signal.SIGCONT)
        return
    job.order(rank, None)
    if kind in {"sleep", "lock"}:
        os.kill(job.ranks[rank].pid, signal.SIGUSR1)


def one(job: Job, kind: str, number: int, draw: random.Random, into: dict[str, Any]) -> None:
    watch = Watch(job, number)
    time.sleep(draw.uniform(*CALM))
    rank = draw.randrange(RANKS)
    begun = time.time()
    disturbed: AbstractContextManager[None] = nullcontext()
    if kind.endswith("burners"):
        disturbed = burners(None)
    elif kind == "stutters":
        disturbed = stuttering(job.ranks[rank].pid, STUTTER_SECONDS, STUTTER_SECONDS)
    with disturbed:
        strike(job, kind, rank)
        fault = watch.first_fault(LIMIT[kind])
    if fault is None:
        outcome = "missed"
    elif fault["rank"] is None:
        outcome = "unknown"
    elif fault["time"] < begun or fault["rank"] != rank or fault["cause"] not in CAUSES.get(kind, {"slow"}):
        outcome = "wrong"
    else:
        outcome = "right"
        into["seconds"].append(fault["time"] - begun)
    into[outcome] += 1
    said = "nothing" if fault is None else f"{fault['subject']}: {fault['verdict']}"
    print(f"{kind:22s} rank {rank}: {outcome:8s} {said}", flush=True)
    undo(job, kind, rank)
    into["cost"].append(watch.end())
    time.sleep(2.0)


def control(job: Job, kind: str, number: int, draw: random.Random, into: dict[str, Any]) -> None:
    bound = draw.randrange(RANKS)
    watch = Watch(job, number)
    if kind == "noisy":
        with burners(job.ranks[bound].pid):
            time.sleep(CONTROLS[kind])
    else:
        time.sleep(CONTROLS[kind])
    named = watch.events("fault.named")
    into["wrong" if any(fault["rank"] is not None for fault in named) else "unknown" if named else "right"] += 1
    said = "; ".join(f"{fault['subject']}: {fault['verdict']}" for fault in named) or "nothing"
    print(f"{kind:22s} rank {bound} bound: {said}", flush=True)
    into["cost"].append(watch.end())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join([*LIMIT, *CONTROLS]), help="kinds, separated by commas")
    parser.add_argument("--name", default="watch", help="of the file of results")
    given = parser.parse_args()
    unknown = set(given.only.split(",")) - {*LIMIT, *CONTROLS}
    if unknown:
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; there are {', '.join([*LIMIT, *CONTROLS])}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # jobs and watches are ended on the way out
    draw = random.Random(given.seed)
    rows, figures = [], dict[str, Any]()
    for kind in given.only.split(","):
        found: dict[str, Any] = {"right": 0, "wrong": 0, "unknown": 0, "missed": 0, "seconds": [], "cost": []}
        if kind == "kill":
            for number in range(given.repeats):
                with job() as made:
                    one(made, kind, number, draw, found)
        else:
            with job() as made:
                for number in range(max(1, given.repeats // 3) if kind in LONG else given.repeats):
                    (one if kind in LIMIT else control)(made, kind, number, draw, found)
        seconds = sorted(found.pop("seconds"))
        cost = found.pop("cost")
        named = f"{statistics.median(seconds):.1f} (worst {seconds[-1]:.1f})" if seconds else "-"
        rows.append([kind, *found.values(), named, f"{statistics.median(cost):.2%}"])
        key = kind.replace(" ", "_").replace(".", "_")
        figures |= {f"{key}_{outcome}": count for outcome, count in found.items()}
        figures |= {
            f"{key}_seconds": round(statistics.median(seconds), 2) if seconds else None,
            f"{key}_cost": round(statistics.median(cost), 5),
        }
    publish(given.name, rows, figures, ("what", "right", "wrong", "unknown", "missed", "seconds to name", "processor per rank"))


if __name__ == "__main__":
    main()
