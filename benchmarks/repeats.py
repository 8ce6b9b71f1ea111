"""`python -m benchmarks.repeats [--only kill,slow_work] [--repeats 20]`: one long job of real ranks, struck in every way.

FSDP2 x expert parallel over gloo, two simulated hosts with a prepared spare each. Kinds come in a random order, rank, moment,
bit and size by chance. After each strike: who was named, how soon, how long until training went on, what was done again. The
weights at the end are compared with those of a job that nobody touched, bit by bit, and so is every step's loss on the way.
`noisy`: two processes that burn the processor which one innocent rank is bound to; right is that nobody is named.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.corrupt import sized
from benchmarks.disturb import burners, stuttering
from benchmarks.observing import Enough, Spares, places_of
from benchmarks.repeats_rank import ORDERS, order
from benchmarks.report import publish
from ninthsky.guard.faults import Fault, read_faults
from ninthsky.guard.job import HostSpec, JobSpec, Watch, run_job
from ninthsky.model.decoder import Decoder
from ninthsky.run.folder import read_json
from ninthsky.train import inject
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.job import TrainJob, load_job
from ninthsky.train.state.checkpoint import load_weights
from ninthsky.train.step.ranges import LEAST
from ninthsky.train.step.recipe import Recipe

MESHES = {4: Mesh(dp_shard=4, ep=2), 8: Mesh(dp_replicate=2, dp_shard=4, ep=2)}
REPLAY_EVERY = 20  # steps
CHECKPOINT_EVERY = 100  # steps
CAUSES = {
    "kill": {"exit"}, "frozen": {"frozen"}, "nan": {"nonfinite"}, "exponent": {"nonfinite", "corrupt", "outlier"},
    "weight": {"corrupt", "nonfinite"}, "matmul": {"corrupt"}, "slow_work": {"slow"}, "slow_stops": {"slow"}, "noisy": set(),
}  # fmt: skip
ORDERED = {"nan": "nan", "exponent": "flip_gradient", "weight": "flip_weight", "matmul": "wrong_matmul", "slow_work": "slow"}
LIMIT = {"slow_work": 60.0, "slow_stops": 60.0, "noisy": 30.0}  # seconds until somebody must be named, or must not
LIMIT_ELSE = 30.0
SLOWER = 1.2
STOPPED = 0.02  # seconds of each stop of `slow_stops`, and SLOWER is reached by (SLOWER - 1) times as long running
RUNNING = STOPPED / (SLOWER - 1)
CALM_STEPS = LEAST + 2  # in a new generation: before that the range of gradients is not yet known
START_SECONDS = 180.0
REPAIR_SECONDS = 60.0


@dataclass
class Strike:
    """One strike and what came of it. Seconds from the strike; None where it did not happen."""

    kind: str
    rank: int
    step: int  # the newest that was finished, or the one it was ordered for
    named: float | None = None
    steps_to_name: int | None = None
    trained: float | None = None
    redone: int = 0
    lost: int = 0
    others: list[str] = field(default_factory=list)  # what was told that is not true
    said: str = ""

    @property
    def right(self) -> bool:
        return not self.others and (self.kind == "noisy" or self.named is not None)


class History:
    """The lines of a job's history.jsonl as they come."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self.lines: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole, end, _ = file.read().rpartition(b"\n")
            self._offset += len(whole) + len(end)
            self.lines += [msgspec.json.decode(line) for line in whole.splitlines()]
        return self.lines

    def losses(self) -> dict[int, tuple[float, float]]:
        """Loss and norm of each step; what was done again counts."""
        return {line["step"]: (line["loss"], line["norm"]) for line in self.read() if not line["skipped"]}


