"""`python -m benchmarks.state`: what keeps a run's state, attacked, moved, and paid for.

- 200 attacks on checkpoints and 200 on replicas: none is loaded as good, the newest good one is found.
- A run that moves over 4, 2, 3 and 8 real ranks beside one that does not.
- A rank killed under each cut (sharded, repeated, expert-, pipeline-, tensor- and context-parallel), beside the faultless twin.
- What a save costs the training in its foreground: waited for, and written beside it.
- What replicas cost: processor seconds of ranks and agents over those of the steps, in whole guarded jobs, with and without in
  turn; and the smallest k at which that is within 3 %.

Processor seconds, since the machine is shared; wall times stand beside them and are noise here.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import math
import multiprocessing as mp
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist

from benchmarks import journey
from benchmarks.attack import attack
from benchmarks.guard import make_job
from benchmarks.journey import SGD, Leg
from benchmarks.report import median_interval, publish
from ninthsky.guard.job import Injected, JobSpec, run_job
from ninthsky.model import Decoder, Shape
from ninthsky.run.folder import read_lines
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.inject import Fault
from ninthsky.train.job import load_job
from ninthsky.train.state import checkpoint, shards
from ninthsky.train.step.loop import Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss

ROAD = [
    Leg(Mesh(dp_shard=4, ep=2), range(0, 5)),
    Leg(Mesh(dp_shard=2, ep=2), range(5, 10)),
    Leg(Mesh(dp_shard=3, ep=3), range(10, 15)),
    Leg(Mesh(dp_replicate=2, dp_shard=4, ep=2), range(15, 20)),
]
SAVED = Shape(2048, 6, 256, 4, 2, 8, 2, 256, dense_layers=1, dense_dim=768)
CUTS = [
    ("ep", Mesh(dp_shard=4, ep=2), 1),
    ("replicate", Mesh(dp_replicate=2, dp_shard=2), 1),
    ("pp", Mesh(pp=2, dp_shard=2), 2),
    ("tp", Mesh(tp=2, dp_shard=2), 1),
    ("cp", Mesh(cp=2, dp_shard=2), 1),
]
LIMIT = 0.03  # share of a step that replicas may cost

Figures = dict[str, Any]
Rows = list[tuple[Any, ...]]


def attacked(folder: Path, attacks: int) -> tuple[Figures, Rows]:
    """Checkpoints of two ranks, damaged at random; each time a real restore says what it took."""
    legs = [Leg(Mesh(dp_shard=2, ep=2), range(step, step + 1)) for step in range(2)]
    _, choices = journey.alone(SGD)
    source = journey.fresh(folder)
    _on_ranks(2, source, legs, choices)
    checkpoints = source / "checkpoint"
    fresh = Trainer(Decoder(journey.SHAPE, seed=9), next_token_loss, SGD, 20)
    for step in (3, 4):  # two more, by one process
        checkpoint.restore(fresh, checkpoints)
        journey.one_step(fresh, journey.Trace(), 0, 1)
        checkpoint.save(fresh, checkpoints, keep=step)
    digests = {}
    for path in checkpoint.checkpoints(checkpoints):
        checkpoint.restore(fresh, checkpoints, lambda step, name=path.name: f"step-{step}" == name)  # type: ignore[misc]
        digests[path.name] = fresh.digest()
    chance, wrong, missed, kinds = random.Random(1), 0, 0, set()
    for number in range(attacks):
        victim = folder / f"attacked-{number}"
        shutil.copytree(checkpoints, victim)
        damaged = attack(victim, chance)
        kinds |= set(damaged.values())
        restored = checkpoint.restore(fresh, victim)
        name = restored.path.name if restored.path else ""
        wrong += name in damaged or digests.get(name) != fresh.digest()
        missed += name != max((name for name in digests if name not in damaged), key=lambda name: int(name[5:]))
        shutil.rmtree(victim)
    bad_shards = sum(_shard_survives(folder, chance) for _ in range(attacks))
    figures = {
        "attacks": attacks,
        "attack_loaded_bad": wrong,
        "attack_newest_good_missed": missed,
        "replica_attacks_loaded_bad": bad_shards,
    }
    rows: Rows = [
        (f"{attacks} attacks of {len(kinds)} kinds on checkpoints: bad one loaded", wrong, "newest good one missed", missed),
        (f"{attacks} attacks on replicas: bad one loaded", bad_shards, "", ""),
    ]
    return figures, rows


def _shard_survives(folder: Path, chance: random.Random) -> bool:
    """Whether a damaged replica is read as good."""
    state = {"weight": torch.arange(chance.randrange(1, 200), dtype=torch.float32), "step": torch.tensor(3)}
    path = shards.write(folder, 0, 3, state, {"control": {"lowered": 1}}).path
    raw = bytearray(path.read_bytes())
    kind = chance.choice(["cut", "flip", "zero", "longer", "another's"])
    if kind == "cut":
        raw = raw[: chance.randrange(len(raw))]
    elif kind == "flip":
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    elif kind == "zero":
        raw[-24:] = bytes(24)
    elif kind == "longer":
        raw += b"\0"
    else:
        raw = bytearray(shards.write(folder, 1, 3, state, {}).path.read_bytes())
    path.write_bytes(raw)
    try:
        shards.read(folder, 0, 3)
    except shards.ShardError:
        return False
    return True


def moved(folder: Path) -> tuple[Figures, Rows]:
    """4 -> 2 -> 3 -> 8 ranks, under SGD and under AdamW, router choices pinned."""
    figures: Figures = {}
    rows: Rows = []
    for name, recipe in (("sgd", SGD), ("adamw", Recipe())):
        alone, choices = journey.alone(recipe)
        traces = _on_ranks(8, journey.fresh(folder), ROAD, choices, recipe)
        same = journey.batches(traces) == journey.batches([alone])
        weights, loss = journey.furthest(traces[0], alone)
        figures |= {f"elastic_{name}_weights": weights, f"elastic_{name}_loss": loss, f"elastic_{name}_batches_equal": same}
        rows.append((f"4 -> 2 -> 3 -> 8 ranks, {name}: largest difference of a weight", weights, "of a loss", loss))
        rows.append(("  global batches, sample by sample", "the same" if same else "DIFFERENT", "of 20 steps", ""))
    return figures, rows


def _on_ranks(world: int, folder: Path, legs: list[Leg], choices: Any, recipe: Recipe = SGD) -> list[journey.Trace]:
    context = mp.get_context("fork")
    ends = []
    for rank in range(world):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(rank, folder, legs, recipe, choices, there), daemon=True)
        process.start()
        there.close()
        ends.append((here, process))
    traces = [here.recv() for here, _ in ends]
    for _, process in ends:
        process.join()
    return traces


def _rank(rank: int, folder: Path, legs: list[Leg], recipe: Recipe, choices: Any, end: Any) -> None:
    torch.set_num_threads(1)
    end.send(journey.travel(rank, folder, legs, recipe, choices))


def saving(folder: Path, saves: int) -> tuple[Figures, Rows]:
    """Foreground seconds of a save that is waited for and of one beside the training, in turn, with the same state."""
    trainer = Trainer(Decoder(SAVED), next_token_loss, Recipe(), 1000)
    megabytes = sum(tensor.numel() * tensor.element_size() for tensor in trainer.state_shard().values()) / 1e6
    saver = checkpoint.Saver(trainer, folder / "beside")
    seconds: dict[str, list[float]] = {"sync_wall": [], "async_wall": [], "sync_cpu": [], "async_cpu": []}
    for number in range(saves + 1):
        trainer.step = number
        for name in ("sync", "async"):
            wall, cpu = time.perf_counter(), time.thread_time()
            if name == "sync":
                checkpoint.save(trainer, folder / "waited")
            elif problem := saver.begin():
                raise SystemExit(problem)
            if number:  # the first makes the plan and the memory
                seconds[f"{name}_wall"].append(time.perf_counter() - wall)
                seconds[f"{name}_cpu"].append(time.thread_time() - cpu)
            if name == "async":
                saver.finish()
    figures: Figures = {"save_state_mb": megabytes}
    for name, values in seconds.items():
        figures |= median_interval(values, f"save_foreground_{name}_s")
    ratios = [a / s for a, s in zip(seconds["async_wall"], seconds["sync_wall"], strict=True)]
    figures |= median_interval(ratios, "save_foreground_async_over_sync")
    text = f"{figures['save_foreground_async_wall_s'] * 1e3:.0f} ms beside the training"
    rows: Rows = [
        (
            f"training stopped by a save of {megabytes:.0f} MB",
            text,
            "waited for",
            f"{figures['save_foreground_sync_wall_s']:.2f} s",
        ),
        ("  ratio", *_interval(figures, "save_foreground_async_over_sync"), ""),
    ]
    return figures, rows


def replicas(folder: Path, size: str, steps: int, rounds: int, batch: int | None) -> tuple[Figures, Rows]:
    """Guarded jobs of four ranks on two hosts with a replica after each step, and without, in turn."""
    shares, walls, per_step = [], [], []
    for number in range(rounds):
        on, off = (_job(folder / f"{size}-{number}-{every}", size, steps, every, batch) for every in (1, 10**6))
        cost = (on["replica"] - off["replica"] + on["agents"] - off["agents"]) / (steps - 1)  # the last is kept in both
        step = (off["train"] - off["replica"]) / steps
        shares.append(cost / step)
        walls.append(on["wall"] / off["wall"])
        per_step.append(step)
    figures = median_interval(shares, f"replica_overhead_{size}") | median_interval(walls, f"replica_wall_ratio_{size}")
    figures[f"replica_k_within_3_percent_{size}"] = max(1, math.ceil(figures[f"replica_overhead_{size}"] / LIMIT))
    figures[f"replica_k_within_3_percent_{size}_upper"] = max(1, math.ceil(figures[f"replica_overhead_{size}_ci_high"] / LIMIT))
    figures[f"replica_step_cpu_seconds_{size}"] = float(np.median(per_step))
    name = f"replica_overhead_{size}"
    rows: Rows = [
        (f"replicas at k = 1, size {size}: share of a step's processor time", *_interval(figures, name, percent=True), ""),
        ("  step, wall, with over without", *_interval(figures, f"replica_wall_ratio_{size}"), ""),
        (
            "  smallest k within 3 %",
            figures[f"replica_k_within_3_percent_{size}"],
            "at the interval's upper end",
            figures[f"replica_k_within_3_percent_{size}_upper"],
        ),
    ]
    return figures, rows


def cuts(folder: Path) -> tuple[Figures, Rows]:
    """Under each cut: a rank is killed, a spare takes its state from a replica, and the weights end as the faultless twin's."""
    figures: Figures = {}
    rows: Rows = []
    for name, mesh, micro_batches in CUTS:
        twin = run_job(_cut_job(folder / f"{name}-twin", mesh, micro_batches, []))
        events: list[dict[str, Any]] = []
        killed = run_job(_cut_job(folder / f"{name}-killed", mesh, micro_batches, [Fault(0, "kill", 2, 12)]), events.append)
        (fault,) = killed.faults
        seconds = fault.repaired()["seconds"]
        equal = len({said["digest"] for result in (twin, killed) for said in result.results.values()}) == 1
        lost, redone = fault.committed_steps_lost, fault.steps_redone
        figures |= {f"cut_{name}_equal": equal, f"cut_{name}_repaired_s": seconds, f"cut_{name}_lost": lost}
        rows.append(
            (
                f"rank killed under {name}: weights against the twin's",
                "the same bits" if equal else "DIFFERENT",
                f"{lost} committed steps lost, {redone} redone",
                f"{seconds:.2f} s",
            )
        )
    return figures, rows


