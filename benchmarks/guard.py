"""`python -m benchmarks.guard`: real ranks (FSDP2 x expert parallel over gloo) killed and frozen from outside, again and again.

One job of four ranks on two simulated hosts with a spare each trains on made tokens. When spares are ready on both hosts a rank
is struck at a random moment. Times run from the signal to the first step that rank 0 has finished in the new generation.
The cost is counted in processor seconds over undisturbed training; a second job, of simulated ranks with 2 kB of state at the
same pace, tells what of it is watching and what is copying state to the other host; shipping.py measures the copy itself.
Then torchrun trains the same model and is struck in the same way (rivals/torchrun.py). Figures marked "cited" are from
`shared/design/numbers.md`: measured on another day, on a machine of the same kind, not here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.observing import Enough, Spares, parent_of, places_of, resident_mb
from benchmarks.report import median_interval, publish
from benchmarks.rivals.job import CHECKPOINT_EVERY, STRUCK, Outcome
from benchmarks.rivals.torchrun import TIMEOUT_SECONDS, run_torchrun
from benchmarks.shipping import shipping_cost
from ninthsky.config.load import parse_settings
from ninthsky.guard.agent.spawner import process_state
from ninthsky.guard.controller.fleet import RECORD_TYPE
from ninthsky.guard.drill import drill_job
from ninthsky.guard.faults import Fault
from ninthsky.guard.job import HostSpec, JobSpec, Watch, run_job
from ninthsky.guard.probe.record import RecordWriter
from ninthsky.model.shape import Shape
from ninthsky.run.folder import read_json, read_lines, write_json
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.job import TrainJob, load_job
from ninthsky.train.step.recipe import Recipe

HOSTS = 2


def made_tokens(folder: Path, vocab: int, count: int = 200_000) -> None:
    """Made tokens, only there so that something is trained."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("train", "held_out"):
        (6 + np.minimum(rng.geometric(0.02, count), vocab - 7)).astype(np.uint16).tofile(folder / f"{name}.bin")
    splits = {
        name: {"file": f"{name}.bin", "tokens": count, "documents": 1, "by_language": {"made": count}}
        for name in ("train", "held_out")
    }
    write_json(
        folder / "index.json",
        {"format": 1, "dtype": "uint16", "vocab": vocab, "eos": 1, "splits": splits, "bytes_per_token": 1.0},
    )


def make_job(folder: Path, size: str) -> JobSpec:
    settings = parse_settings(f'size = "{size}"', "benchmark")
    vocab = settings.data.vocab
    assert vocab is not None and settings.train.sequence is not None and settings.train.batch is not None
    made_tokens(folder / "tokens", vocab)
    job = TrainJob(
        shape=Shape.of(settings.model, vocab), recipe=Recipe(), mesh=Mesh(dp_shard=4, ep=2), tokens=str(folder / "tokens"),
        folder=str(folder), steps=1_000_000, sequence=settings.train.sequence, batch=settings.train.batch, seed=7,
        checkpoint_every=10_000, export=False, events=str(folder / "train-events.jsonl"),
    )  # fmt: skip
    path = job.save(folder / "train.json")
    watch = Watch.of(settings.guard, max_evictions_per_hour=10_000, card_failures=10_000)
    return JobSpec(
        run_id=f"bench-{os.getpid()}", folder=str(folder / "guard"),
        command=[sys.executable, "-m", "ninthsky.train.rank.elastic", str(path)],
        world=4, hosts=[HostSpec(name=f"host-{n}", slots=2, spares=1) for n in range(HOSTS)], env={"OMP_NUM_THREADS": "1"},
        watch=msgspec.structs.replace(watch, action="act"),
    )  # fmt: skip