class Striker(threading.Thread):
    """Strikes a running job, one strike after another; `over` says that it has no more to do."""

    def __init__(self, spec: JobSpec, plan: list[str], draw: random.Random, minutes: float) -> None:
        super().__init__(daemon=True)
        self.spec, self.plan, self.draw = spec, plan, draw
        self.end = time.monotonic() + 60 * minutes
        self.train = Path(load_job(Path(spec.command[-1])).folder)
        self.spares = Spares(spec)
        self.history = History(self.train / "history.jsonl")
        self.done: list[Strike] = []
        self.last = -1  # the step whose checkpoint is compared
        self.over, self.problem = False, ""

    def on_event(self, event: dict[str, Any]) -> None:
        """For run_job."""
        self.spares.hear(event)
        if self.over:
            raise Enough

    def run(self) -> None:
        try:
            self._wait("the job to begin", START_SECONDS, lambda: bool(self._steps()))
            for number, kind in enumerate(self.plan):
                if time.monotonic() > self.end:
                    break
                self._settle()
                self.done.append(self._strike(number, kind))
                print(self.done[-1], flush=True)
            self.last = (self._steps()[-1]["step"] // CHECKPOINT_EVERY + 2) * CHECKPOINT_EVERY
            saved = self.train / "checkpoint" / f"step-{self.last}"
            self._wait("the last checkpoint", REPAIR_SECONDS + CHECKPOINT_EVERY, lambda: (saved / "seal.json").exists())
        except (TimeoutError, OSError) as error:
            self.problem = f"{type(error).__name__}: {error}"
        finally:
            self.over = True

    def _steps(self) -> list[dict[str, Any]]:
        return self.history.read()

    def _faults(self) -> list[Fault]:
        return read_faults(Path(self.spec.folder) / "faults")

    def _wait(self, what: str, seconds: float, come: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        while not come():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}")
            time.sleep(0.02)

    def _settle(self) -> None:
        """Until spares are ready and the generation has run for a while."""

        def calm() -> bool:
            lines = self._steps()
            now = lines[-1]["generation"]
            return self.spares.ready() and len(lines) > CALM_STEPS and lines[-CALM_STEPS]["generation"] == now

        self._wait("spares", START_SECONDS, calm)
        time.sleep(self.draw.uniform(0.0, 0.5))

    def _strike(self, number: int, kind: str) -> Strike:
        rank, known = self.draw.randrange(self.spec.world), len(self._faults())
        strike = Strike(kind, rank, self._steps()[-1]["step"])
        pid = places_of(self.spec)[rank][2]
        at = time.time()
        disturbance: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if kind == "kill":
            os.kill(pid, signal.SIGKILL)
        elif kind == "frozen":
            os.kill(pid, signal.SIGSTOP)
        elif kind == "slow_stops":
            disturbance = stuttering(pid, STOPPED, RUNNING)
        elif kind == "noisy":
            disturbance = burners(pid)
        else:
            at = self._order(number, strike)
        with disturbance:
            end = at + LIMIT.get(kind, LIMIT_ELSE)
            while len(self._faults()) == known and time.time() < end:
                time.sleep(0.02)
            mine = self._of(strike, self._faults()[known:])
            if mine is not None:
                with contextlib.suppress(TimeoutError):
                    self._wait("the repair", REPAIR_SECONDS, lambda fault=mine.id: self._again(fault))  # type: ignore[misc]
        told = self._faults()[known:]
        mine = self._of(strike, told)
        strike.others = [f"{fault.cause} {fault.card or fault.host}" for fault in told if fault is not mine]
        strike.said = "; ".join(fault.evidence.verdict for fault in told)
        if mine is not None and mine.timeline.named is not None:
            strike.named, strike.steps_to_name = mine.timeline.named - at, mine.step - strike.step
            strike.redone, strike.lost = mine.steps_redone, mine.committed_steps_lost
            if mine.timeline.trained is not None:
                strike.trained = self._first_step(mine) - at
        return strike

    def _order(self, number: int, strike: Strike) -> float:
        """Orders the fault for a step soon to come, and waits until it has struck. Returns when it did."""
        strike.step = self._steps()[-1]["step"] + 6 + self.draw.randrange(4)
        bit = self.draw.randrange(23, 31) if strike.kind == "exponent" else self.draw.randrange(32)
        fault = inject.Fault(
            number,
            ORDERED[strike.kind],
            strike.rank,
            strike.step,
            factor=SLOWER,
            bit=bit,
            error=10 ** self.draw.uniform(-6, -2),
        )
        order(self.train, fault)
        struck = self.train / f"struck-{number:03d}"
        self._wait("an ordered fault", LIMIT_ELSE, lambda: struck.exists() and struck.stat().st_size > 0)
        return float((read_json(struck) or {})["time"])

    def _of(self, strike: Strike, told: list[Fault]) -> Fault | None:
        return next((f for f in told if f.rank == strike.rank and f.cause in CAUSES[strike.kind]), None)

    def _again(self, fault: str) -> bool:
        return any(known.id == fault and known.state == "repaired" for known in self._faults())

    def _first_step(self, fault: Fault) -> float:
        """When rank 0 had finished a step after the fault: in the new generation, or the step that was done again."""
        found: list[float] = []

        def come() -> bool:
            generation = fault.resumed_generation or fault.generation
            since = fault.timeline.named or 0.0
            found[:] = [x["time"] for x in self._steps() if x["generation"] == generation and x["time"] >= since]
            return bool(found)

        self._wait("a step after the repair", REPAIR_SECONDS, come)
        return found[0]


def make_job(folder: Path, name: str, size: str, ranks: int, spares: int, hook: bool) -> JobSpec:
    """The job of this benchmark, with ranks that take orders; its twin has no spares."""
    shape, sequence, batch = sized(folder / "tokens", size)
    place = folder / name
    (place / ORDERS).mkdir(parents=True)
    job = TrainJob(
        shape=shape, recipe=Recipe(), mesh=MESHES[ranks], tokens=str(folder / "tokens"), folder=str(place), steps=1_000_000,
        sequence=sequence, batch=max(batch, ranks), seed=7, checkpoint_every=CHECKPOINT_EVERY, export=False,
        replay_every=REPLAY_EVERY, events=str(place / "events.jsonl"),
    )  # fmt: skip
    return JobSpec(
        run_id=f"repeats-{os.getpid()}-{name}", folder=str(place / "guard"),
        command=[sys.executable, "-m", "benchmarks.repeats_rank", str(job.save(place / "train.json"))],
        world=ranks, hosts=[HostSpec(name=f"host-{n}", slots=ranks // 2, spares=spares) for n in range(2)],
        env={"OMP_NUM_THREADS": "1", "REPEATS_HOOK": str(int(hook))},
        # Tests of cards are left out: on two busy cores they would take the ranks' time for minutes.
        watch=Watch(action="act", replay_every=REPLAY_EVERY, max_evictions_per_hour=10_000, card_failures=10_000,
                    selftest="off"),
    )  # fmt: skip


def run_twin(spec: JobSpec, until: int) -> tuple[History, list[Fault]]:
    """A job that nobody touches, up to its checkpoint of that step: its history, and what it was (wrongly) told to have."""
    place = Path(spec.folder).parent
    saved = place / "checkpoint" / f"step-{until}" / "seal.json"

    def on_event(_: dict[str, Any]) -> None:
        if saved.exists():
            raise Enough

    with contextlib.suppress(Enough):
        run_job(spec, on_event)
    return History(place / "history.jsonl"), read_faults(Path(spec.folder) / "faults")


def same_bits(ours: Path, theirs: Path, job: TrainJob) -> bool:
    """Whether two checkpoints hold the same weights."""
    models = [Decoder(job.shape, seed=None) for _ in range(2)]
    for model, folder in zip(models, (ours, theirs), strict=True):
        load_weights(model, folder)
    pairs = zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True)
    return all(torch.equal(mine, twins) for mine, twins in pairs)


def unequal_after(strikes: list[Strike], ours: History, twins: History, last: int) -> list[Strike]:
    """The strikes after which, until the next one, a step's loss or norm was not the twin's."""
    mine, other = ours.losses(), twins.losses()
    ends = [strike.step for strike in strikes[1:]] + [last]
    return [
        strike
        for strike, end in zip(strikes, ends, strict=True)
        if any(mine.get(step) != other.get(step) for step in range(strike.step, min(end, last)))
    ]


def rows_of(strikes: list[Strike], unequal: list[Strike]) -> Iterator[tuple[Any, ...]]:
    """A line for each kind."""
    for kind in CAUSES:
        mine = [strike for strike in strikes if strike.kind == kind]
        if mine:
            named, trained = ([v for s in mine if (v := getattr(s, what)) is not None] for what in ("named", "trained"))
            steps = [s.steps_to_name for s in mine if s.steps_to_name is not None]
            yield (
                kind, f"{sum(s.right for s in mine)} of {len(mine)}", spread_of(named), f"{max(steps)}" if steps else "-",
                spread_of(trained), f"{sum(s.redone for s in mine)} / {sum(s.lost for s in mine)}",
                f"{len(mine) - sum(s in unequal for s in mine)} of {len(mine)}",
            )  # fmt: skip


def spread_of(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}, {max(values):.2f}" if values else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CAUSES), help="kinds, separated by commas")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=4, choices=tuple(MESHES))
    parser.add_argument("--size", default="nano", choices=("nano", "tiny"))
    parser.add_argument("--minutes", type=float, default=25.0, help="no more strikes after this time")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, help="a folder for everything that the jobs write")
    given = parser.parse_args()
    kinds = given.only.split(",")
    if unknown := set(kinds) - set(CAUSES):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; there are {', '.join(CAUSES)}")
    draw, load = random.Random(given.seed), os.getloadavg()[0]
    plan = [kind for kind in kinds for _ in range(given.repeats)]
    draw.shuffle(plan)
    folder = given.keep or Path(tempfile.mkdtemp(prefix="bench-repeats-"))
    spec = make_job(folder, "struck", given.size, given.ranks, 1, "matmul" in kinds)
    striker = Striker(spec, plan, draw, given.minutes)
    striker.start()
    with contextlib.suppress(Enough):
        run_job(spec, striker.on_event)
    striker.join()
    if striker.problem:
        raise SystemExit(f"the job did not go on, {spec.folder}: {striker.problem}")
    twin = make_job(folder, "twin", given.size, given.ranks, 0, "matmul" in kinds)
    twins, alarms = run_twin(twin, striker.last)
    paths = [Path(one.folder).parent / "checkpoint" / f"step-{striker.last}" for one in (spec, twin)]
    equal = same_bits(paths[0], paths[1], load_job(Path(spec.command[-1])))
    unequal = unequal_after(striker.done, striker.history, twins, striker.last)
    rows = list(rows_of(striker.done, unequal))
    rows.append((f"weights after all, step {striker.last}", "equal to the twin's" if equal else "DIFFERENT", *("-",) * 5))
    rows.append(("false alarms in the untouched twin", len(alarms), *("-",) * 5))
    figures: dict[str, Any] = {
        "seed": given.seed, "ranks": given.ranks, "size": given.size, "load_before": load, "strikes": len(striker.done),
        "planned": len(plan), "right": sum(strike.right for strike in striker.done), "twin_equal": equal,
        "twin_false_alarms": len(alarms), "steps": striker.last,
        "results": [vars(strike) for strike in striker.done],
    }  # fmt: skip
    columns = (
        "strike", "named right", "s to name (median, worst)", "steps to name, worst", "s to training", "steps redone / lost",
        "losses as the twin's",
    )  # fmt: skip
    publish("repeats", rows, figures, columns)
    if not given.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
