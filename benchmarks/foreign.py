"""`python -m benchmarks.foreign`: scripts that know nothing of us under `n9 guard run`, struck from outside.

Each script of tests/guard/foreign/scripts runs once undisturbed and without us, then once for each fault with `--act`: is the
right rank named, how soon, does the script go on from its own checkpoint, and are its final weights those of the undisturbed
run? A slow rank is only told. Then what the probe costs: seconds per collective, in turns with the same group unwrapped, and
the guard's share of all processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import publish
from ninthsky.guard.faults import Fault, read_faults
from ninthsky.guard.foreign.command import INJECT
from ninthsky.guard.probe.record import parse
from ninthsky.run.folder import read_lines

SCRIPTS = Path(__file__).parents[1] / "tests" / "guard" / "foreign" / "scripts"
STRIKER = SCRIPTS.parent / "striker"
NAMES = {"ddp": "plain DDP", "fsdp2": "FSDP2", "accelerated": "Accelerate", "trainer": "Hugging Face Trainer"}
CAUSES = {"kill": "exit", "freeze": "frozen", "nan": "nonfinite", "slow": "slow"}
LIMIT = 300.0  # seconds for one run
BIN = Path(sys.executable).parent


@dataclass
class Outcome:
    """One run under guard: `struck` in Unix seconds."""

    fault: str
    rank: int
    status: int
    struck: float
    faults: list[Fault]
    events: list[dict[str, Any]] = field(default_factory=list)
    equal: bool = False

    @property
    def right(self) -> bool:
        """One fault, of the right kind, on the right rank."""
        return [(fault.cause, fault.rank) for fault in self.faults] == [(CAUSES[self.fault], self.rank)]

    @property
    def named(self) -> float:
        """Seconds from the strike; NaN where nothing was named."""
        at = self.faults[0].timeline.named if self.faults else None
        return at - self.struck if at else float("nan")

    @property
    def trained(self) -> float:
        at = self.faults[0].timeline.trained if self.faults else None
        return at - self.struck if at else float("nan")

    @property
    def resumed(self) -> int:
        """Steps done before the last start went on."""
        return max((event["resume_step"] + 1 for event in self.events if event["kind"] == "joined"), default=-1)


def launch(script: str, ranks: int, out: Path, steps: int) -> list[str]:
    arguments = ["--out", str(out), "--steps", str(steps)]
    path = str(SCRIPTS / f"{script}.py")
    return [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", str(ranks), path, *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **more}


def alone(command: list[str], **more: str) -> str:
    """Runs a command to its end -> what it printed. Where it fails the benchmark ends, with what it said."""
    done = subprocess.run(command, env=environment(**more), capture_output=True, timeout=LIMIT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ends with {done.returncode}:\n{done.stderr.decode(errors='replace')[-4000:]}")
    return done.stdout.decode()


def undisturbed(script: str, ranks: int, folder: Path, steps: int) -> None:
    """Without us, in a folder of that name."""
    out = folder / "undisturbed"
    out.mkdir()
    alone(launch(script, ranks, out, steps))


def struck(script: str, ranks: int, folder: Path, steps: int, fault: str, rng: random.Random) -> Outcome:
    """Under guard, with one fault."""
    out, job, rank = folder / fault, folder / f"job-{fault}-{os.getpid()}", rng.randrange(ranks)
    out.mkdir()
    inner = {"nan": f"nan:{rank}:{steps // 2 + 3}", "slow": f"slow:{rank}:5"}.get(fault)
    more = {"STRIKE": inner, "PYTHONPATH": str(STRIKER)} if inner else {}
    act = [] if fault == "slow" else ["--act"]
    command = [str(BIN / "n9"), "guard", "run", "--job", str(job), *act, "--", *launch(script, ranks, out, steps)]
    with (folder / f"{fault}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(**more), stdout=log, stderr=log)
        at, deadline = 0.0, time.monotonic() + LIMIT
        try:
            while process.poll() is None and time.monotonic() < deadline:
                pid, step = where(job.name, rank)
                if inner and step >= (steps // 2 + 2 if fault == "nan" else 5):
                    at = at or time.time()
                if not inner and not at and step >= steps // 2 + rng.randrange(5):
                    at = time.time()
                    os.kill(pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
                time.sleep(0.02)
            process.wait(max(1.0, deadline - time.monotonic()))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    events = list(read_lines(job / "events.jsonl"))
    return Outcome(fault, rank, process.returncode, at, read_faults(job / "faults"), events)


def where(job: str, rank: int) -> tuple[int, int]:
    """Process and step of a rank, as its record has them; (-1, -1) before there is one."""
    for path in Path("/dev/shm").glob(f"n9-{job[:24]}-*/*.record"):
        try:
            record = parse(path.read_bytes())
        except OSError:
            continue
        if record is not None and record.rank == rank:
            return int(path.stem), record.step
    return -1, -1


def resumed_without_us(script: str, ranks: int, folder: Path, steps: int, at: int) -> Path:
    """The undisturbed run again from its checkpoint at step `at`: some scripts' own resume does not give the same bits."""
    out = folder / "undisturbed"
    (out / "newest").write_text(str(at))
    alone(launch(script, ranks, out, steps))
    return out / "final.pt"


