"""Whole jobs whose hosts tell of themselves through files: one fault with the reason first, and nothing from a quiet host."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ninthsky.guard.job import run_job

pytestmark = pytest.mark.slow

DCGM = Path(__file__).parent / "dcgm.prom"
FELL = "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
QUIET = (
    "6,3973,227986636,-;IPv6: ADDRCONF(NETDEV_CHANGE): cali317e2eeb40: link becomes ready\n",
    "4,3974,227996637,-;nvidia-peermem nv_get_p2p_free_callback:127 ERROR detected invalid context, skipping\n",
    "6,3975,227996700,-;veth8f3: Link is Down\n",
    "6,3976,227996800,-;perf: interrupt took too long (2501 > 2500), lowering kernel.perf_event_max_sample_rate to 79750\n",
)


def test_a_hang_whose_host_told_of_its_card_is_one_fault(make_job: Any, tmp_path: Path) -> None:
    """Both hosts chatter all the time: logs of an ordinary kernel, temperatures and replay counters that go up and down."""
    text, hosts = DCGM.read_text(), ("host-0", "host-1")
    stop = threading.Event()

    def chatter(count: int) -> None:
        for host in hosts:
            page = text.replace("REPLAYS\n", f"{count // 10}\n").replace("HEAT\n", f"{60 + count % 20}\n")
            (tmp_path / "next").write_text(page)
            (tmp_path / "next").replace(tmp_path / f"{host}.prom")
            with (tmp_path / f"{host}.log").open("a") as log:
                log.writelines(QUIET)

    def hosts_at_work() -> None:
        struck, count = False, 1
        while not stop.wait(0.05):
            count += 1
            chatter(count)
            if not struck and (Path(spec.folder) / "marks" / "0").exists():
                struck = True
                with (tmp_path / "host-1.log").open("a") as log:
                    log.write(FELL)

    chatter(1)
    spec = make_job(
        "fell", [{"kind": "freeze", "rank": 2, "step": 15}], plan={"steps": 30}, exporter=str(tmp_path / "{host}.prom"),
        kernel_log=str(tmp_path / "{host}.log"), exporter_seconds=0.1,
    )  # fmt: skip
    thread = threading.Thread(target=hosts_at_work)
    thread.start()
    events: list[dict[str, Any]] = []
    try:
        result = run_job(spec, events.append)
    finally:
        stop.set()
        thread.join()
    (fault,) = result.faults
    assert (fault.cause, fault.rank, fault.card) == ("frozen", 2, "host-1/0")
    assert fault.evidence.where["playbook"] == "gpu_fell_off_bus"
    assert fault.evidence.facts[0].name == "kernel log" and "79" in str(fault.evidence.facts[0].value)
    assert "card host-1/0" in fault.evidence.facts[0].source, "the exporter tells which card is at that address of the bus"
    told = [event["kind"] for event in events if event["kind"].startswith(("fault", "telemetry"))]
    assert told == ["fault.named", "fault.repaired"]
