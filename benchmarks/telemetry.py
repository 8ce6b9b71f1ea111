"""What hosts tell of themselves, joined with what ranks do: one fault with the right reason, and nothing of quiet hosts?

Jobs of four simulated ranks (real processes, agents, sockets; no torch) on two hosts whose exporter pages and kernel logs are
files, written to all the time with ordinary chatter. In each job one rank is killed or frozen, its host tells why (kernel log
before or after, or the exporter only), and the other host tells of a trouble of its own that explains nothing. In quiet jobs
nobody is struck. Then what the agent pays for it. Everything here is simulated; the lines are those of the vendors' documents.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from ninthsky.guard.job import run_job
from ninthsky.guard.spec import HostSpec, JobSpec, Watch
from ninthsky.guard.telemetry.kernel import Reader, parse
from ninthsky.guard.telemetry.readings import Readings
from ninthsky.proportion import wilson

SEED = 20_261_124
STRIKE = 40  # step
BUSES = ("3b", "5e")
HOSTS = ("host-0", "host-1")
XID = "4,9,{boot},-;NVRM: Xid (PCI:0000:{bus}:00): {xid}, pid=77, {words}\n"
# (xid, its words, cause in the playbook)
REASONS = (
    (79, "GPU has fallen off the bus.", "gpu_fell_off_bus"),
    (48, "An uncorrectable double bit error (DBE) has been detected on GPU.", "gpu_ecc"),
    (95, "Uncontained: HBM. RST: Yes, D-RST: No", "gpu_ecc"),
    (74, "NVLink: fatal error detected on link 3(0x10000, 0x0, 0x0, 0x0)", "nvlink"),
    (119, "Timeout after 6s of waiting for RPC response from GPU0 GSP!", "driver"),
)
DECOYS = (
    "4,9,{boot},-;CPU3: Core temperature above threshold, cpu clock throttled (total events = 1)\n",
    "4,9,{boot},-;mlx5_core 0000:1a:00.0 ib0: Link down\n",
    "4,9,{boot},-;EXT4-fs error (device nvme0n1p2): ext4_find_entry:1455: inode #2: reading directory lblock 0\n",
    XID.format(boot="{boot}", bus="{bus}", xid=63, words="Row Remapper: New row marked for remapping"),
)
CHATTER = (
    "6,1,{boot},-;IPv6: ADDRCONF(NETDEV_CHANGE): cali317e2eeb40: link becomes ready\n",
    "6,2,{boot},-;veth8f3: Link is Down\n",
    "4,3,{boot},-;nvidia-peermem nv_get_p2p_free_callback:127 ERROR detected invalid context, skipping further processing\n",
    "5,4,{boot},-;perf: interrupt took too long (2501 > 2500), lowering kernel.perf_event_max_sample_rate to 79750\n",
    "4,5,{boot},-;pcieport 0000:00:01.0: AER: Corrected error received: 0000:01:00.0\n",
)


@dataclass(frozen=True)
class Case:
    """One job. `way`: how the reason is told; empty in a quiet job."""

    kind: str
    rank: int
    reason: int
    way: str
    decoy: str


def draw(jobs: int, quiet: int) -> list[Case]:
    chance = random.Random(SEED)
    struck = [
        Case(
            chance.choice(("kill", "freeze")), chance.randrange(4), chance.randrange(len(REASONS)),
            chance.choice(("log before", "log after", "exporter")), chance.choice(DECOYS),
        )
        for _ in range(jobs)
    ]  # fmt: skip
    return struck + [Case("", -1, 0, "", "")] * quiet


def page(xid: dict[int, int], count: int) -> str:
    """A DCGM exporter's page of two cards, the figures of which go up and down."""
    lines = []
    for card, bus in enumerate(BUSES):
        labels = f'gpu="{card}",pci_bus_id="00000000:{bus.upper()}:00.0",device="nvidia{card}",Hostname="x"'
        for name, value in (
            ("GPU_TEMP", 60 + (count + card) % 20), ("MEMORY_TEMP", 70 + count % 9), ("SM_CLOCK", 1980 - 15 * (count % 5)),
            ("PCIE_REPLAY_COUNTER", count // 8), ("ECC_DBE_AGG_TOTAL", card), ("ECC_SBE_VOL_TOTAL", count // 2),
            ("XID_ERRORS", xid.get(card, 43 * card)), ("ROW_REMAP_FAILURE", 0), ("POWER_USAGE", 600 + count % 50),
        ):  # fmt: skip
            lines += [f"# TYPE DCGM_FI_DEV_{name} gauge", f"DCGM_FI_DEV_{name}{{{labels}}} {value}"]
    return "\n".join(lines) + "\n"


class HostsAtWork(threading.Thread):
    """Writes both hosts' pages and logs until it is stopped; tells reason and decoy around the strike."""

    def __init__(self, folder: Path, case: Case, mark: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self._case, self._mark = folder, case, mark
        self._xid: dict[str, dict[int, int]] = {host: {} for host in HOSTS}
        self._count = 0
        self.stop, self.soon = threading.Event(), threading.Event()
        self._write()

    def run(self) -> None:
        told = False
        while not self.stop.wait(0.05):
            self._write()
            due = self.soon.is_set() if self._case.way == "log before" else self._mark.exists()
            if self._case.way and due and not told:
                told = True
                self._tell()

    def _tell(self) -> None:
        case = self._case
        xid, words, _ = REASONS[case.reason]
        host, card = HOSTS[case.rank // 2], case.rank % 2
        other = HOSTS[1 - case.rank // 2]
        if case.way == "exporter":
            self._xid[host][card] = xid
        else:
            self._log(host, XID.format(boot="{boot}", bus=BUSES[card], xid=xid, words=words))
        self._log(other, case.decoy.replace("{bus}", BUSES[card]))

    def _write(self) -> None:
        self._count += 1
        for host in HOSTS:
            (self._folder / "next").write_text(page(self._xid[host], self._count))
            (self._folder / "next").replace(self._folder / f"{host}.prom")
            for line in CHATTER:
                self._log(host, line)

    def _log(self, host: str, line: str) -> None:
        with (self._folder / f"{host}.log").open("a") as log:
            log.write(line.replace("{boot}", str(int(time.monotonic() * 1e6))))


def run(folder: Path, number: int, case: Case) -> tuple[bool, bool, bool, int]:
    """(the reason is the right one, its card is named, told once, faults in all)."""

    marks = folder / "marks"
    marks.mkdir(parents=True)
    inject = [{"kind": case.kind, "rank": case.rank, "step": STRIKE}] if case.kind else []
    plan = {"steps": 70, "work_ms": 60.0, "marks": str(marks), "inject": inject}
    spec = JobSpec(
        run_id=f"telemetry-{number}", folder=str(folder / "job"), world=4, env={"N9_SIMULATED": json.dumps(plan)},
        command=[sys.executable, "-m", "ninthsky.guard.drill.simulated_rank"],
        hosts=[HostSpec(name=host, slots=2) for host in HOSTS],
        watch=Watch(action="act", selftest="off", exporter=f"{folder}/{{host}}.prom", kernel_log=f"{folder}/{{host}}.log",
                    exporter_seconds=0.5),
    )  # fmt: skip
    hosts = HostsAtWork(folder, case, marks / "0")
    hosts.start()
    events: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        if event["kind"] == "commit" and event["step"] >= STRIKE - 15:
            hosts.soon.set()

    try:
        result = run_job(spec, on_event)
    finally:
        hosts.stop.set()
        hosts.join()
    named = [event for event in events if event["kind"] == "fault.named" and event["cause"] != "warning"]
    if not case.kind:
        return True, True, not named, len(result.faults)
    fault = next((fault for fault in result.faults if fault.rank == case.rank), None)
    right = fault is not None and fault.evidence.where.get("playbook") == REASONS[case.reason][2]
    struck = f"{HOSTS[case.rank // 2]}/{case.rank % 2}"
    once = sum(event["card"] == struck for event in named) == 1
    return right, fault is not None and fault.card == struck, once, len(result.faults)


def costs() -> dict[str, float]:
    """Microseconds for a page of eight cards and forty metrics each (about 320 samples), and for a line of the kernel's log."""
    names = (
        "GPU_TEMP",
        "MEMORY_TEMP",
        "XID_ERRORS",
        "ECC_DBE_VOL_TOTAL",
        "PCIE_REPLAY_COUNTER",
        *(f"OTHER_{n}" for n in range(35)),
    )
    text = "\n".join(
        f'DCGM_FI_DEV_{name}{{gpu="{card}",pci_bus_id="00000000:{card:02X}:00.0",Hostname="x"}} {50 + card}'
        for name in names
        for card in range(8)
    )
    readings, begin = Readings(8), time.process_time()
    for number in range(100):
        readings.take(text.splitlines(), float(number))
    scrape = (time.process_time() - begin) / 100
    reader = Reader({}, lambda pid: -1)
    lines = [line for line in (parse(text.replace("{boot}", "1")) for text in CHATTER) if line is not None]
    begin = time.process_time()
    for number in range(400):
        for line in lines:
            reader.note(line, 1e3 * number)
    line_ = (time.process_time() - begin) / (400 * len(lines))
    return {"scrape_us": 1e6 * scrape, "line_us": 1e6 * line_, "agent_core": scrape / 10.0 + 2 * line_}


def main(jobs: int = 16, quiet: int = 4) -> None:
    """Prints the table, keeps benchmarks/results/telemetry.json."""
    answers = []
    with tempfile.TemporaryDirectory(prefix="n9-telemetry-") as scratch:
        for number, case in enumerate(draw(jobs, quiet)):
            answers.append(run(Path(scratch) / str(number), number, case))
            print(
                f"{number + 1} of {jobs + quiet}: {case.kind or 'quiet'} {case.way}: {answers[-1]}", file=sys.stderr, flush=True
            )
    struck, calm = answers[:jobs], answers[jobs:]
    right = sum(reason and card for reason, card, _, _ in struck)
    once = sum(once for _, _, once, _ in struck)
    low, high = wilson(right, jobs)
    figures: dict[str, float | int | bool] = {
        "simulated": True, "jobs": jobs, "right": right, "right_ci_low": low, "right_ci_high": high, "told_once": once,
        "quiet_jobs": quiet, "quiet_faults": sum(faults for *_, faults in calm), **costs(),
    }  # fmt: skip
    rows = [
        ("card named and reason joined", f"{right} of {jobs} [{low:.2f}, {high:.2f}]", "a decoy on the other host each time"),
        ("named once", f"{once} of {jobs}", ""),
        ("faults or warnings of quiet hosts", f"{figures['quiet_faults']} in {quiet} jobs", "chattering logs and figures"),
        ("a scrape of 8 cards, 40 metrics", f"{figures['scrape_us']:.0f} us", "every 10 s"),
        ("a line of the kernel's log", f"{figures['line_us']:.0f} us", "most have none to tell"),
        ("agent's share for it", f"{100 * float(figures['agent_core']):.3f} % of a core", "with two lines a second"),
    ]
    publish("telemetry", rows, figures)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:3]))
