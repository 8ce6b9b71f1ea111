"""Whole jobs with real processes: controller, two agents, four simulated ranks and two spares over the real protocol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ninthsky.errors import UserError
from ninthsky.guard.agent.owner import claim_folder
from ninthsky.guard.agent.store import remove_folder
from ninthsky.guard.controller.journal import Journal
from ninthsky.guard.job import JobResult, JobSpec, run_job
from ninthsky.run import folder

pytestmark = pytest.mark.slow


def run(spec: JobSpec) -> tuple[JobResult, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    result = run_job(spec, events.append)
    assert not list(Path(spec.memory).glob(f"n9-{spec.run_id}-*")), "files were left in shared memory"
    return result, events


def digests(result: JobResult) -> list[str]:
    return [result.results[rank]["digest"] for rank in range(4)]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory, job_maker: Any) -> list[str]:
    """Digests of the faultless job."""
    result, events = run(job_maker(tmp_path_factory.mktemp("twin"))("twin"))
    assert not result.faults and not [event for event in events if event["kind"].startswith("fault")]
    return digests(result)


def read_json(path: Path) -> dict[str, Any]:
    value = folder.read_json(path)
    assert isinstance(value, dict)
    return value


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["kind"] for event in events]


def test_a_killed_rank_is_replaced_by_a_spare_of_its_host(make_job: Any, twin: list[str]) -> None:
    result, _ = run(make_job("kill", [{"kind": "kill", "rank": 2, "step": 12}]))
    (fault,) = result.faults
    assert (fault.cause, fault.rank, fault.host, fault.card, fault.step) == ("exit", 2, "host-1", "host-1/0", 12)
    assert fault.injected and fault.state == "repaired" and fault.replaced_by == "host-1/2"
    assert fault.committed_steps_lost == 0 and fault.steps_redone <= 2
    assert "SIGKILL" in fault.evidence.verdict
    marks = [
        fault.timeline.named,
        fault.timeline.aborted,
        fault.timeline.assigned,
        fault.timeline.joined,
        fault.timeline.trained,
    ]
    assert None not in marks and marks == sorted(marks)  # type: ignore[type-var]
    assert digests(result) == twin


def test_a_frozen_rank_is_named_not_its_victims(make_job: Any, twin: list[str]) -> None:
    result, _ = run(make_job("freeze", [{"kind": "freeze", "rank": 1, "step": 12}]))
    (fault,) = result.faults
    assert (fault.cause, fault.rank, fault.card) == ("frozen", 1, "host-0/1")
    assert fault.evidence.confidence == 1.0
    assert any(fact.name == "process state" and fact.value == "T" for fact in fault.evidence.facts)
    assert digests(result) == twin


def test_a_rank_stuck_in_code_is_named_by_sequence_numbers(make_job: Any, twin: list[str]) -> None:
    result, _ = run(make_job("stuck", [{"kind": "stuck", "rank": 3, "step": 12}]))
    (fault,) = result.faults
    assert (fault.cause, fault.rank) == ("stuck", 3)
    assert any(fact.name == "collectives behind its group" for fact in fault.evidence.facts)
    assert digests(result) == twin


def test_bad_gradients_once_the_step_is_redone(make_job: Any, twin: list[str]) -> None:
    result, events = run(make_job("nan", [{"kind": "nan", "rank": 3, "step": 12}]))
    (fault,) = result.faults
    assert (fault.cause, fault.rank, fault.step, fault.steps_redone) == ("nonfinite", 3, 12, 1)
    assert kinds(events).count("generation") == 1, "a redo needs no regroup"
    assert digests(result) == twin


def test_bad_gradients_of_a_card_the_card_is_replaced(make_job: Any, twin: list[str]) -> None:
    fault_plan = {"kind": "nan", "rank": 3, "step": 12, "sticks": "card", "card": "host-1/1"}
    result, _ = run(make_job("card", [fault_plan]))
    (fault,) = result.faults
    assert (fault.cause, fault.rank, fault.replaced_by) == ("nonfinite", 3, "host-1/2")
    assert "the card" in fault.evidence.verdict and "moved on by one rank" in fault.evidence.remedy
    assert digests(result) == twin


def test_bad_gradients_of_the_data_the_step_is_skipped(make_job: Any, twin: list[str]) -> None:
    result, events = run(make_job("data", [{"kind": "nan", "rank": 3, "step": 12, "sticks": "data"}]))
    (fault,) = result.faults
    assert "the data" in fault.evidence.verdict and "step skipped" in fault.evidence.remedy
    assert kinds(events).count("generation") == 1, "no card was replaced for bad data"
    assert digests(result) != twin, "the twin applied the step"


def test_a_slow_rank_is_named_and_replaced(make_job: Any, twin: list[str]) -> None:
    plan = {"steps": 60}
    result, _ = run(make_job("slow", [{"kind": "slow", "rank": 0, "step": 8, "factor": 10.0}], plan=plan, slow_ratio=2.0))
    (fault,) = result.faults
    assert (fault.cause, fault.rank, fault.card) == ("slow", 0, "host-0/0")
    assert any("clock" in fact.source for fact in fault.evidence.facts)


def test_two_ranks_killed_at_once(make_job: Any, twin: list[str]) -> None:
    result, _ = run(make_job("two", [{"kind": "kill", "rank": 0, "step": 12}, {"kind": "kill", "rank": 3, "step": 12}]))
    assert {fault.rank for fault in result.faults} == {0, 3}
    assert all(fault.state == "repaired" and fault.committed_steps_lost == 0 for fault in result.faults)
    assert digests(result) == twin


def test_without_a_spare_the_process_is_started_again(make_job: Any, twin: list[str]) -> None:
    result, events = run(make_job("no-spare", [{"kind": "kill", "rank": 1, "step": 12}], spares=0))
    assert "spare.wanted" in kinds(events)
    assert result.faults[0].replaced_by == "host-0/1"
    assert digests(result) == twin


def test_advice_only_nothing_is_done(make_job: Any) -> None:
    spec = make_job("advise", [{"kind": "kill", "rank": 2, "step": 12}], action="advise")
    with pytest.raises(UserError, match="advise") as caught:
        run(spec)
    assert caught.value.code == "N9-GRD-001"
    written = read_json(Path(spec.folder) / "result.json")
    assert written["generation"] == 1 and not written["ok"]
    fault = read_json(Path(spec.folder) / "faults" / "F-0001.json")
    assert fault["state"] == "advised" and fault["rank"] == 2 and fault["evidence"]["remedy"].startswith("advised only")


def test_an_error_of_the_program_is_not_retried_for_ever(make_job: Any) -> None:
    inject = [{"kind": "error", "rank": 2, "step": 12}, {"kind": "error", "rank": 2, "step": 12}]
    spec = make_job("program", inject)
    with pytest.raises(UserError, match="another card too"):
        run(spec)
    assert read_json(Path(spec.folder) / "result.json")["generation"] == 2


def test_a_thawed_rank_that_was_replaced_writes_nothing_and_leaves(make_job: Any, twin: list[str]) -> None:
    """It is never killed: it must be the fence that holds."""
    plan = {"steps": 120, "checkpoint_every": 1}
    spec = make_job("thaw", [{"kind": "freeze", "rank": 1, "step": 10}], plan=plan, kill_replaced=False, hang_seconds=1.0)
    thawed: list[int] = []
    ended: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["kind"] == "fault.repaired":
            pid = frozen_pid(spec, event["was"])
            thawed.append(pid)
            os.kill(pid, signal.SIGCONT)
        if event["kind"] == "process.ended" and event["pid"] in thawed:
            ended.append(event)

    result = run_job(spec, on_event)
    assert len(thawed) == 1 and result.faults[0].cause == "frozen"
    assert [(event["status"], event["replaced"]) for event in ended] == [("status 3", True)]
    written = list((Path(spec.folder) / "checkpoints").glob(f"rank-1-step-*-pid-{thawed[0]}"))
    assert {int(path.name.split("-")[3]) for path in written} <= set(range(10)), "it wrote a checkpoint after it was replaced"
    assert len(list((Path(spec.folder) / "checkpoints").glob("rank-1-step-119-*"))) == 1


def frozen_pid(spec: JobSpec, card: str) -> int:
    """The stopped process of a card, by what the journal says was placed first."""
    for entry in Journal(Path(spec.folder) / "journal.jsonl").entries:
        if entry["kind"] == "places":
            for host, slot, pid in entry["places"]:
                if f"{host}/{slot}" == card:
                    return int(pid)
    raise AssertionError(card)


def test_the_controller_is_killed_and_goes_on_from_its_journal(make_job: Any, twin: list[str]) -> None:
    spec = make_job("restart", [{"kind": "kill", "rank": 2, "step": 24}], plan={"work_ms": 300.0})
    killed: list[int] = []

    events: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        if event["kind"] == "commit" and event["step"] >= 5 and not killed:
            killed.append(read_json(Path(spec.folder) / "controller.json")["pid"])
            os.kill(killed[0], signal.SIGKILL)

    result = run_job(spec, on_event)
    assert killed and "controller.recovered" in kinds(events)
    assert [event["generation"] for event in events if event["kind"] == "generation"] == [1, 2], "training went on meanwhile"
    assert [(fault.cause, fault.rank) for fault in result.faults] == [("exit", 2)]
    assert digests(result) == twin


def test_controller_and_a_rank_killed_together(make_job: Any, twin: list[str]) -> None:
    spec = make_job("both", [{"kind": "kill", "rank": 2, "step": 20}], plan={"work_ms": 60.0})
    killed: list[int] = []
    stop = threading.Event()

    def kill_controller() -> None:
        mark = Path(spec.folder) / "marks" / "0"
        while not stop.is_set():
            if mark.exists():
                killed.append(read_json(Path(spec.folder) / "controller.json")["pid"])
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.001)

    watcher = threading.Thread(target=kill_controller)
    watcher.start()
    try:
        result = run_job(spec)
    finally:
        stop.set()
        watcher.join()
    assert killed and result.committed >= 28
    assert digests(result) == twin


def test_nothing_outlives_a_killed_driver(make_job: Any) -> None:
    spec = make_job("orphan", plan={"steps": 100_000})
    command = [sys.executable, "-m", "ninthsky", "guard", "job", str(spec.save())]
    driver = subprocess.Popen(command, process_group=0, stdout=subprocess.DEVNULL)
    journal = Path(spec.folder) / "journal.jsonl"
    wait_until(lambda: journal.exists() and b'"joined"' in journal.read_bytes(), "the job to run")
    pids = [pid for entry in Journal(journal).entries if entry["kind"] == "places" for _, _, pid in entry["places"]]
    pids.append(read_json(Path(spec.folder) / "controller.json")["pid"])
    driver.kill()
    driver.wait()
    wait_until(
        lambda: not any(Path(f"/proc/{pid}/stat").exists() and not is_zombie(pid) for pid in pids), "every process to end"
    )
    wait_until(lambda: not list(Path(spec.memory).glob(f"n9-{spec.run_id}-*")), "the agents to clear shared memory")


def test_ctrl_c_ends_the_job_without_a_fault(make_job: Any) -> None:
    """As a terminal does it: SIGINT to the driver's whole process group. No rank is in it, and the watcher ends before them."""
    spec = make_job("ctrl-c", plan={"steps": 100_000})
    command = [sys.executable, "-m", "ninthsky", "guard", "job", str(spec.save())]
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = Path(spec.folder) / "journal.jsonl"
    wait_until(lambda: journal.exists() and b'"joined"' in journal.read_bytes(), "the job to run")
    pids = [pid for entry in Journal(journal).entries if entry["kind"] == "places" for _, _, pid in entry["places"]]
    pids.append(read_json(Path(spec.folder) / "controller.json")["pid"])
    assert all(os.getsid(pid) != driver.pid for pid in pids)
    os.killpg(driver.pid, signal.SIGINT)
    driver.wait(30)
    assert all(is_zombie(pid) for pid in pids), "nothing runs on when the driver has ended"
    events = list(folder.read_lines(Path(spec.folder) / "events.jsonl"))
    assert not [event for event in events if event["kind"].startswith("fault")]
    assert read_json(Path(spec.folder) / "result.json")["reason"].startswith("stopped by a person")


def is_zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def wait_until(holds: Any, what: str) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, f"waited 30 s for {what}"
        time.sleep(0.05)


def test_a_second_job_with_the_same_run_id_is_refused(make_job: Any, tmp_path: Path) -> None:
    claim_folder(tmp_path / "mine")
    with pytest.raises(UserError) as caught:
        claim_folder(tmp_path / "mine")
    assert caught.value.code == "N9-GRD-003"
    spec = make_job("second")
    claim_folder(spec.memory_folder("host-1"))
    try:
        with pytest.raises(UserError) as caught:
            run_job(spec)
        assert caught.value.code == "N9-GRD-003" and not (Path(spec.folder) / "controller.json").exists()
        assert spec.memory_folder("host-1").exists(), "the other job keeps its files"
    finally:
        remove_folder(spec.memory_folder("host-1"))
    (tmp_path / "mine" / "agent.pid").write_text("1 12345\n")  # a dead agent's: pid 1 started at another time
    (tmp_path / "mine" / "leftover").touch()
    claim_folder(tmp_path / "mine")
    assert not (tmp_path / "mine" / "leftover").exists()
