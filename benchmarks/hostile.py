"""`python -m benchmarks.hostile`: a job of simulated ranks trains while strangers do their worst to all that it listens on.

Real sockets, real processes: 1,000,000 garbage frames to each kind of port, plain 0MQ peers without a key, keys that nobody
knows, frames that announce a petabyte, recorded handshakes played again, thousands of connections that say nothing, and the
same against the agents' Unix sockets. A rank is killed before and in the midst of it. Compared: the time of a step, and from
the kill to its name. Counted: what was refused, connections and memory at their peak.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from benchmarks.observing import Enough, listening_ports, parent_of, places_of, resident_mb
from benchmarks.page_siege import besiege_page
from benchmarks.report import median_interval, publish
from ninthsky.guard.drill import drill_job
from ninthsky.guard.faults import Fault
from ninthsky.guard.job import JobSpec, run_job
from ninthsky.guard.keys import CONTROLLER, load_keys
from ninthsky.guard.protocol import Standing
from ninthsky.run.folder import read_json, read_lines

# -- the job that they attack -----------------------------------------------------------------------------------------------


def record_session(spec: JobSpec, folder: Path) -> Path:
    """What the first host says to the controller, from its greeting on, as one who listens on the network would have it."""
    keys = load_keys(Path(spec.folder) / "keys" / f"{spec.hosts[0].name}.json")
    port = (read_json(Path(spec.folder) / "controller.json") or {})["port"]
    recorded = bytearray()
    front = socket.create_server(("127.0.0.1", 0))

    def pass_on() -> None:
        near, _ = front.accept()
        far = socket.create_connection(("127.0.0.1", port))
        far.settimeout(2.0)

        def back() -> None:
            with contextlib.suppress(OSError):
                while data := far.recv(65536):
                    near.sendall(data)

        threading.Thread(target=back, daemon=True).start()
        near.settimeout(2.0)
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                recorded.extend(data)
                far.sendall(data)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    context = zmq.Context()
    line = context.socket(zmq.DEALER)
    line.curve_publickey, line.curve_secretkey = keys.public[keys.name].encode(), keys.secret.encode()
    line.curve_serverkey = keys.public[CONTROLLER].encode()
    line.connect(f"tcp://127.0.0.1:{front.getsockname()[1]}")
    line.send(msgspec.msgpack.encode(Standing(0, "", 0.0, 0, 0, [])))
    time.sleep(0.5)
    line.close(linger=0)
    context.destroy(linger=0)
    front.close()
    path = folder / "recorded.bin"
    path.write_bytes(bytes(recorded))
    (folder / "server.key").write_text(keys.public[CONTROLLER])
    return path


class Siege:
    """Follows the job's events: peace and a kill, then every attack at once and a kill in their midst."""

    def __init__(self, spec: JobSpec, frames: int, others: int, peace: float) -> None:
        self.spec, self.frames, self.others, self.peace = spec, frames, others, peace
        self.folder = Path(spec.folder)
        self.done: dict[str, int] = {}
        self.refused: dict[str, dict[str, int]] = {}
        self.spares: set[str] = set()
        self.named: list[dict[str, Any]] = []
        self.struck: list[tuple[float, int]] = []
        self.periods: list[tuple[float, float]] = []
        self.peaks: dict[str, float] = {"controller_fds": 0, "controller_mb": 0, "agents_fds": 0, "agents_mb": 0}
        self.error: BaseException | None = None
        self.finished = False
        self._started = False
        self._joined = threading.Event()

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "refused":
            self.refused[event["host"]] = event["counts"]
        elif kind == "fault.named":
            self.named.append(event | {"told": time.time()})
        elif kind == "formed":
            self.spares -= set(event["places"].values())
        elif kind == "spare.ready":
            self.spares.add(f"{event['host']}/{event['slot']}")
        elif kind == "joined" and not self._started:
            self._started = True
            self.spares = {f"{host.name}/{host.slots}" for host in self.spec.hosts}
            threading.Thread(target=self._run, daemon=True).start()
        if self.finished:
            raise Enough

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # the main thread raises it
            self.error = error
        self.finished = True

    def _work(self) -> None:
        time.sleep(1.0)
        begin = time.time()
        time.sleep(self.peace)
        self.periods.append((begin, time.time()))
        self._kill()
        recorded = record_session(self.spec, self.folder)
        environment = os.environ | {"HOSTILE_RECORDED": str(recorded), "HOSTILE_SERVER": str(self.folder / "server.key")}
        processes = self._attack(environment)
        begin = time.time()
        watch = threading.Thread(target=self._watch_peaks, daemon=True)
        watch.start()
        time.sleep(2.0)
        self._kill()
        for name, process in processes:
            output, _ = process.communicate(timeout=600)
            self.done[name] = json.loads(output)["done"]
        self.periods.append((begin, time.time()))
        time.sleep(2.0)  # counts are told now and then

    def _kill(self) -> None:
        deadline = time.monotonic() + 60
        while not all(f"{host.name}/" in " ".join(self.spares) for host in self.spec.hosts):
            assert time.monotonic() < deadline, "no spare was ready within 60 s"
            time.sleep(0.1)
        rank, known = random.randrange(self.spec.world), len(self.named)
        pid = places_of(self.spec)[rank][2]
        self.struck.append((time.time(), rank))
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len(self.named) == known:
            assert time.monotonic() < deadline, "the kill was not named within 60 s"
            time.sleep(0.01)

    def _pids(self) -> tuple[int, list[int]]:
        controller = (read_json(self.folder / "controller.json") or {})["pid"]
        return controller, sorted({parent_of(pid) for _, _, pid in places_of(self.spec)})

    def _attack(self, environment: dict[str, str]) -> list[tuple[str, subprocess.Popen[str]]]:
        controller, agents = self._pids()
        ports = [*listening_ports(controller), *(port for agent in agents for port in listening_ports(agent))]
        share = max(1, self.frames // len(ports))
        few = max(1, self.others // len(ports))
        everywhere = ",".join(map(str, ports))
        sockets = ",".join(map(str, sorted(Path(self.spec.memory).glob(f"n9-{self.spec.run_id}-*/agent.sock"))))
        wanted = [("garbage", everywhere, share), ("keyless", everywhere, share), ("unix", sockets, few)]
        wanted += [(name, everywhere, few) for name in ("wrong_key", "oversized", "replay", "loris")]
        return [
            (
                name,
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.strangers", name, targets, str(count)],
                    env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.nice(5),
                ),
            )
            for name, targets, count in wanted
        ]  # fmt: skip

    def _watch_peaks(self) -> None:
        while not self.finished:
            with contextlib.suppress(OSError):
                controller, agents = self._pids()
                for name, pids in (("controller", [controller]), ("agents", agents)):
                    descriptors = max(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
                    self.peaks[f"{name}_fds"] = max(self.peaks[f"{name}_fds"], descriptors)
                    self.peaks[f"{name}_mb"] = max(self.peaks[f"{name}_mb"], *map(resident_mb, pids))
            time.sleep(0.25)

    def steps(self, period: tuple[float, float]) -> list[float]:
        """Seconds of each step that was committed in a period; those around a repair are left out."""
        times = [entry["time"] for entry in read_lines(self.folder / "journal.jsonl") if entry["kind"] == "commit"]
        repairs = [at for at, _ in self.struck]
        return [
            late - early
            for early, late in itertools.pairwise(times)
            if period[0] <= early and late <= period[1] and not any(early - 0.1 <= at + 0.5 and at <= late for at in repairs)
        ]


def besiege(folder: Path, *, frames: int, others: int, peace: float, work_ms: float) -> dict[str, Any]:
    """The whole of it; figures. Raises AssertionError where a kill is not named within a minute."""
    spec = drill_job(folder / "job", 2, [], work_ms)
    plan = json.loads(spec.env["N9_SIMULATED"]) | {"steps": 1_000_000}
    siege = Siege(msgspec.structs.replace(spec, env={"N9_SIMULATED": json.dumps(plan)}), frames, others, peace)
    with contextlib.suppress(Enough):
        run_job(siege.spec, siege)
    if siege.error is not None:
        raise siege.error
    faults = [msgspec.json.decode(path.read_bytes(), type=Fault) for path in sorted((siege.folder / "faults").glob("F-*.json"))]
    named = [event["time"] - at for (at, _), event in zip(siege.struck, siege.named, strict=False)]
    right = [(fault.cause, fault.rank) for fault in faults] == [("exit", rank) for _, rank in siege.struck]
    quiet, under = (siege.steps(period) for period in siege.periods)
    counted: dict[str, int] = {}
    for counts in siege.refused.values():
        for reason, count in counts.items():
            counted[reason] = counted.get(reason, 0) + count
    return {
        **median_interval(quiet, "step_quiet_s"), **median_interval(under, "step_attacked_s"),
        "kill_named_quiet_s": named[0], "kill_named_attacked_s": named[1], "faults_right": right, "faults": len(faults),
        "attack_s": siege.periods[1][1] - siege.periods[1][0], "done": siege.done, "refused": counted, **siege.peaks,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--others", type=int, default=2_000, help="of each other kind, shared among the ports")
    parser.add_argument("--requests", type=int, default=100, help="to the page, of each kind that is repeated")
    parser.add_argument("--peace", type=float, default=15.0)
    parser.add_argument("--work-ms", type=float, default=100.0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-hostile-"))
    page = besiege_page(folder / "page", arguments.requests)
    figures = besiege(
        folder, frames=arguments.frames, others=arguments.others, peace=arguments.peace, work_ms=arguments.work_ms
    )
    shutil.rmtree(folder)
    rows = [
        ("a step, in peace (s)", figures["step_quiet_s"], f"n = {figures['step_quiet_s_n']}"),
        ("a step, under attack", figures["step_attacked_s"], f"n = {figures['step_attacked_s_n']}"),
        ("kill -> named, in peace (s)", figures["kill_named_quiet_s"], ""),
        ("kill -> named, under attack", figures["kill_named_attacked_s"], f"{figures['attack_s']:.0f} s of attack"),
        ("faults named", figures["faults"], "both right, no other" if figures["faults_right"] else "WRONG"),
        *((f"sent: {name}", count, "") for name, count in sorted(figures["done"].items())),
        *((f"refused: {name}", count, "") for name, count in sorted(figures["refused"].items())),
        ("connections of the controller, at most", figures["controller_fds"], f"{figures['controller_mb']:.0f} MB"),
        ("connections of an agent, at most", figures["agents_fds"], f"{figures['agents_mb']:.0f} MB"),
        *((f"page: {name}", count, "") for name, count in sorted(page["attacks"].items())),
        ("page: otherwise than it must", len(page["wrong"]), "; ".join(page["wrong"])[:200]),
        ("page: answers, after half heads (s)", page["answers_again_s"], f"{page['fds']} descriptors, {page['mb']:.0f} MB"),
    ]
    publish("hostile", rows, {**figures, "page": page})


if __name__ == "__main__":
    main()
