"""Fewer ranks in a whole job of simulated ones: real processes, agents and sockets; the end must be the twin's."""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash

from ninthsky.guard.drill.simulated_rank import SAMPLES, WIDTH
from ninthsky.guard.job import HostSpec, JobResult, JobSpec, run_job

pytestmark = pytest.mark.slow
STEPS = 40


def twin(steps: int = STEPS, seed: int = 7) -> str:
    """Digest of what a faultless job ends with, reckoned without one."""
    state = np.zeros(WIDTH)
    for step in range(steps):
        drawn = [np.random.default_rng((seed, sample, step)).standard_normal(WIDTH) for sample in range(SAMPLES)]
        state = 0.9 * state + np.sum(drawn, axis=0)
    return xxhash.xxh3_64_hexdigest(state.tobytes())


def run(spec: JobSpec, strike: Any) -> tuple[JobResult, list[dict[str, Any]]]:
    """`strike(event)` is called with each event."""
    events: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        strike(event)

    return run_job(spec, on_event), events


def ladder_job(make_job: Any, name: str, hosts: list[HostSpec], worlds: list[int], **watch: Any) -> JobSpec:
    spec = make_job(name, plan={"steps": STEPS}, host_seconds=1.0, **watch)
    return msgspec.structs.replace(spec, hosts=hosts, world=sum(host.slots for host in hosts), worlds=worlds)


def kill_host(spec: JobSpec, host: str) -> None:
    """Its agent, with which all its ranks end."""
    os.kill(int((spec.memory_folder(host) / "agent.pid").read_text().split()[0]), signal.SIGKILL)


def at_steps(*acts: tuple[int, Any]) -> Any:
    """Does each act when its step was committed."""
    waiting = list(acts)

    def strike(event: dict[str, Any]) -> None:
        if waiting and event["kind"] == "commit" and event["step"] >= waiting[0][0]:
            waiting.pop(0)[1]()

    return strike


def shrunk(events: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(event["before"], event["ranks"]) for event in events if event["kind"] == "job.shrunk"]


def test_two_hosts_lost_one_after_the_other(make_job: Any) -> None:
    hosts = [HostSpec(name=f"host-{n}", slots=2, spares=0) for n in range(3)]
    spec = ladder_job(make_job, "shrink", hosts, [4, 3, 2])
    result, events = run(spec, at_steps((5, lambda: kill_host(spec, "host-1")), (15, lambda: kill_host(spec, "host-2"))))
    assert [(fault.cause, fault.host, fault.state) for fault in result.faults] == [
        ("host", "host-1", "repaired"), ("host", "host-2", "repaired"),
    ]  # fmt: skip
    assert shrunk(events) == [(6, 4), (4, 2)]
    assert all(fault.committed_steps_lost == 0 for fault in result.faults)
    assert {said["digest"] for said in result.results.values()} == {twin()} and len(result.results) == 2
