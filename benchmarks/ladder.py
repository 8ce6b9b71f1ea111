"""`python -m benchmarks.ladder`: every rung of the guard's ladder on real ranks (FSDP2 x expert parallel over gloo).

Each scenario is a whole job of four or six ranks on two or three simulated hosts that trains a very small decoder on made
tokens; ranks are struck by signals, hosts by the death of their agent or, as root, by a bridge that drops packets. What must
come of it stands beside it: the cause and the place named, the number of ranks at the end, committed steps lost, and the
weights: the same bits as a faultless twin's, or, where ranks became fewer, how far they are from it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from benchmarks.guard import made_tokens
from benchmarks.observing import places_of
from benchmarks.report import publish
from ninthsky.errors import UserError
from ninthsky.guard.drill import drill_job
from ninthsky.guard.faults import read_faults
from ninthsky.guard.job import HostSpec, JobResult, JobSpec, Watch, run_job
from ninthsky.model.decoder import Decoder
from ninthsky.model.shape import Shape
from ninthsky.run.folder import read_lines
from ninthsky.train.control.helm import read_program
from ninthsky.train.cut.fewer import fewer
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.inject import Fault
from ninthsky.train.job import TrainJob
from ninthsky.train.state.checkpoint import load_weights
from ninthsky.train.step.recipe import Recipe
from tests.guard.test_partition import Network

VOCAB, SEQUENCE, BATCH, STEPS, AT = 64, 16, 12, 40, 12
SHAPE = Shape(vocab=VOCAB, layers=2, dim=24, heads=2, kv_heads=1, experts=4, experts_per_token=2, expert_dim=24, dense_dim=48)
MESHES = {4: Mesh(dp_shard=4, ep=2), 6: Mesh(dp_replicate=3, dp_shard=2, ep=2)}
BREAKS = "groups that break three times in one step: all processes replaced (simulated ranks)"
Event = dict[str, Any]


@dataclass
class Scene:
    """A job under way, as a strike sees it."""

    spec: JobSpec
    network: Network | None
    events: list[Event] = field(default_factory=list)

    def kill(self, *ranks: int) -> None:
        places = places_of(self.spec)
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(places[rank][2], signal.SIGKILL)

    def kill_host(self, *hosts: int) -> None:
        """Its agent; all its ranks end with it."""
        for host in hosts:
            os.kill(int((self.spec.memory_folder(f"host-{host}") / "agent.pid").read_text().split()[0]), signal.SIGKILL)

    def fill_disk(self) -> None:
        with suppress(OSError), (Path(self.spec.folder).parent / "train" / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))

    def cut(self, host: int, passing: bool = False) -> None:
        assert self.network is not None
        self.network.pass_packets(host, passing)


@dataclass(frozen=True)
class Scenario:
    """`strikes`: (kind of event, how many of them have come, what is done), each once; "step" n comes after step n x AT.
    `cost`: most committed steps that may be lost. `page`: words of the reason that the job stops with."""

    name: str
    hosts: tuple[tuple[int, int], ...]  # (slots, spares)
    strikes: tuple[tuple[str, int, Callable[[Scene], None]], ...]
    named: tuple[tuple[str, str], ...]  # (cause, host or card) of each fault, in any order
    ranks: int  # that finish
    steps: int = STEPS
    faults: tuple[Fault, ...] = ()
    cost: int = 0
    changed: bool = False  # the number of ranks: then the weights are the twin's but for the order of sums
    page: str = ""
    refused: str = ""  # host that is refused when it returns
    network: bool = False
    disk: bool = False  # the job's folder is a small file system of its own
    watch: tuple[tuple[str, float], ...] = ()


TWO, TIGHT, BARE = ((2, 1), (2, 1)), ((2, 0), (2, 1)), ((2, 0), (2, 0))
CARDS = (("card_failures", 1),)

SCENARIOS = (
    Scenario("two killed at once, on two hosts", TWO, (("step", 1, lambda s: s.kill(0, 3)),),
             (("exit", "host-0/0"), ("exit", "host-1/1")), 4),
    Scenario("two killed at once, on one host", TWO, (("step", 1, lambda s: s.kill(2, 3)),),
             (("exit", "host-1/0"), ("exit", "host-1/1")), 4),
    Scenario("bad spare: it dies as it is assigned", TWO,
             (("step", 1, lambda s: s.kill(2)), ("formed", 2, lambda s: s.kill(2))),
             (("exit", "host-1/0"), ("exit", "host-1/2")), 4),
    Scenario("bad spare: its card computes NaN", TWO, (("step", 1, lambda s: s.kill(2)),),
             (("exit", "host-1/0"), ("nonfinite", "host-1/2")), 4,
             faults=tuple(Fault(n, "nan", 2, 25, n) for n in range(3))),
    Scenario("a survivor killed during the repair", TWO,
             (("step", 1, lambda s: s.kill(2)), ("generation", 2, lambda s: s.kill(1))),
             (("exit", "host-1/0"), ("exit", "host-0/1")), 4),
    Scenario("a whole host lost, spares on the other", ((2, 2), (2, 2)), (("step", 1, lambda s: s.kill_host(1)),),
             (("host", "host-1"),), 4),
    Scenario("a host cut off by dropped packets, then back", ((2, 2), (2, 2)),
             (("step", 1, lambda s: s.cut(1)), ("fault.repaired", 1, lambda s: s.cut(1, True))),
             (("host", "host-1"),), 4, refused="host-1", network=True),
    Scenario("the same, no spares: shrunk", BARE,
             (("step", 1, lambda s: s.cut(1)), ("fault.repaired", 1, lambda s: s.cut(1, True))),
             (("host", "host-1"),), 2, refused="host-1", network=True, changed=True),
    Scenario("the last spare used, then another card", TIGHT,
             (("step", 1, lambda s: s.kill(2)), ("fault.repaired", 1, lambda s: s.kill(0))),
             (("exit", "host-1/0"), ("exit", "host-0/0")), 3, watch=CARDS, changed=True),
    Scenario("shrunk twice: two of three hosts lost in turn", ((2, 0), (2, 0), (2, 0)),
             (("step", 1, lambda s: s.kill_host(1)), ("step", 2, lambda s: s.kill_host(2))),
             (("host", "host-1"), ("host", "host-2")), 2, changed=True),
    Scenario("the second host within a step of the first one's repair", ((2, 0), (2, 0), (2, 0)),
             (("step", 1, lambda s: s.kill_host(1)), ("fault.repaired", 1, lambda s: s.kill_host(2))),
             (("host", "host-1"), ("host", "host-2")), 2, changed=True),
    Scenario("the second host before the first one's repair has made a step", ((2, 0), (2, 0), (2, 0)),
             (("step", 1, lambda s: s.kill_host(1)), ("state.double", 1, lambda s: s.kill_host(2))),
             (("host", "host-1"), ("host", "host-2")), 2, changed=True),
    Scenario("two hosts at once that held each other's copies: to the disk", ((2, 0), (2, 0), (2, 0)),
             (("step", 1, lambda s: s.kill_host(1, 2)),), (("host", "host-1, host-2"),), 2, cost=10, changed=True),
    Scenario("shrunk for want of a process, grown when it is back", BARE, (("step", 1, lambda s: s.kill(2)),),
             (("exit", "host-1/0"),), 4, watch=(("spare_seconds", 0.0), ("grow_seconds", 1.0)), steps=1000, changed=True),
    Scenario("no mesh left: a person is paged", ((1, 0), (1, 0)), (("step", 1, lambda s: s.kill_host(1)),),
             (("host", "host-1"),), 0, page="too few cards are left"),
    Scenario("no host left: a person is paged", BARE, (("step", 1, lambda s: s.kill_host(0, 1)),), (), 0,
             page="every agent ended"),
    Scenario("a full disk: nothing is started again", TWO, (("step", 1, lambda s: s.fill_disk()),),
             (("exit", "host-0/0"),), 0, page="no space left", disk=True),
    Scenario("bad samples: the step is skipped, the twin is told", TWO, (), (("nonfinite", "host-0/1"),), 4,
             faults=(Fault(0, "nan", 1, AT, 0), Fault(1, "nan", 1, AT, 1), Fault(2, "nan", 0, AT, 2))),
)  # fmt: skip


@dataclass
class Outcome:
    """What one run of a scenario came to. `apart`: largest difference of a weight from the twin's, 0.0 for the same bits."""

    problems: list[str]
    apart: float | None = None
    lost: int = 0
    seconds: float | None = None  # from the first fault's beginning to the last repair
    rungs: str = ""


