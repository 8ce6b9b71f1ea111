"""The drill over the real protocol: a controller process, 64 encrypted connections, its page; and the live drill's keys."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import zmq

from ninthsky.guard.drill.live import Fleet
from ninthsky.guard.drill.processes import drill_job
from ninthsky.guard.drill.quiet import Quiet
from ninthsky.guard.drill.scenario import Scenario, shipped
from ninthsky.guard.drill.sheet import as_text, sheet
from ninthsky.guard.drill.sockets import SocketDrill
from ninthsky.guard.drill.wired import make_keys
from ninthsky.guard.keys import load_keys
from ninthsky.guard.spec import HostSpec, JobSpec


def test_agents_keys_are_the_controllers_guests(tmp_path: Path) -> None:
    path, server, pairs = make_keys(tmp_path / "keys", ["host-0000", "host-0001"])
    keys = load_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and keys.public["controller"] == server
    assert all(keys.public[host] == pair[0].decode() for host, pair in pairs.items())
    assert zmq.curve_public(keys.secret.encode()).decode() == server


def test_of_many_hosts_some_speak_for_all() -> None:
    def job(hosts: int) -> JobSpec:
        names = [HostSpec(name=f"h{n}", slots=1) for n in range(hosts)]
        return JobSpec(run_id="x", folder="/x", command=["x"], world=hosts, hosts=names)

    small, large = job(31), job(2304)
    assert len(small.speakers()) == 31 and not small.gather_seconds
    assert len(large.speakers()) == 16 and large.gather_seconds > 0
    assert large.homes()[:2] == ["h0", "h1"]


@pytest.mark.slow
def test_a_kill_is_named_over_the_wire_and_the_controller_is_measured() -> None:
    drill = SocketDrill(512, Scenario(fault=[shipped().named("kill"), shipped().named("nan")], order="given"), 11)
    drill.pace = 0.1
    drill.run(2, 120.0)
    assert [outcome.result for outcome in drill.outcomes] == ["exact", "exact"], drill.outcomes
    figures = sheet(drill, Quiet(0.0, 0, 0)) | drill.figures()
    assert figures["exact"] == 1.0 and figures["p99_exit_s"] > 0 and figures["evicted_wrongly"] == 0
    assert figures["encrypted"] and figures["messages_per_s"] > 0 and figures["mb_per_s"] > 0
    assert 0 < figures["controller_core"] < 2 and 20 < figures["controller_mb"] < 300
    assert figures["page_bytes_per_s"] > 0, "the page told of it meanwhile"
    assert "SIMULATED" in as_text(figures)


def test_a_key_strikes_somebody_who_is_there(tmp_path: Path) -> None:
    orders = tmp_path / "orders"
    orders.mkdir()
    spec = drill_job(tmp_path / "job", 2, [], 10.0, hosts=4, orders=orders, worlds=[2, 4, 6])
    fleet = Fleet(spec, orders, 3)
    assert "no rank" in fleet.strike("kill") and "no rack" in fleet.strike("rack") and not fleet.struck
    fleet.heard({"kind": "formed", "places": {str(rank): f"host-{rank // 2}/{rank % 2}" for rank in range(8)}})
    fleet.heard({"kind": "fault.named"})
    said = fleet.strike("freeze")
    (order,) = orders.iterdir()
    rank = int(order.name.removeprefix("rank-"))
    assert order.read_text() == "freeze" and said == f"struck: freeze, rank {rank} on host-{rank // 2}"
    assert (fleet.struck, fleet.named) == (1, 1)