def _cut_job(folder: Path, mesh: Mesh, micro_batches: int, faults: list[Fault]) -> JobSpec:
    spec = make_job(folder, "nano")
    path = Path(spec.command[-1])
    job = load_job(path)
    shape = Shape(job.shape.vocab, 4, 32, 4, 2, 4, 2, 32, dense_layers=1, dense_dim=64)
    recipe = Recipe(micro_batches=micro_batches)
    job = msgspec.structs.replace(job, shape=shape, recipe=recipe, mesh=mesh, steps=24, faults=faults)
    job.save(path)
    hosts = [msgspec.structs.replace(host, spares=int(bool(faults))) for host in spec.hosts]
    injected = [Injected(fault.kind, fault.rank, fault.step) for fault in faults]  # type: ignore[arg-type]
    return msgspec.structs.replace(spec, hosts=hosts, injected=injected)


def groups(folder: Path, times: int) -> tuple[Figures, Rows]:
    """What a rank rebuilds in a regroup, by its parts, on four ranks that do nothing else."""
    context = mp.get_context("fork")
    here, there = context.Pipe(duplex=False)
    processes = [context.Process(target=_groups, args=(rank, folder, times, there), daemon=True) for rank in range(4)]
    for process in processes:
        process.start()
    found: dict[str, list[float]] = here.recv()
    for process in processes:
        process.join()
    figures: Figures = {"group_count": found.pop("count")[0]}
    for name, values in found.items():
        figures |= median_interval(values, f"group_{name}_ms")
    rows: Rows = [(f"regroup, {name}", *_interval(figures, f"group_{name}_ms"), "ms") for name in found]
    rows.append((f"  a further group costs, of {figures['group_count']}", "", f"{figures['group_one_group_ms']:.1f} ms", ""))
    return figures, rows