class Striker:
    """Watches the job's events, measures its cost in peace, then strikes ranks one after another."""

    def __init__(self, spec: JobSpec, strikes: list[signal.Signals], quiet_seconds: float, seed: int, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.spec, self.strikes, self.quiet_seconds = spec, list(strikes), quiet_seconds
        self.random = random.Random(seed)
        self.folder = Path(spec.folder)
        self.spares = Spares(spec)
        self.results: list[dict[str, Any]] = []
        self.cost: dict[str, float] = {}
        self.struck: tuple[signal.Signals, int, float] | None = None
        self.busy = False
        self.load = os.getloadavg()[0]  # of the machine, before anything of this benchmark runs

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        self.spares.hear(event)
        if kind == "joined" and event["generation"] == 1:
            self._later(self._measure_cost, 3.0)
        if kind == "fault.repaired":
            self._record(event)
        if kind == "commit" and self.cost and not self.busy and self.spares.ready():
            if not self.strikes or time.monotonic() > self.end:
                raise Enough
            self._later(self._strike, self.random.uniform(0.2, 1.0))

    def _later(self, work: Callable[[], None], seconds: float) -> None:
        self.busy = True
        timer = threading.Timer(seconds, work)
        timer.daemon = True
        timer.start()

    def _strike(self) -> None:
        kind, rank = self.strikes.pop(0), self.random.randrange(self.spec.world)
        pid = places_of(self.spec)[rank][2]
        self.struck = (kind, rank, time.time())
        os.kill(pid, kind)

    def _record(self, event: dict[str, Any]) -> None:
        assert self.struck is not None
        kind, rank, at = self.struck
        fault = msgspec.json.decode((self.folder / "faults" / f"{event['fault']}.json").read_bytes(), type=Fault)
        history = Path(self.spec.command[-1]).parent / "history.jsonl"
        first: list[float] = []
        while not first:
            first = [line["time"] for line in read_lines(history) if line["generation"] == fault.resumed_generation]
            time.sleep(0.02)
        assert fault.timeline.named is not None and fault.timeline.trained is not None
        result = {
            "kind": kind.name, "rank": rank, "right": fault.rank == rank, "named": fault.timeline.named - at,
            "gate": fault.timeline.trained - at, "trained": first[0] - at, "lost": fault.committed_steps_lost,
        }  # fmt: skip
        self.results.append(result)
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}, flush=True)
        self.struck, self.busy = None, False

    def _measure_cost(self) -> None:
        history = Path(self.spec.command[-1]).parent / "history.jsonl"
        before, begin = len(list(read_lines(history))), time.monotonic()
        cost = measure_cost(self.spec, self.quiet_seconds)
        steps = len(list(read_lines(history))) - before
        cost["step_s"] = (time.monotonic() - begin) / steps
        cost["state_mb_per_s"] = state_bytes(self.spec) / 1e6 / cost["step_s"]
        self.cost = cost
        self.busy = False


class Bystander:
    """Lets a job run undisturbed, measures its cost, and ends it."""

    def __init__(self, spec: JobSpec, seconds: float) -> None:
        self.spec, self.seconds = spec, seconds
        self.cost: dict[str, float] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] == "joined":
            threading.Timer(3.0, self._measure).start()
        if event["kind"] == "commit" and self.cost:
            raise Enough

    def _measure(self) -> None:
        self.cost = measure_cost(self.spec, self.seconds)


def measure_cost(spec: JobSpec, seconds: float) -> dict[str, float]:
    """Processor seconds of controller, agents and ranks over a while of undisturbed training, and the probe's share."""
    controller = (read_json(Path(spec.folder) / "controller.json") or {})["pid"]
    ranks = [pid for _, _, pid in places_of(spec)]
    agents = sorted({parent_of(pid) for pid in ranks})
    pids = (controller, *agents, *ranks)
    before, entered, begin = [process_state(pid)[1] for pid in pids], collectives_of(spec), time.monotonic()
    time.sleep(seconds)
    after, collectives = [process_state(pid)[1] for pid in pids], collectives_of(spec) - entered
    passed = time.monotonic() - begin
    used = [late - early for late, early in zip(after, before, strict=True)]
    watchers = sum(used[: 1 + len(agents)])
    probe = collectives * collective_cost() + len(ranks) * passed * 10 * heartbeat_cost()
    return {
        "controller_core": used[0] / passed,
        "controller_mb": resident_mb(controller),
        "agents_core": (watchers - used[0]) / passed,
        "all_cores": sum(used) / passed,
        "overhead": (watchers + probe) / sum(used),
        "probe_share": probe / sum(used),
        "collectives_per_second": collectives / passed,
        "collective_us": collective_cost() * 1e6,
    }


