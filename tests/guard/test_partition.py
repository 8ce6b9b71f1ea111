"""A host whose packets are dropped: two agents in network namespaces, joined by a bridge in the middle that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ninthsky.guard.job import HostSpec, run_job

pytestmark = pytest.mark.slow


class Network:
    """host-0 and host-1, each in a namespace of its own, on a bridge; the controller sits on the bridge itself."""

    def __init__(self) -> None:
        tag = os.getpid() % 10_000
        self.bridge, self.subnet = f"n9br{tag}", f"10.{200 + tag % 50}.{tag % 250}"
        self.names = [f"n9ns{tag}x{host}" for host in range(2)]
        self.ports = [f"n9p{tag}x{host}" for host in range(2)]

    def __enter__(self) -> Network:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.subnet}.1/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for host, (name, port) in enumerate(zip(self.names, self.ports, strict=True)):
            ip("netns", "add", name)
            ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", port, "master", self.bridge, "up")
            ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            ip("netns", "del", name, check=False)
        for port in self.ports:
            ip("link", "del", port, check=False)
        ip("link", "del", self.bridge, check=False)

    def address(self, host: int) -> str:
        return f"{self.subnet}.{10 + host}"

    def pass_packets(self, host: int, passing: bool) -> None:
        """A bridge port that is disabled drops everything in silence: no reset, no lost carrier."""
        subprocess.run(["bridge", "link", "set", "dev", self.ports[host], "state", "3" if passing else "0"], check=True)


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if not (shutil.which("ip") and shutil.which("bridge")):
        pytest.skip("iproute2 is not installed (apt-get install iproute2)")
    network = Network()
    try:
        network.__enter__()
    except subprocess.CalledProcessError as error:
        network.__exit__()
        pytest.skip(f"this machine allows no network namespaces: {error.stderr.decode().strip()}")
    yield network
    network.__exit__()


def spread(make_job: Any, network: Network, name: str, inject: list[dict[str, Any]], **more: Any) -> Any:
    spec = make_job(name, inject, **more)
    hosts = [
        HostSpec(
            name=f"host-{n}", slots=2, spares=2, address=network.address(n), launch=("ip", "netns", "exec", network.names[n])
        )
        for n in range(2)
    ]
    watch = msgspec.structs.replace(spec.watch, bind=f"{network.subnet}.1")
    return msgspec.structs.replace(spec, hosts=hosts, watch=watch)


def test_a_host_cut_off_is_named_replaced_and_refused_when_it_returns(make_job: Any, network: Network) -> None:
    spec = spread(make_job, network, "cut", [], plan={"steps": 400, "work_ms": 30.0})
    events: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        kinds = [event["kind"] for event in events]
        if event["kind"] == "commit" and event["step"] >= 10 and "fault.named" not in kinds:
            network.pass_packets(1, False)
        if event["kind"] == "fault.repaired":
            network.pass_packets(1, True)
        events.append(event)

    result = run_job(spec, on_event)
    (fault,) = result.faults
    assert (fault.cause, fault.host, fault.state) == ("host", "host-1", "repaired")
    assert fault.committed_steps_lost == 0
    formed = [event["places"] for event in events if event["kind"] == "formed"]
    assert [place.split("/")[0] for place in formed[-1].values()] == ["host-0"] * 4
    assert [event["host"] for event in events if event["kind"] == "host.refused"] == ["host-1"]
    assert set(result.results) == {0, 1, 2, 3} and result.generation == 2


def test_a_frozen_rank_is_named_though_its_host_is_cut_off_at_the_same_time(make_job: Any, network: Network) -> None:
    """The frozen rank cannot be seen any more: then its host is named, and nobody else."""
    spec = spread(make_job, network, "both", [{"kind": "freeze", "rank": 3, "step": 20}], plan={"steps": 60, "work_ms": 30.0})
    mark = Path(spec.folder) / "marks" / "0"
    stop = threading.Event()

    def cut() -> None:
        while not stop.is_set():
            if mark.exists():
                network.pass_packets(1, False)
                return
            time.sleep(0.005)

    watcher = threading.Thread(target=cut)
    watcher.start()
    try:
        result = run_job(spec)
    finally:
        stop.set()
        watcher.join()
    assert [(fault.cause, fault.host) for fault in result.faults] == [("host", "host-1")]