def _groups(rank: int, folder: Path, times: int, end: Any) -> None:
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {"default_group": [], "one_group": [], "model_and_mesh": [], "model_alone": [], "state": []}
    mesh, count = Mesh(dp_replicate=2, dp_shard=2, ep=2), 0
    for number in range(times):
        marks = [time.perf_counter()]
        dist.init_process_group("gloo", init_method=f"file://{folder}/groups-{number}", rank=rank, world_size=4)
        marks.append(time.perf_counter())
        dist.new_group([0, 1, 2, 3])
        marks.append(time.perf_counter())
        trainer = Trainer(Decoder(journey.SHAPE, seed=None), next_token_loss, Recipe(), 10, mesh)
        marks.append(time.perf_counter())
        Trainer(Decoder(journey.SHAPE, seed=None), next_token_loss, Recipe(), 10)
        marks.append(time.perf_counter())
        trainer.load_shard({name: tensor.clone() for name, tensor in trainer.state_shard().items()})
        marks.append(time.perf_counter())
        if number:  # the first pays for imports
            for name, before, after in zip(found, marks, marks[1:], strict=False):
                found[name].append(1e3 * (after - before))
        count = len(dist.distributed_c10d._world.pg_names) - 1
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        end.send(found | {"count": [float(count)]})


