"""Flight recorders of broken jobs -> are exactly the bad ranks named? `python -m benchmarks.flight [--cases 200] [--seed 1]`.

A small machine of its own, which imports nothing from what it tests, plays jobs of 16 to 64 ranks cut into tp, pp and dp: every
rank's program is a list of collectives, sends and receives; it hands them to its device in order and runs ahead of it by a few
until the step's end; a device takes one at a time, and one is done when all that take part have it in hand. One to three
ranks break in the same step: `program` (hands nothing more over, as with a held GIL), `device` (its recorder sees nothing more
finish; it serves its peers for a few operations more, then stops; its program runs on as far as it may), `dead` (the same as
program, and no dump is left), `other` (calls another collective than its peers). Dumps are lost at random, rings keep only the
newest entries or only what is not done.

Named exactly: those ranks and no other. A real job of gloo ranks (torch's own recorder) is dumped beside, one not entering.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from ninthsky.guard.passive.dumps import read_dump
from ninthsky.guard.passive.traces import suspects
from ninthsky.proportion import wilson

RING = 40  # entries of a short recorder: what is not done fits into it, as it does with torch's default of 2,000
LIVE = 5  # seconds until the real ranks are dumped


KINDS = {"0": "default_pg", "t": "TENSOR", "d": "DATA", "p": "PIPELINE"}


@dataclass(frozen=True)
class Call:
    """One operation as one rank's program makes it."""

    group: str
    ranks: tuple[int, ...]
    name: str
    size: int
    step: int


@dataclass
class Rank:
    """One rank: what its program still has to call, what its device holds, what was finished."""

    program: deque[Call]
    ahead: int  # how many calls its program may be before its device
    fault: str = ""
    at: int = 0  # calls after which the fault strikes
    made: int = 0
    blind: int = 0  # operations that a broken device still serves without recording them
    served: int = 0
    device: deque[Call] = field(default_factory=deque)
    log: list[dict[str, Any]] = field(default_factory=list)
    enqueued: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    open: deque[dict[str, Any]] = field(default_factory=deque)


def programs(ranks: int, tp: int, pp: int, steps: int, micro: int) -> tuple[list[list[Call]], dict[str, tuple[int, ...]]]:
    """Each rank's calls; rank = (dp * pp + stage) * tp + lane."""
    groups: dict[str, tuple[int, ...]] = {"0": tuple(range(ranks))}
    dp = ranks // (tp * pp)
    of = {}
    for rank in range(ranks):
        lane, stage, replica = rank % tp, rank // tp % pp, rank // (tp * pp)
        of[rank] = (lane, stage, replica)
        groups.setdefault(f"t{stage}.{replica}", tuple((replica * pp + stage) * tp + k for k in range(tp)))
        groups.setdefault(f"d{lane}.{stage}", tuple((k * pp + stage) * tp + lane for k in range(dp)))
        groups.setdefault(f"p{lane}.{replica}", tuple((replica * pp + k) * tp + lane for k in range(pp)))
    found: list[list[Call]] = []
    for rank in range(ranks):
        lane, stage, replica = of[rank]
        own: list[Call] = []

        def call(group: str, name: str, size: int, step: int, own: list[Call] = own) -> None:
            if len(groups[group]) > 1:
                own.append(Call(group, groups[group], name, size, step))

        def send(stages: tuple[int, int], step: int, own: list[Call] = own, pipe: str = f"p{lane}.{replica}") -> None:
            source, sink = stages
            pair = (groups[pipe][source], groups[pipe][sink])
            own.append(Call(pipe, pair, f"p2p {source}->{sink}", 64, step))

        for step in range(steps):
            for _ in range(micro):
                if stage:
                    send((stage - 1, stage), step)
                for layer in range(3):
                    call(f"t{stage}.{replica}", "nccl:_all_gather_base", 100 + layer, step)
                    call(f"t{stage}.{replica}", "nccl:_reduce_scatter_base", 100 + layer, step)
                if stage < pp - 1:
                    send((stage, stage + 1), step)
            call(f"d{lane}.{stage}", "nccl:_reduce_scatter_base", 500, step)
            call("0", "nccl:all_reduce", 1, step)
            call(f"d{lane}.{stage}", "nccl:_all_gather_base", 500, step)
        found.append(own)
    return found, groups