def equal(one: Path, other: Path) -> bool:
    """Whether two files of weights hold the same bits."""
    if not (one.exists() and other.exists()):
        return False
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def verdict(script: str, ranks: int, folder: Path, steps: int, outcome: Outcome) -> str:
    """What became of the weights."""
    final, undisturbed_ = folder / outcome.fault / "final.pt", folder / "undisturbed" / "final.pt"
    if equal(final, undisturbed_):
        return "equal"
    if outcome.resumed > 0 and (folder / "undisturbed" / "newest").exists():
        kept = undisturbed_.rename(undisturbed_.with_name("kept.pt"))
        same = equal(final, resumed_without_us(script, ranks, folder, steps, outcome.resumed))
        kept.rename(undisturbed_)
        if same:
            return "equal to its own resume"
    return "DIFFERENT"


COST = """
import json, statistics, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
group, x = dist.group.WORLD, torch.ones(256)
def turn(g, n=200):
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(n):
        g.allreduce([x]).wait()
    return (time.perf_counter() - wall) / n * 1e6, (time.thread_time() - cpu) / n * 1e6
turns = [(turn(group), turn(group.inner)) for _ in range(30)]
if dist.get_rank() == 0:
    cost = [[a[i] - b[i] for a, b in turns] for i in (0, 1)]
    plain = [b[0] for _, b in turns]
    print(json.dumps([statistics.median(cost[0]), statistics.median(cost[1]), statistics.median(plain)]))
dist.destroy_process_group()
"""


def per_collective(folder: Path) -> tuple[float, float, float]:
    """Microseconds that the probe adds to an all-reduce of 1 kB between two ranks, wall and processor; then what it takes."""
    script = folder / "cost.py"
    script.write_text(COST)
    command = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", str(script)]
    more = {"N9_RANKS": str(folder), "N9_SOURCE": str(INJECT.parents[3]), "PYTHONPATH": str(INJECT)}
    wall, cpu, plain = json.loads(alone(command, **more).strip().splitlines()[-1])
    return wall, cpu, plain


def guard_share(ranks: int, folder: Path) -> float:
    """The guard's share of all processor time of an undisturbed run that is longer than its start."""
    out, job = folder / "share", folder / "share-job"
    out.mkdir()
    command = [str(BIN / "n9"), "guard", "run", "--job", str(job), "--", *launch("ddp", ranks, out, 600)]
    alone(command)
    result = json.loads((job / "result.json").read_text())
    return float(result["guard_cpu_seconds"] / (result["guard_cpu_seconds"] + result["command_cpu_seconds"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scripts", nargs="*", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--faults", nargs="*", default=list(CAUSES), choices=list(CAUSES))
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder that takes the logs")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    rows: list[tuple[Any, ...]] = []
    figures: dict[str, Any] = {"load_before": os.getloadavg()[0], "seed": arguments.seed}
    right = total = same = restarted = 0
    for script in arguments.scripts:
        folder = Path(tempfile.mkdtemp(prefix="n9-foreign-"))
        undisturbed(script, arguments.ranks, folder, arguments.steps)
        for fault in arguments.faults:
            outcome = struck(script, arguments.ranks, folder, arguments.steps, fault, rng)
            weights = verdict(script, arguments.ranks, folder, arguments.steps, outcome)
            outcome.equal = weights != "DIFFERENT"
            total, right = total + 1, right + outcome.right
            acted = fault != "slow"
            restarted, same = restarted + acted, same + (acted and outcome.equal)
            figures[f"{script}_{fault}_named_s"] = outcome.named
            if acted:
                figures[f"{script}_{fault}_trained_s"] = outcome.trained
            redone = outcome.faults[0].steps_redone if outcome.faults else "-"
            back = f"step {outcome.resumed}, {redone} redone, after {outcome.trained:.1f} s" if acted else "only told"
            rows.append(
                (f"{NAMES[script]}, {fault} of rank {outcome.rank}", "right" if outcome.right else "WRONG",
                 f"{outcome.named:.2f} s", back, weights, outcome.status)
            )  # fmt: skip
            print(rows[-1], flush=True)
        if arguments.keep:
            shutil.copytree(folder, arguments.keep / script, dirs_exist_ok=True)
        shutil.rmtree(folder)
    folder = Path(tempfile.mkdtemp(prefix="n9-foreign-"))
    wall, cpu, plain = per_collective(folder)
    share = guard_share(arguments.ranks, folder)
    shutil.rmtree(folder)
    rows.append(
        ("probe's cost of an all-reduce of 1 kB", f"{wall:.1f} us wall", f"{cpu:.1f} us cpu", f"of {plain:.0f} us", "", "")
    )
    rows.append(("guard's share of processor time, 600 steps", f"{100 * share:.2f} %", "", "", "", ""))
    figures |= {
        "right": right, "runs": total, "restarts": restarted, "equal_after_restart": same,
        "collective_wall_us": wall, "collective_cpu_us": cpu, "collective_plain_us": plain, "guard_share": share,
    }  # fmt: skip
    publish(
        "foreign", rows, figures, ("script and fault", "named", "after", "goes on from its own checkpoint", "weights", "status")
    )


if __name__ == "__main__":
    main()