def _job(folder: Path, size: str, steps: int, every: int, batch: int | None) -> dict[str, float]:
    """Processor seconds of one job: all ranks' steps, their replicas, both agents; and the median wall time of a step."""
    spec = make_job(folder, size)
    path = Path(spec.command[-1])
    job = load_job(path)
    job = msgspec.structs.replace(job, steps=steps, replicate_every=every, batch=batch or job.batch)
    job.save(path)
    # What is measured is the cost alone: on a crowded machine nobody is to be replaced.
    watch = msgspec.structs.replace(spec.watch, action="advise", host_seconds=600.0, hang_seconds=600.0)
    hosts = [msgspec.structs.replace(host, spares=0) for host in spec.hosts]
    spec = msgspec.structs.replace(spec, hosts=hosts, watch=watch)
    result = run_job(spec)
    seconds = [line["seconds"] for line in read_lines(folder / "history.jsonl")]
    shutil.rmtree(folder)
    said = result.results.values()
    return {
        "train": sum(rank["train_cpu_seconds"] for rank in said),
        "replica": sum(rank["replica_cpu_seconds"] for rank in said),
        "agents": sum(host["agent_cpu_seconds"] for name, host in result.usage.items() if name != "controller"),
        "wall": float(np.median(seconds[2:])),
    }


def _interval(figures: Figures, name: str, percent: bool = False) -> tuple[str, str]:
    values = [figures[name], figures[f"{name}_ci_low"], figures[f"{name}_ci_high"]]
    text = [f"{100 * value:.1f} %" if percent else f"{value:.3f}" for value in values]
    return text[0], f"95 %: {text[1]} to {text[2]}, n = {figures[f'{name}_n']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", type=int, default=200)
    parser.add_argument("--saves", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4, help="jobs with and without replicas, each")
    parser.add_argument("--only", nargs="*", choices=["attack", "move", "save", "cuts", "groups", "tiny", "small"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="n9-state-"))
    parts: dict[str, Callable[[], tuple[Figures, Rows]]] = {
        "attack": lambda: attacked(folder, arguments.attacks),
        "move": lambda: moved(folder),
        "save": lambda: saving(folder, arguments.saves),
        "cuts": lambda: cuts(folder),
        "groups": lambda: groups(folder, 8),
        "tiny": lambda: replicas(folder, "tiny", 60, arguments.rounds, None),
        "small": lambda: replicas(folder, "small", 6, max(2, arguments.rounds // 2), 8),  # a step of about a second per rank
    }
    figures: Figures = {"load_before": os.getloadavg()[0]}
    rows: Rows = []
    try:
        for name in arguments.only or parts:
            found, lines = parts[name]()
            figures |= found
            rows += lines
            print(found, flush=True)
    finally:  # a part that fails takes nothing from the others
        _publish(figures, rows)
        shutil.rmtree(folder)


def _publish(figures: Figures, rows: Rows) -> None:
    for key in ("replica_overhead", "replica_k_within_3_percent"):  # of the realistic step, where it was run
        for size in ("tiny", "small"):
            if f"{key}_{size}" in figures:
                figures[key] = figures[f"{key}_{size}"]
    figures["load_after"] = os.getloadavg()[0]
    publish("state", rows, figures, ("what", "measured", "beside", ""))


if __name__ == "__main__":
    main()