def collectives_of(spec: JobSpec) -> int:
    """Collectives that the ranks have entered in this generation, all groups together."""
    count = 0
    for host, slot, _ in places_of(spec):
        raw = (spec.memory_folder(host) / f"slot-{slot}.record").read_bytes()
        count += int(np.frombuffer(raw, RECORD_TYPE)[0]["groups"]["enqueued"].sum(dtype=np.int64))
    return count


def measure_watching(folder: Path, seconds: float, step_seconds: float) -> float:
    """Cores that controller and agents take at this pace when there is next to nothing to copy."""
    spec = drill_job(folder / "watching", 2, [], step_seconds * 1e3)
    plan = json.loads(spec.env["N9_SIMULATED"]) | {"steps": 1_000_000}
    bystander = Bystander(msgspec.structs.replace(spec, env={"N9_SIMULATED": json.dumps(plan)}), seconds)
    with contextlib.suppress(Enough):
        run_job(bystander.spec, bystander)
    return bystander.cost["controller_core"] + bystander.cost["agents_core"]


def state_bytes(spec: JobSpec) -> int:
    """Bytes of all ranks' state, which each step copies once: fp32 weights and two moments."""
    job = load_job(Path(spec.command[-1]))
    return 12 * job.shape.parameters()


def timed(work: Callable[[], object], times: int = 20_000) -> float:
    begin = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begin) / times


def collective_cost() -> float:
    """Processor seconds that the record takes per collective: entered, finished, and a header update for good measure."""
    with tempfile.TemporaryDirectory() as folder:
        record = RecordWriter(Path(folder) / "record")

        def work() -> None:
            record.complete(5, record.enqueue(5, 9))

        return timed(work)