class Striker(threading.Thread):
    """Follows the job's files, and strikes when what a strike waits for is written there."""

    def __init__(self, scene: Scene, scenario: Scenario) -> None:
        super().__init__(daemon=True)
        self.scene, self.waiting, self.over = scene, list(scenario.strikes), threading.Event()

    def run(self) -> None:
        folder = Path(self.scene.spec.folder)
        history = folder.parent / "train" / "history.jsonl"
        while not self.over.wait(0.002) and self.waiting:
            kind, count, act = self.waiting[0]
            if kind == "step":
                come = max((line["step"] for line in read_lines(history)), default=-1) >= AT * count
            else:
                come = sum(event["kind"] == kind for event in read_lines(folder / "events.jsonl")) >= count
            if come:
                self.waiting.pop(0)
                act(self.scene)


def train_job(folder: Path, world: int, optimizer: str, **changes: Any) -> TrainJob:
    mesh = MESHES.get(world, Mesh(dp_shard=world))
    recipe = Recipe(optimizer=optimizer, lr=0.1 if optimizer == "sgd" else 3e-3)  # type: ignore[arg-type]
    given: dict[str, Any] = {
        "shape": SHAPE, "recipe": recipe, "mesh": mesh, "fewer": fewer(mesh, SHAPE, SEQUENCE, BATCH, 1, 2),
        "tokens": str(folder.parent / "tokens"), "folder": str(folder / "train"), "steps": STEPS, "sequence": SEQUENCE,
        "batch": BATCH, "seed": 3, "checkpoint_every": 10, "export": False, "events": str(folder / "train-events.jsonl"),
    }  # fmt: skip
    return TrainJob(**{**given, **changes})


