"""`python -m benchmarks.forming`: groups formed and cut off at any moment, again and again, on a machine that is kept busy.

Four processes do what a rank does between Assign and Joined and after an Abort (train/rank/generation.py, elastic.Release): one
serves the generation's store, all join, make groups of two dimensions, and add up a tensor. This program orders the next
generation as soon as all are out, and cuts some off at a moment drawn by chance. Counted: generations, how many were formed,
cut off, or broken though nobody cut them, and the longest time until a rank was out; who is not out after LATE seconds hung.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.report import publish
from ninthsky.guard.probe.group import Probe, gloo, register
from ninthsky.guard.probe.messages import Abort, Assign, Rendezvous, StoreServing
from ninthsky.guard.probe.record import RecordWriter
from ninthsky.train.rank.elastic import Release
from ninthsky.train.rank.generation import form, leave, serve_store

RANKS, HOST, FORMED = 4, "127.0.0.1", "formed"
LATE = 20.0  # seconds; a group is formed within a second
FIRST = 300.0  # for the first generation, which loads half of torch


class Wire:
    """The rank's end of the pipe: an Abort is heard in a thread of its own, as Line hears it."""

    def __init__(self, pipe: Connection, release: Release) -> None:
        self._pipe, self._release = pipe, release
        self._orders: list[Any] = []
        self.generation = 0
        self._there = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, message: Any) -> None:
        self._pipe.send(message)

    def next(self, kind: type) -> Any:
        """The next order of that kind; RuntimeError where the generation is aborted before it."""
        while True:
            with self._there:
                self._there.wait_for(lambda: self._orders)
                order = self._orders.pop(0)
            if isinstance(order, kind):
                return order
            if kind is Rendezvous and isinstance(order, Abort) and order.generation == self.generation:
                raise RuntimeError("aborted before the store was there")

    def _read(self) -> None:
        while True:
            try:
                order = self._pipe.recv()
            except EOFError:
                os._exit(0)
            if isinstance(order, Abort):
                self._release.on_abort(order)
            with self._there:
                self._orders.append(order)
                self._there.notify()


def rank(number: int, pipe: Connection, folder: Path) -> None:
    """One process, until its pipe is closed."""
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR1)
    release = Release()
    release.out()
    wire = Wire(pipe, release)
    probe = Probe(RecordWriter(folder / f"record-{number}"), gloo(HOST))
    probe.cut = release.aborted.is_set
    register(probe, "cpu")
    pipe.send("ready")
    while True:
        assign = wire.next(Assign)
        wire.generation = assign.generation
        release.begin()
        said = FORMED
        try:
            store = serve_store(assign, wire) if assign.serve_store else None  # type: ignore[arg-type]
            form(assign, wire.next(Rendezvous), store, release.aborted)
            mesh = init_device_mesh("cpu", (2, RANKS // 2), mesh_dim_names=("a", "b"))
            total = torch.ones(8)
            dist.all_reduce(total, group=mesh["b"].get_group())
            dist.all_reduce(total)
            assert total.sum() == 8 * RANKS * RANKS // 2
            del mesh, total
        except RuntimeError as error:
            said = str(error).splitlines()[0]
        release.sockets.abort()
        leave(probe)
        release.out()
        pipe.send(said)


class Hung(Exception):
    """A rank was not out in time."""


def generation(
    number: int, pipes: list[Connection], pids: list[int], draw: random.Random, within: float | None, late: float = LATE
) -> tuple[list[str], float]:
    """One of them, cut off at some moment of so many seconds: what each rank said at its end, and the seconds until the last
    was out (from the cut, if there was one). Raises Hung."""
    server = draw.randrange(RANKS)
    for each, pipe in enumerate(pipes):
        pipe.send(Assign(number, each, RANKS, -1, each == server, HOST, []))
    begun, said = time.monotonic(), dict[int, str]()
    abort_at = float("inf") if within is None else begun + draw.uniform(0.0, within)
    aborted = 0.0
    while len(said) < RANKS:
        now = time.monotonic()
        broken = any(text != FORMED for text in said.values())
        if not aborted and (now >= abort_at or broken):  # as the controller does where a rank says that it is broken
            aborted = now
            for pipe in pipes:
                pipe.send(Abort(number, "cut"))
        if now - (aborted or begun) > late:
            for each, pid in enumerate(pids):
                if each not in said:
                    os.kill(pid, signal.SIGUSR1)
            time.sleep(1.0)
            raise Hung(f"generation {number}: ranks {sorted(set(range(RANKS)) - set(said))} are not out after {late:.0f} s")
        waiting = wait(pipes, timeout=0.005)
        for each in [each for each, pipe in enumerate(pipes) if pipe in waiting]:
            message = pipes[each].recv()
            if isinstance(message, StoreServing):
                for pipe in pipes:
                    pipe.send(Rendezvous(number, HOST, message.port))
            else:
                said[each] = message
    return list(said.values()), time.monotonic() - (aborted or begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--cut", type=float, default=0.7, help="share of the generations that is cut off")
    parser.add_argument("--burners", type=int, default=4, help="processes that keep the machine busy meanwhile")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # a cut socket is no news here
    draw, context = random.Random(given.seed), multiprocessing.get_context("spawn")
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.burners)]
    pairs = [context.Pipe() for _ in range(RANKS)]
    counts = {"formed": 0, "cut off": 0, "broken by themselves": 0}
    longest, number, hung = 0.0, 1, ""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=rank, args=(each, theirs, Path(folder)), daemon=True)
            for each, (_, theirs) in enumerate(pairs)
        ]
        for process in ranks:
            process.start()
        pipes, pids = [ours for ours, _ in pairs], [one.pid or 0 for one in ranks]
        try:
            for ours in pipes:
                ours.recv()
            generation(0, pipes, pids, draw, None, FIRST)
            _, typical = generation(1, pipes, pids, draw, None)
            end = time.monotonic() + given.seconds
            while time.monotonic() < end:
                number += 1
                cut = draw.random() < given.cut
                said, seconds = generation(number, pipes, pids, draw, typical / 3 if cut else None)  # the rest is leaving
                if not cut:
                    typical += 0.2 * (seconds - typical)
                bad = sorted({text for text in said if text != FORMED})
                counts["formed" if not bad else "cut off" if cut else "broken by themselves"] += 1
                if bad and not cut:
                    print(f"generation {number}: {bad}", flush=True)
                longest = max(longest, seconds)
        except Hung as error:
            hung = str(error)
            print(hung, flush=True)
        finally:
            for process in ranks:
                process.kill()
            for burner in burning:
                burner.kill()
                burner.wait()
    rows = [*counts.items(), ("hung", hung or "none"), ("longest until a rank was out (s)", round(longest, 2))]
    figures = {name.replace(" ", "_"): count for name, count in counts.items()}
    publish(
        "forming",
        rows,
        {**figures, "hung": bool(hung), "longest_s": round(longest, 3), "burners": given.burners},
        ("what", "measured"),
    )


if __name__ == "__main__":
    main()