def play(rng: random.Random) -> tuple[list[Rank], dict[str, tuple[int, ...]], dict[int, str]]:
    """A job until nothing moves: its ranks, groups, and the bad ranks with what they did."""
    tp, pp = rng.choice([1, 2, 4]), rng.choice([1, 2, 4])
    ranks = rng.choice([16, 32, 64])
    calls, groups = programs(ranks, tp, pp, steps=4, micro=rng.choice([2, 4]))
    kind = rng.choice(["program", "program", "device", "device", "dead", "other"])
    bad = dict.fromkeys(rng.sample(range(ranks), 1 if kind == "other" else rng.choice([1, 1, 2, 3])), kind)
    ahead = rng.randint(8, 30)
    job = [Rank(deque(own), ahead) for own in calls]
    share = rng.uniform(0.3, 0.8)
    for number in bad:
        job[number].fault = kind
        job[number].blind = rng.randint(1, 6)
        own = calls[number]
        first = [at for at, call in enumerate(own) if call.step == 2]
        job[number].at = first[int(share * 0.7 * len(first))] if kind == "other" else first[int(share * len(first))]
        if kind == "other":  # a collective, not a send
            job[number].at = next(at for at in range(job[number].at, len(own)) if not own[at].name.startswith("p2p"))
    moved = True
    while moved:
        moved = False
        for number, rank in enumerate(job):
            moved |= _hand_over(number, rank)
        moved |= _finish(job)
    return job, groups, bad


def _hand_over(number: int, rank: Rank) -> bool:
    """The program calls as many as it may: up to `ahead` before its device, none of the next step before this one is done."""
    moved = False
    while rank.program and len(rank.device) < rank.ahead:
        if rank.fault in {"program", "dead"} and rank.made >= rank.at:
            break
        call = rank.program[0]
        if rank.device and rank.device[0].step < call.step:
            break
        rank.program.popleft()
        if rank.fault == "other" and rank.made == rank.at:
            call = Call(call.group, call.ranks, "nccl:broadcast", call.size + 7, call.step)
        rank.made += 1
        rank.device.append(call)
        p2p = call.name.startswith("p2p")
        if not p2p:
            rank.enqueued[call.group] += 1
        entry = {"call": call, "seq": rank.enqueued[call.group], "p2p": p2p, "done": False, "rank": number}
        rank.log.append(entry)
        rank.open.append(entry)
        moved = True
    return moved


def _finish(job: list[Rank]) -> bool:
    """Operations that all who take part have in hand are done; a broken device does not notice."""
    moved = False
    for number, rank in enumerate(job):
        if not rank.device:
            continue
        call = rank.device[0]
        peers = [job[other] for other in call.ranks]
        if number != min(call.ranks) or any(not peer.device or peer.device[0] != call for peer in peers):
            continue
        if any(peer.fault == "device" and peer.served >= peer.at + peer.blind for peer in peers):
            continue
        for peer in peers:
            peer.device.popleft()
            peer.served += 1
            if peer.fault == "device" and peer.served > peer.at:
                continue
            entry = peer.open.popleft()
            entry["done"] = True
            if not entry["p2p"]:
                peer.finished[call.group] += 1
        moved = True
    return moved


def write(folder: Path, job: list[Rank], groups: dict[str, tuple[int, ...]], bad: dict[int, str], rng: random.Random) -> None:
    """Dumps as torch writes them; those of the dead are not there, and some others are lost."""
    style = rng.choice(["all", "ring", "open"])
    lost = set(rng.sample([r for r in range(len(job)) if r not in bad], rng.choice([0, 0, 1, 3])))
    for number, rank in enumerate(job):
        if rank.fault == "dead" or number in lost:
            continue
        own = [name for name, members in groups.items() if number in members and len(members) > 1]
        entries = [_entry(entry, own) for entry in rank.log]
        if style == "open":
            entries = [entry for entry in entries if entry["state"] != "completed"]
        elif style == "ring":
            entries = entries[-RING:]
        status = {
            str(own.index(name)): {
                "last_enqueued_collective": rank.enqueued[name],
                "last_started_collective": -1,
                "last_completed_collective": rank.finished[name],
            }
            for name in own
        }
        config = {name: {"name": name, "desc": KINDS[name[0]], "ranks": str(list(groups[name]))} for name in own}
        tree = {"version": "2.10", "pg_config": config, "pg_status": status, "entries": entries}
        if style == "all" and number % 2:
            told = {key: {k: str(v) for k, v in at.items()} for key, at in status.items()}  # as torch's JSON has them
            (folder / f"trace_{number}").write_text(json.dumps({"entries": entries, **tree, "pg_status": told}))
        else:
            (folder / f"trace_{number}").write_bytes(pickle.dumps(tree))