def heartbeat_cost() -> float:
    with tempfile.TemporaryDirectory() as folder:
        return timed(RecordWriter(Path(folder) / "record").heartbeat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny", choices=("nano", "tiny"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--freezes", type=int, default=6)
    parser.add_argument("--quiet-seconds", type=float, default=15.0)
    parser.add_argument("--minutes", type=float, default=6.0, help="no more strikes after this time")
    parser.add_argument("--no-rival", action="store_true", help="without the two to three minutes of torchrun")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-guard-"))
    strikes = [signal.SIGKILL] * arguments.kills + [signal.SIGSTOP] * arguments.freezes
    random.Random(arguments.seed).shuffle(strikes)
    striker = Striker(make_job(folder, arguments.size), strikes, arguments.quiet_seconds, arguments.seed, arguments.minutes)
    with contextlib.suppress(Enough):
        run_job(striker.spec, striker)
    watching = measure_watching(folder, arguments.quiet_seconds, striker.cost["step_s"])
    striker.cost["overhead_watching"] = watching / striker.cost["all_cores"] + striker.cost["probe_share"]
    striker.cost |= shipping_cost(state_bytes(striker.spec) // striker.spec.world)
    rivals = {} if arguments.no_rival else run_torchrun(folder / "torchrun", load_job(Path(striker.spec.command[-1])))
    shutil.rmtree(folder)
    report(striker, rivals, arguments.size, arguments.seed)


def rival_figures(rivals: dict[str, Outcome]) -> dict[str, Any]:
    """`torchrun_...`: None where it did not come back (or named nobody) within the limit that stands beside it."""
    figures: dict[str, Any] = {}
    names = {"killed": "kill", "killed_prefix": "kill_prefix", "stopped_prefix": "stop"}
    for case, outcome in rivals.items():
        name = f"torchrun_{names[case]}"
        figures |= {
            f"{name}_to_training_s": outcome.trained, f"{name}_named_s": outcome.named, f"{name}_blamed_rank": outcome.blamed,
            f"{name}_steps_lost": outcome.steps_lost, f"{name}_limit_s": outcome.limit,
        }  # fmt: skip
    return figures | ({"torchrun_stop_timeout_s": TIMEOUT_SECONDS, "torchrun_struck_rank": STRUCK} if rivals else {})


def again(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not run"
    return f"not within {outcome.limit:.0f} s" if outcome.trained is None else f"{outcome.trained:.1f} s"


def blame(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not run"
    if outcome.named is None:
        return f"nobody within {outcome.limit:.0f} s"
    return f"{outcome.named:.1f} s, rank {outcome.blamed} ({'right' if outcome.blamed == STRUCK else f'it was {STRUCK}'})"


def report(striker: Striker, rivals: dict[str, Outcome], size: str, seed: int) -> None:
    kills = [result for result in striker.results if result["kind"] == "SIGKILL"]
    stops = [result for result in striker.results if result["kind"] == "SIGSTOP"]
    figures: dict[str, Any] = {"size": size, "seed": seed, "ranks": 4, "load_before": striker.load}
    samples = {
        "kill_to_training_s": [r["trained"] for r in kills], "kill_to_gate_s": [r["gate"] for r in kills],
        "hang_named_s": [r["named"] for r in stops], "hang_to_training_s": [r["trained"] for r in stops],
    }  # fmt: skip
    for name, values in samples.items():
        figures |= {**median_interval(values, name), f"{name}_max": max(values)} if values else {}
    right = sum(result["right"] for result in striker.results)
    lost = sum(result["lost"] for result in striker.results)
    figures |= {"named_right": right, "faults": len(striker.results), "committed_steps_lost": lost, **striker.cost}
    figures |= rival_figures(rivals)

    def line(name: str) -> str:
        if name not in figures:
            return "not run"
        low, high = figures[f"{name}_ci_low"], figures[f"{name}_ci_high"]
        return (
            f"{figures[name]:.2f} s [{low:.2f}, {high:.2f}], at most {figures[f'{name}_max']:.2f}, n = {figures[f'{name}_n']}"
        )

    killed, prefixed, stopped = (rivals.get(case) for case in ("killed", "killed_prefix", "stopped_prefix"))
    torchrun = f"torchrun {version('torch').partition('+')[0]}, this run:"
    undone = [outcome.steps_lost for outcome in (prefixed, stopped) if outcome is not None and outcome.steps_lost is not None]
    rows = [
        (
            "kill -> first step finished",
            line("kill_to_training_s"),
            f"{torchrun} {again(killed)} as shipped, {again(prefixed)} with a store prefix per attempt; "
            "cited: torchft 2.1-2.3 s, NVRx 13.6 s",
        ),
        ("kill -> first gate passed", line("kill_to_gate_s"), "-"),
        (
            "frozen -> named",
            line("hang_named_s"),
            f"{torchrun} {blame(stopped)}, with collectives timed out at {TIMEOUT_SECONDS:.0f} s; cited: torch's default "
            "1,800 s; NVRx 10.2 s, three ranks at once",
        ),
        ("frozen -> first step finished", line("hang_to_training_s"), f"{torchrun} {again(stopped)}; cited: NVRx 28.6 s"),
        ("named right", f"{right} of {len(striker.results)}", f"{torchrun} killed: {blame(killed)}"),
        (
            "committed steps lost",
            lost,
            f"{torchrun} {' and '.join(map(str, undone)) or 'unknown'} of a checkpoint every {CHECKPOINT_EVERY}",
        ),
        ("all of the guard, of all processor time", f"{figures['overhead']:.2%}", "goal (issue 4) 0.5 %"),
        ("of it watching (controller, agents, probe)", f"{figures['overhead_watching']:.2%}", "-"),
        ("the rest: copies of the state, encrypted", f"{figures['state_mb_per_s']:.0f} MB/s", "-"),
        (
            "a copy, ms of processor time per MB",
            f"{figures['ship_sender_ms_per_mb']:.2f} sender, {figures['ship_receiver_ms_per_mb']:.2f} receiver",
            "-",
        ),
        ("controller, share of a core", f"{figures['controller_core']:.2%}", "-"),
        ("controller, MB resident", f"{figures['controller_mb']:.0f}", "-"),
    ]
    publish("guard", rows, figures)


if __name__ == "__main__":
    main()
