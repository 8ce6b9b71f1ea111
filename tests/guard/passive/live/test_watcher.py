"""A real launcher with real ranks that know nothing of the watch: stopped, stuck, killed, each named."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ninthsky.errors import UserError
from ninthsky.evidence import find
from ninthsky.guard.faults import read_faults
from ninthsky.guard.page.acts import Acts
from ninthsky.guard.page.folder import JobFolder, find_job
from ninthsky.guard.page.view import View
from ninthsky.guard.passive.live.processes import slurm_pids
from ninthsky.guard.passive.live.record import Record
from ninthsky.guard.passive.live.watcher import Watcher, Wish
from ninthsky.guard.picture import Card
from ninthsky.guard.watch import line_of
from tests.guard.passive.live.conftest import Job, MakeLockstep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
N9 = Path(sys.executable).parent / "n9"
WAIT = 60.0


async def until(seen: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not seen():
        assert time.monotonic() < end, "it was not told"
        await asyncio.sleep(0.05)


def test_who_is_stopped_stuck_and_killed_is_named_and_nobody_else(lockstep: MakeLockstep, tmp_path: Path) -> None:
    job = lockstep(3)
    out = tmp_path / "out"
    told: list[dict[str, Any]] = []
    status = asyncio.run(_strike(job, out, told))
    assert status == 1
    trouble, *faults = read_faults(out / "faults")
    assert (trouble.cause, trouble.rank) == ("trouble", None) and "fallen off the bus" in trouble.evidence.verdict
    assert [(fault.cause, fault.rank, fault.state) for fault in faults] == [
        ("frozen", 1, "repaired"),
        ("stuck", 2, "repaired"),
        ("exit", 0, "advised"),
    ]
    stuck, killed = faults[1], faults[2]
    assert "hold_up (lockstep.py" in stuck.evidence.verdict
    assert any(fact.name == "stack of ranks 0, 1" and "all_reduce" in str(fact.value) for fact in stuck.evidence.facts)
    assert "SIGKILL" in killed.evidence.verdict
    assert any(fact.name == "ended after it" and "1 (" in str(fact.value) for fact in killed.evidence.facts)
    assert killed.step > 0, "the step is read from the ranks' own log files"
    assert all("nothing was done" in fault.evidence.remedy for fault in faults)
    assert [event["kind"] for event in told if event["kind"].startswith("job")] == ["job.failed"]
    assert all(line_of(event) for event in told)
    _read_by_all(out)


async def _strike(job: Job, out: Path, told: list[dict[str, Any]]) -> int:
    def named(kind: str) -> int:
        return sum(event["kind"] == kind for event in told)

    kernel = job.folder / "kern.log"
    kernel.write_text("[    1.000000] NVRM: Xid (PCI:0000:9b:00): 79, an old one\n")
    wish = Wish("t", lambda: [job.launcher.pid], out, kernel_log=str(kernel), patience=1.0)
    watching = asyncio.ensure_future(Watcher(wish, Record(out, told.append)).run())
    await until(lambda: named("watch.ranks") == 1)
    with kernel.open("a") as log:
        log.write("[  812.000000] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n")
    await until(lambda: named("fault.named") == 1)
    job.signal(1, signal.SIGSTOP)
    await until(lambda: named("fault.named") == 2)
    job.signal(1, signal.SIGCONT)
    job.order(2, "stick")
    await until(lambda: named("fault.named") == 3)
    job.order(2, None)
    await until(lambda: named("fault.repaired") == 2)
    job.signal(0, signal.SIGKILL)
    return await watching


def _read_by_all(out: Path) -> None:
    record = find([out / "evidence.jsonl"], "F-0003")
    assert record is not None and "stuck" in record.verdict
    shown = View(JobFolder(find_job(out)), Acts(out)).snapshot()
    assert shown["figures"]["faults"] == 4 and shown["figures"]["end"].startswith("failed")
    assert [fault["name"].split("/")[1:] for fault in shown["faults"]] == [[], ["1"], ["2"], ["0"]]
    assert not any(fault["approvable"] for fault in shown["faults"]), "a watch does nothing, so nothing can be approved"
    picture = JobFolder(out)
    picture.look()
    assert picture.picture is not None and picture.picture.cards[0] == Card.ACCUSED


def test_a_slurm_job_is_found_by_its_steps_on_this_node(
    lockstep: MakeLockstep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = lockstep(2)
    stand_in = tmp_path / "bin" / "scontrol"
    stand_in.parent.mkdir()
    said = "\\n".join(["PID JOBID STEPID LOCALID GLOBALID", f"{job.launcher.pid} 77 0 0 0", "-1 77 extern 1 -"])
    stand_in.write_text(
        f'#!/bin/sh\n[ "$*" = "listpids 77" ] && printf "{said}\\n" && exit 0\necho "Invalid job id" >&2; exit 1\n'
    )
    stand_in.chmod(0o755)
    env = {**os.environ, "PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    command = [
        str(N9),
        "guard",
        "watch",
        "--slurm-job",
        "77",
        "--folder",
        str(tmp_path / "out"),
        "--kernel-log",
        "off",
        "--json",
    ]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        assert (first["kind"], first["ranks"]) == ("watch.ranks", [0, 1])
        assert sorted(Path(path).name for path in first["logs"]) == ["rank0.log", "rank1.log"]
        job.signal(1, signal.SIGKILL)
        rest = [json.loads(line) for line in watch.stdout]
        assert watch.wait(WAIT) == 1
    assert [(event["cause"], event["rank"]) for event in rest if event["kind"] == "fault.named"] == [("exit", 1)]
    monkeypatch.setenv("PATH", env["PATH"])
    with pytest.raises(UserError, match="Invalid job id"):
        slurm_pids("78")


def test_a_process_without_ranks_and_one_that_is_not_there_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ninthsky.guard.passive.live.watcher.FIRST_RANKS_SECONDS", 0.05)
    for pid, words in ((os.getpid(), "no rank below it"), (2**22 + 1, "no process")):
        wish = Wish("t", lambda pid=pid: [pid], tmp_path / "out", kernel_log="off")  # type: ignore[misc]
        with pytest.raises(UserError, match=words) as raised:
            asyncio.run(Watcher(wish, Record(wish.folder, lambda event: None)).run())
        assert raised.value.code == "N9-GRD-050"