def _entry(entry: dict[str, Any], own: list[str]) -> dict[str, Any]:
    call = entry["call"]
    name = call.name
    if entry["p2p"]:
        source, sink = name[4:].split("->")
        name = f"nccl:send {source}->{sink}" if entry["rank"] == call.ranks[0] else f"nccl:recv {sink}<-{source}"
    return {
        "pg_id": own.index(call.group),
        "process_group": (call.group, call.group),
        "collective_seq_id": entry["seq"],
        "profiling_name": name,
        "input_sizes": [[call.size]],
        "output_sizes": [[call.size]],
        "state": "completed" if entry["done"] else "scheduled",
        "is_p2p": entry["p2p"],
    }


def case(seed: int) -> tuple[str, set[int], list[int]]:
    """(what broke, the bad ranks, those named)."""
    rng = random.Random(seed)
    job, groups, bad = play(rng)
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), job, groups, bad, rng)
        found = suspects(read_dump(path) for path in sorted(Path(name).iterdir()))
    return next(iter(bad.values())), set(bad), [suspect.rank for suspect in found]


REAL = """
import os, sys, threading, time, torch, torch.distributed as dist, torch._C._distributed_c10d as c
rank, folder, port = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="4")
dist.init_process_group("gloo")
pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
for _ in range(5):
    dist.all_reduce(torch.ones(4))
    dist.all_reduce(torch.ones(4), group=pairs[rank // 2])
def dump():
    time.sleep(float(sys.argv[4]))
    told = c._dump_fr_trace(True, False, False) if rank % 2 else c._dump_fr_trace_json(True, False)
    with open(f"{folder}/trace_{rank}", "wb") as file:
        file.write(told if isinstance(told, bytes) else told.encode())
    time.sleep(float(sys.argv[4]) + 3)  # its end would break the others' collectives before they are dumped
    os._exit(0)
threading.Thread(target=dump).start()
if rank != 2:
    dist.all_reduce(torch.ones(4))
time.sleep(60)
"""


def real() -> list[int]:
    """Four real gloo ranks, rank 2 does not enter; dumped by torch itself, two as pickles and two as JSON. Those named."""
    with tempfile.TemporaryDirectory() as name:
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = str(held.getsockname()[1])
        environment = {**os.environ, "TORCH_FR_BUFFER_SIZE": "2000", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", REAL]
        running = [subprocess.Popen([*command, str(rank), name, port, str(LIVE)], env=environment) for rank in range(4)]
        for process in running:
            process.wait(120)
        return [suspect.rank for suspect in suspects(read_dump(path) for path in sorted(Path(name).iterdir()))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    told: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for number in range(asked.cases):
        kind, bad, named = case(asked.seed * 1_000_003 + number)
        exact, first = set(named) == bad, bool(named) and named[0] in bad
        for key in (kind, "all"):
            told[key]["n"] += 1
            told[key]["exact"] += exact
            told[key]["first"] += first
            told[key]["innocent"] += bool(set(named) - bad)
            told[key]["nobody"] += not named
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for key, count in sorted(told.items()):
        low, high = wilson(count["exact"], count["n"])
        figures |= {f"{key}_{name}": count[name] / count["n"] for name in ("exact", "first", "innocent", "nobody")}
        figures |= {f"{key}_n": count["n"], f"{key}_exact_ci_low": low}
        shares = ", ".join(f"{name} {count[name] / count['n']:.3f}" for name in ("first", "innocent", "nobody"))
        rows.append(
            [
                f"{key}: exactly the bad ranks",
                f"{count['exact'] / count['n']:.3f} [{low:.3f}, {high:.3f}]",
                f"n {count['n']}, {shares}",
            ]
        )
    figures["real_named"] = real()
    rows.append(["real gloo ranks, rank 2 not entering", str(figures["real_named"]), "torch's own dumps, pickles and JSON"])
    publish("flight", rows, figures)


if __name__ == "__main__":
    main()