def job_spec(folder: Path, job: TrainJob, hosts: list[HostSpec], **watch: Any) -> JobSpec:
    return JobSpec(
        run_id=f"ladder-{os.getpid()}-{folder.name}", folder=str(folder / "guard"),
        command=[sys.executable, "-m", "ninthsky.train.rank.elastic", str(job.save(folder / "train.json"))],
        world=job.mesh.ranks, worlds=[mesh.ranks for mesh in job.fewer], hosts=hosts, env={"OMP_NUM_THREADS": "1"},
        # Nobody is slowed here, and on a machine that others share many would be: that judge has its own benchmark.
        watch=Watch(**{"action": "act", "selftest": "off", "kernel_log": "off", "slow_ratio": 20.0, **watch}),
    )  # fmt: skip


class Twins:
    """Faultless jobs, one for each world and optimizer: digest and folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[tuple[int, str, int], tuple[str, Path]] = {}

    def of(self, world: int, optimizer: str, steps: int, **changes: Any) -> tuple[str, Path]:
        key = (world, optimizer, steps)
        if changes or key not in self.done:
            folder = self.folder / f"twin-{world}-{optimizer}-{steps}{'-told' if changes else ''}"
            (folder / "train").mkdir(parents=True, exist_ok=True)
            job = train_job(folder, world, optimizer, steps=steps, **changes)
            result = run_job(job_spec(folder, job, [HostSpec(name="host-0", slots=world, spares=0)]))
            found = (str(result.results[0]["digest"]), folder / "train")
            if changes:
                return found
            self.done[key] = found
        return self.done[key]


def apart(ours: Path, theirs: Path, steps: int) -> float:
    """Largest difference of a weight between the last checkpoints of two jobs."""
    models = [Decoder(SHAPE, seed=None) for _ in range(2)]
    for model, folder in zip(models, (ours, theirs), strict=True):
        load_weights(model, folder / "checkpoint" / f"step-{steps}")
    pairs = zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True)
    return max(float((mine - twins).abs().max()) for mine, twins in pairs)


def play(scenario: Scenario, optimizer: str, twins: Twins, number: int) -> Outcome:
    """One run of it."""
    folder = twins.folder / f"run-{number}"
    (folder / "train").mkdir(parents=True)
    world = sum(slots for slots, _ in scenario.hosts)
    job = train_job(folder, world, optimizer, steps=scenario.steps, faults=list(scenario.faults))
    network = Network() if scenario.network else None
    hosts = [HostSpec(name=f"host-{n}", slots=slots, spares=spares) for n, (slots, spares) in enumerate(scenario.hosts)]
    watch: dict[str, Any] = dict(scenario.watch)
    if scenario.disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder / "train")], check=True)
    try:
        if network is not None:
            network.__enter__()
            hosts = [
                msgspec.structs.replace(host, address=network.address(n), launch=("ip", "netns", "exec", network.names[n]))
                for n, host in enumerate(hosts)
            ]
            watch["bind"] = f"{network.subnet}.1"
        scene = Scene(job_spec(folder, job, hosts, **watch), network)
        return _judge(scenario, scene, world, optimizer, twins)
    finally:
        if network is not None:
            network.__exit__()
        if scenario.disk:
            subprocess.run(["umount", str(folder / "train")], check=True)


def _judge(scenario: Scenario, scene: Scene, world: int, optimizer: str, twins: Twins) -> Outcome:
    striker = Striker(scene, scenario)
    striker.start()
    result: JobResult | None = None
    reason = ""
    try:
        result = run_job(scene.spec, scene.events.append)
    except UserError as error:
        reason = str(error)
    finally:
        striker.over.set()
        striker.join()
    faults = read_faults(Path(scene.spec.folder) / "faults")
    outcome = Outcome([], lost=sum(fault.committed_steps_lost for fault in faults))
    outcome.rungs = " | ".join(fault.evidence.remedy for fault in faults)
    found = sorted((fault.cause, fault.card or fault.host) for fault in faults)
    if found != sorted(scenario.named):
        outcome.problems.append(f"named {found}")
    if striker.waiting:
        outcome.problems.append(f"{len(striker.waiting)} strikes never came")
    if scenario.page:
        if scenario.page not in reason.lower():
            outcome.problems.append(f"not paged with those words: {reason[:200] or 'it went on'}")
        return outcome
    if result is None:
        outcome.problems.append(reason[:300])
        return outcome
    if len(result.results) != scenario.ranks:
        outcome.problems.append(f"{len(result.results)} ranks finished")
    if outcome.lost > scenario.cost:
        outcome.problems.append(f"{outcome.lost} committed steps lost")
    if any(fault.state != "repaired" for fault in faults):
        outcome.problems.append(f"states {[fault.state for fault in faults]}")
    refused = {event["host"] for event in scene.events if event["kind"] == "host.refused"}
    if scenario.refused and refused != {scenario.refused}:
        outcome.problems.append(f"refused were {refused or 'none'}")
    ends = [fault.timeline.trained for fault in faults if fault.timeline.trained is not None]
    begins = [fault.timeline.began for fault in faults if fault.timeline.began is not None]
    outcome.seconds = max(ends) - min(begins) if ends and begins else None
    ours = Path(scene.spec.folder).parent / "train"
    program = read_program(ours)
    digest, theirs = twins.of(world, optimizer, scenario.steps, **({} if program.empty else {"program": program}))
    digests = {said["digest"] for said in result.results.values()}
    if len(digests) != 1:
        outcome.problems.append("ranks ended with different weights")
    outcome.apart = 0.0 if digests == {digest} else apart(ours, theirs, scenario.steps)
    if outcome.apart and not scenario.changed:
        outcome.problems.append("other bits than the twin's")
    return outcome


def break_groups(folder: Path) -> Outcome:
    """A rank of a simulated job lets go of its group three times in one step, and every process lives: rebuilt, rebuilt, all
    processes replaced. The twin is the same job left alone."""
    digests = []
    faults: list[Any] = []
    for name, breaks in (("alone", 0), ("broken", 3)):
        spec = drill_job(folder / f"{name}-{len(list(folder.glob('*')))}", 2, [], 100.0)
        plan = json.loads(spec.env["N9_SIMULATED"]) | {"inject": [{"kind": "break", "rank": 1, "step": AT}] * breaks}
        result = run_job(msgspec.structs.replace(spec, env={"N9_SIMULATED": json.dumps(plan)}))
        digests.append({said["digest"] for said in result.results.values()})
        faults = result.faults
    rungs = " | ".join(fault.evidence.remedy for fault in faults)
    wanted = [("unknown", "repaired")] * 3
    problems = [] if [(fault.cause, fault.state) for fault in faults] == wanted else [f"named {faults}"]
    problems += [] if "every rank's process replaced" in rungs else ["no restart of all"]
    problems += [] if digests[0] == digests[1] and len(digests[0]) == 1 else ["other bits than the twin's"]
    lost = sum(fault.committed_steps_lost for fault in faults)
    return Outcome(problems + ([f"{lost} committed steps lost"] if lost else []), 0.0, lost, None, rungs)


def row_of(name: str, outcomes: list[Outcome]) -> list[Any]:
    """A scenario's line in the table."""
    good = sum(not outcome.problems for outcome in outcomes)
    seconds = [outcome.seconds for outcome in outcomes if outcome.seconds is not None]
    distances = [outcome.apart for outcome in outcomes if outcome.apart is not None]
    weights = "" if not distances else "the twin's bits" if not max(distances) else f"at most {max(distances):.1e} apart"
    took = f"{median(seconds):.2f} s, worst {max(seconds):.2f}" if seconds else ""
    return [name, f"{good} of {len(outcomes)}", weights, max(outcome.lost for outcome in outcomes), took]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[""], help="scenarios with any of these words in their name")
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "sgd"], help="the others where ranks become fewer")
    parser.add_argument("--keep", type=Path, help="a folder for everything that the jobs wrote")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="bench-ladder-"))
    made_tokens(folder / "tokens", VOCAB, 20_000)
    twins = Twins(folder)
    rows: list[list[Any]] = []
    number = good_in_all = played = 0
    worst = {"sgd": 0.0, "adamw": 0.0}
    for scenario in SCENARIOS:
        if not any(words in scenario.name for words in arguments.only):
            continue
        if (scenario.network or scenario.disk) and os.geteuid() != 0:
            rows.append([scenario.name, "not run: needs root", "", "", ""])
            continue
        outcomes: list[Outcome] = []
        for optimizer in arguments.optimizers if scenario.changed else arguments.optimizers[:1]:
            for _ in range(arguments.repeats):
                number += 1
                outcome = play(scenario, optimizer, twins, number)
                outcomes.append(outcome)
                if outcome.apart:
                    worst[optimizer] = max(worst[optimizer], outcome.apart)
                told = f"{outcome.problems or 'as it must'}, {outcome.apart} apart"
                print(f"{scenario.name} ({optimizer}): {told}; {outcome.rungs}", flush=True)
        good_in_all, played = good_in_all + sum(not o.problems for o in outcomes), played + len(outcomes)
        rows.append(row_of(scenario.name, outcomes))
    if any(words in BREAKS for words in arguments.only):
        outcomes = [break_groups(folder) for _ in range(arguments.repeats)]
        print(f"{BREAKS}: {[outcome.problems for outcome in outcomes]}; {outcomes[0].rungs}", flush=True)
        good_in_all, played = good_in_all + sum(not o.problems for o in outcomes), played + len(outcomes)
        rows.append(row_of(BREAKS, outcomes))
    figures = {
        "ladder_right": good_in_all, "ladder_n": played, "apart_adamw": worst["adamw"], "apart_sgd": worst["sgd"],
        "steps": STEPS, "repeats": arguments.repeats,
    }  # fmt: skip
    publish("ladder", rows, figures, ("scenario", "as it must", "weights", "committed steps lost", "to the last repair"))
    if not arguments.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
