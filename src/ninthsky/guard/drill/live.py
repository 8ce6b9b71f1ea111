"""A small fleet to play with: simulated ranks in real processes, the live page beside, and a fault for every key pressed.

Ranks strike themselves: a file `orders/rank-N` with the kind in it, which rank N reads at its next step. A host is cut off by
stopping its agent and all its ranks, so that nothing is heard from there and nothing breaks, as when packets are dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ninthsky.errors import UserError
from ninthsky.guard.agent.spawner import die_with_parent
from ninthsky.guard.drill.processes import drill_job
from ninthsky.guard.job import run_job
from ninthsky.guard.spec import JobSpec
from ninthsky.guard.watch import line_of

HOSTS, RANKS_PER_HOST, RACK = 4, 2, 2
STEP_MS = 100.0
FOREVER = 10**9  # steps
TURN_SECONDS = 0.2
KINDS = {
    "k": ("kill", "a rank's process is killed"),
    "f": ("freeze", "a rank's process is stopped"),
    "t": ("stuck", "a rank's main thread gets stuck, its heart beats on"),
    "s": ("slow", "a rank needs twice as long from now on"),
    "n": ("nan", "a rank's gradient is not a number"),
    "h": ("host", "a host is cut off"),
    "r": ("rack", "a rack, which is two hosts, is cut off"),
}


class Fleet:
    """The running job as the keys see it. Its events come from another thread."""

    def __init__(self, spec: JobSpec, orders: Path, seed: int) -> None:
        self.spec, self.orders = spec, orders
        self.places: dict[int, str] = {}  # rank -> host
        self.stopped: list[int] = []  # agents
        self.cut: set[str] = set()
        self.struck = self.named = 0
        self._chance = random.Random(seed)
        self._lock = threading.Lock()

    def heard(self, event: dict[str, Any]) -> None:
        with self._lock:
            if event["kind"] == "formed":
                self.places = {int(rank): card.split("/")[0] for rank, card in event["places"].items()}
            self.named += event["kind"] == "fault.named"

    def strike(self, kind: str) -> str:
        """Does it; says to whom."""
        with self._lock:
            hosts = sorted(set(self.places.values()) - self.cut)
            ranks = sorted(rank for rank, host in self.places.items() if host not in self.cut)
        if kind in {"host", "rack"}:
            wanted = RACK if kind == "rack" else 1
            if len(hosts) <= wanted:
                return f"no {kind} is left to be cut off"
            racks = [[host for host in hosts if int(host.split("-")[1]) // RACK == rack] for rack in range(HOSTS // RACK)]
            chosen = self._chance.choice([rack for rack in racks if rack]) if kind == "rack" else [self._chance.choice(hosts)]
            for host in chosen:
                self._cut(host)
        else:
            if not ranks:
                return "no rank is there to be struck"
            rank = self._chance.choice(ranks)
            self._order(rank, kind)
            chosen = [f"rank {rank} on {self.places[rank]}"]
        self.struck += 1
        return f"struck: {kind}, {' and '.join(chosen)}"

    def let_go(self) -> None:
        """Stopped agents go on, to end with the others."""
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _cut(self, host: str) -> None:
        pid = int((self.spec.memory_folder(host) / "agent.pid").read_text().split()[0])
        for rank, place in self.places.items():
            if place == host:
                self._order(rank, "freeze")
        os.kill(pid, signal.SIGSTOP)
        self.stopped.append(pid)
        self.cut.add(host)

    def _order(self, rank: int, kind: str) -> None:
        draft = self.orders / f".rank-{rank}"
        draft.write_text(kind)
        draft.replace(self.orders / f"rank-{rank}")


def play(seed: int) -> int:
    """Until q is pressed. Returns how many faults were struck. Needs a terminal."""
    with tempfile.TemporaryDirectory(prefix="n9-drill-") as scratch:
        orders = Path(scratch) / "orders"
        orders.mkdir()
        spec = drill_job(
            Path(scratch) / "job", RANKS_PER_HOST, [], STEP_MS, hosts=HOSTS, steps=FOREVER, orders=orders,
            worlds=list(range(RANKS_PER_HOST, HOSTS * RANKS_PER_HOST)),
        )  # fmt: skip
        Path(spec.folder).mkdir(exist_ok=True)
        spec.save()
        fleet = Fleet(spec, orders, seed)
        with _keys() as key, _page(Path(spec.folder)) as address:
            print(f"simulated: {spec.world} ranks and {HOSTS} spares on {HOSTS} hosts, steps of {STEP_MS / 1e3:g} s\n")
            print(
                f"  page    {address}\n"
                + "".join(f"  {k}       {what}\n" for k, (_, what) in KINDS.items())
                + "  q       ends\n"
            )

            def show(event: dict[str, Any]) -> None:
                fleet.heard(event)
                text = "" if event["kind"] == "commit" else line_of(event)
                if text:
                    print(text, flush=True)

            listening = threading.Thread(target=_listen, args=(key, fleet), daemon=True)
            listening.start()
            try:
                run_job(spec, show)
            except KeyboardInterrupt:
                pass
            except UserError as error:
                print(f"\n{error}", flush=True)
        print(f"\nsimulated: struck {fleet.struck} times, {fleet.named} faults named")
        return fleet.struck


def _listen(key: Callable[[], str], fleet: Fleet) -> None:
    while (pressed := key()) != "q":
        if pressed in KINDS:
            print(f"{time.strftime('%H:%M:%S')}  {fleet.strike(KINDS[pressed][0])}", flush=True)
    fleet.let_go()
    os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """Keys as they are pressed; "q" at the end of the input too."""
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    tty.setcbreak(file)

    def key() -> str:
        while not select.select([file], [], [], TURN_SECONDS)[0]:
            pass
        return os.read(file, 1).decode(errors="replace") or "q"

    try:
        yield key
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _page(folder: Path) -> Iterator[str]:
    """The job's page, in a process of its own: its address, with the first login."""
    with (folder / "page.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ninthsky", "guard", "serve", str(folder), "--port", "0", "--json"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            preexec_fn=die_with_parent(os.getpid(), signal.SIGTERM),
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield str(json.loads(line)["login"]) if line else f"did not start: {folder / 'page.log'}"
    finally:
        process.terminate()
        process.wait()
