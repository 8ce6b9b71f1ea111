from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from ninthsky.guard.job import HostSpec, JobResult
from ninthsky.model.files import load
from ninthsky.run.folder import read_lines
from ninthsky.train.account import read_history
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.inject import Fault, struck
from ninthsky.train.state import checkpoint
from ninthsky.train.step.recipe import Recipe
from tests.guard.test_partition import Network, network
from tests.train.nano import make_job, run_guarded, write_tokens

__all__ = ["network"]  # a fixture
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STEPS = 80


@dataclass
class Ran:
    """A finished job and all that it left."""

    folder: Path
    result: JobResult
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        digests = {result["digest"] for result in self.result.results.values()}
        assert len(digests) == 1
        assert len(self.result.results) == 4
        return str(digests.pop())


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Ran:
    """The same steps, and nothing happens."""
    folder = tmp_path_factory.mktemp("twin") / "twin"
    return Ran(folder, run_guarded(make_job(tokens, folder, STEPS), spares=0))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Ran:
    """A kill, a freeze and a NaN, one after the other."""
    folder = tmp_path_factory.mktemp("faulty") / "faulty"
    faults = [Fault(0, "kill", 2, 10), Fault(1, "freeze", 1, 35), Fault(2, "nan", 3, 60)]
    ran = Ran(folder, run_guarded(make_job(tokens, folder, STEPS, faults), on_event := [].append))  # type: ignore[arg-type,var-annotated]
    ran.events = on_event.__self__  # type: ignore[attr-defined]
    return ran


def test_each_fault_is_named_and_none_costs_a_committed_step(faulty: Ran) -> None:
    faults = faulty.result.faults
    assert [(fault.cause, fault.rank, fault.state) for fault in faults] == [
        ("exit", 2, "repaired"), ("frozen", 1, "repaired"), ("nonfinite", 3, "repaired"),
    ]  # fmt: skip
    assert all(fault.injected and fault.committed_steps_lost == 0 and fault.steps_redone == 1 for fault in faults)
    assert faults[0].replaced_by and faults[1].replaced_by
    assert [mark.fault.kind for mark in struck(faulty.folder)] == ["kill", "freeze", "nan"]


def test_injections_are_told_as_such(faulty: Ran) -> None:
    told = [event for event in read_lines(faulty.folder / "events.jsonl") if event["kind"] == "inject"]
    assert [(event["fault"], event["rank"], event["step"]) for event in told] == [
        ("kill", 2, 10),
        ("freeze", 1, 35),
        ("nan", 3, 60),
    ]
    assert all(event["injected"] for event in told)


def test_the_weights_equal_those_of_the_faultless_twin(faulty: Ran, twin: Ran) -> None:
    assert twin.result.faults == []
    assert faulty.digest == twin.digest
    ours, theirs = (read_history(ran.folder / "history.jsonl") for ran in (faulty, twin))
    assert [line["step"] for line in ours] == list(range(STEPS))
    assert [(line["loss"], line["norm"]) for line in ours] == [(line["loss"], line["norm"]) for line in theirs]
    assert ours[-1]["loss"] < ours[0]["loss"]


def test_export_and_checkpoint_hold_the_final_weights(faulty: Ran) -> None:
    good, refused = checkpoint.newest_good(faulty.folder / "checkpoint")
    assert good is not None and good.name == f"step-{STEPS}" and not refused
    model = load(faulty.folder / "export")
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in model.state_dict().values():
        tensor.zero_()
    # Written by four ranks of which two had practised as another one: each part must lie where it belongs.
    assert checkpoint.load_weights(model, good) == STEPS
    assert all(tensor.equal(wanted[name]) for name, tensor in model.state_dict().items())


def test_a_pipeline_s_lost_rank_is_replaced_from_its_replica(tmp_path: Path, tokens: Path) -> None:
    """State differs from stage to stage; the spare takes its own."""
    cut: dict[str, Any] = {"mesh": Mesh(pp=2, dp_shard=2), "recipe": Recipe(micro_batches=2)}
    twin = run_guarded(make_job(tokens, tmp_path / "twin", 20, **cut), spares=0)
    result = run_guarded(make_job(tokens, tmp_path / "killed", 20, [Fault(0, "kill", 2, 12)], **cut))
    (fault,) = result.faults
    assert (fault.cause, fault.rank, fault.steps_redone, fault.committed_steps_lost) == ("exit", 2, 1, 0)
    assert {said["digest"] for ran in (twin, result) for said in ran.results.values()} == {twin.results[0]["digest"]}


def damage(hosts: list[Path], *names: str) -> None:
    """One bit of held replicas, where they lie."""
    for path in [host / "held" / name for host in hosts for name in names]:
        with path.open("r+b") as file:
            byte = os.pread(file.fileno(), 1, 1000)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), 1000)


def test_a_damaged_replica_is_replaced_by_its_copy_then_by_the_older_then_by_the_disk(
    tmp_path: Path, tokens: Path, twin: Ran
) -> None:
    folder, done = tmp_path / "chain", threading.Event()
    job = make_job(tokens, folder, STEPS, [Fault(0, "kill", 2, 27), Fault(1, "kill", 1, 67)], replicate_every=10)

    def reached(step: int) -> list[Path]:
        while not done.is_set() and max((line["step"] for line in read_lines(folder / "history.jsonl")), default=-1) < step:
            time.sleep(0.002)
        return sorted(Path("/dev/shm").glob(f"n9-t-{os.getpid()}-chain-host-*"))

    def strike() -> None:
        hosts = reached(21)
        damage(hosts, "shard-0-19")  # so the older one has to do,
        damage(hosts[:1], "shard-1-9")  # and of that, rank 1's copy on the other host
        damage(reached(61), "shard-3-59", "shard-3-49")

    thread = threading.Thread(target=strike)
    thread.start()
    events: list[dict[str, Any]] = []
    try:
        result = run_guarded(job, events.append)
    finally:
        done.set()
        thread.join()
    resumed = [(event["resume_step"], event["disk"]) for event in events if event["kind"] == "joined"]
    assert resumed == [(-1, False), (9, False), (59, True)]
    costs = [(fault.cause, fault.steps_redone, fault.committed_steps_lost) for fault in result.faults]
    assert costs == [("exit", 18, 10), ("exit", 8, 0)]
    assert result.results[0]["digest"] == twin.digest


def test_without_a_card_left_three_of_four_ranks_go_on(tmp_path: Path, tokens: Path, twin: Ran) -> None:
    """Their state comes from all four ranks' copies, cut anew, and they read the same batches."""
    fewer = [Mesh(dp_shard=3), Mesh(dp_shard=2, ep=2)]
    job = make_job(tokens, tmp_path / "fewer", STEPS, [Fault(0, "kill", 2, 40)], fewer=fewer)
    events: list[dict[str, Any]] = []
    result = run_guarded(job, events.append, spares=0, spare_seconds=0.0, slow_ratio=20.0)
    (fault,) = result.faults
    assert (fault.cause, fault.rank, fault.state, fault.committed_steps_lost) == ("exit", 2, "repaired", 0)
    assert "shrunk from 4 to 3 ranks" in fault.evidence.remedy
    resumed = [(event["resume_step"], event["disk"]) for event in events if event["kind"] == "joined"]
    assert resumed == [(-1, False), (39, False)]
    assert len(result.results) == 3
    ours, theirs = (read_history(ran / "history.jsonl") for ran in (tmp_path / "fewer", twin.folder))
    assert [line["step"] for line in ours] == list(range(STEPS))
    assert [line["tokens"] for line in ours] == [line["tokens"] for line in theirs], "every batch whole"
    assert ours[39]["loss"] == theirs[39]["loss"] and abs(ours[-1]["loss"] - theirs[-1]["loss"]) < 1e-5
    wanted = load(twin.folder / "export").state_dict()
    for name, tensor in load(tmp_path / "fewer" / "export").state_dict().items():
        assert torch.allclose(tensor, wanted[name], rtol=1e-5, atol=1e-5), name  # sums in another order


def test_a_slow_rank_is_named_and_replaced(tmp_path: Path, tokens: Path, twin: Ran) -> None:
    result = run_guarded(make_job(tokens, tmp_path / "slow", STEPS, [Fault(0, "slow", 0, 15, factor=4.0)]))
    assert [(fault.cause, fault.rank, fault.state, fault.injected) for fault in result.faults] == [
        ("slow", 0, "repaired", True)
    ]
    assert result.faults[0].committed_steps_lost == 0
    assert result.results[0]["digest"] == twin.digest


def test_a_frozen_rank_that_is_never_killed_is_refused_when_it_thaws(tmp_path: Path, tokens: Path, twin: Ran) -> None:
    folder = tmp_path / "thaw"
    seen: list[dict[str, Any]] = []
    before: list[int] = []

    def thaw(event: dict[str, Any]) -> None:
        seen.append(event)
        if event["kind"] == "fault.repaired":
            (frozen,) = (line["pid"] for line in read_lines(folder / "events.jsonl") if line["kind"] == "inject")
            before.append(len(list(read_lines(folder / "history.jsonl"))))
            os.kill(frozen, signal.SIGCONT)

    # Rank 0: the one that writes history, checkpoints and the export.
    job = make_job(tokens, folder, STEPS, [Fault(0, "freeze", 0, 15)])
    result = run_guarded(job, thaw, kill_replaced=False)
    assert [(fault.cause, fault.rank, fault.committed_steps_lost) for fault in result.faults] == [("frozen", 0, 0)]
    ended = [event for event in seen if event["kind"] == "process.ended" and event.get("replaced")]
    assert [event["status"] for event in ended] == ["status 3"]
    lines = list(read_lines(folder / "history.jsonl"))
    assert before and before[0] >= 15
    assert [line["generation"] for line in lines] == sorted(line["generation"] for line in lines), (
        "nothing came late from generation 1"
    )
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert result.results[0]["digest"] == twin.digest


def test_ranks_blocked_on_a_host_that_is_cut_off_are_freed(
    tmp_path: Path,
    tokens: Path,
    twin: Ran,
    network: Network,
) -> None:
    folder = tmp_path / "cut"
    hosts = [
        HostSpec(name=f"host-{host}", slots=2, spares=2, address=network.address(host), launch=("ip", "netns", "exec", name))
        for host, name in enumerate(network.names)
    ]
    done = threading.Event()

    def cut() -> None:
        while not done.is_set() and sum(1 for _ in read_lines(folder / "history.jsonl")) < 10:
            time.sleep(0.005)
        network.pass_packets(1, False)

    def mend(event: dict[str, Any]) -> None:
        if event["kind"] == "fault.repaired":
            network.pass_packets(1, True)

    watcher = threading.Thread(target=cut)
    watcher.start()
    try:
        result = run_guarded(make_job(tokens, folder, STEPS), mend, hosts=hosts, bind=f"{network.subnet}.1")
    finally:
        done.set()
        watcher.join()
    # No reset comes from a cut host: without the abort of their sockets ranks 0 and 1 would wait for ever.
    assert [(fault.cause, fault.host, fault.committed_steps_lost) for fault in result.faults] == [("host", "host-1", 0)]
    assert result.results[0]["digest"] == twin.digest
    assert {said["host"] for said in result.results.values()} == {"host-0"}


def test_a_bad_value_that_stays_with_its_card_costs_the_card_its_place(tmp_path: Path, tokens: Path) -> None:
    # At the first try, at the redo, and with another rank's samples.
    faults = [Fault(attempt, "nan", 1, 12, attempt) for attempt in range(3)]
    result = run_guarded(make_job(tokens, tmp_path / "card", 20, faults))
    (fault,) = result.faults
    assert (fault.cause, fault.rank, fault.state) == ("nonfinite", 1, "repaired")
    assert fault.card == "host-0/1" and fault.replaced_by not in {"", fault.card}
    assert not any(line["skipped"] for line in read_history(tmp_path / "card" / "history.jsonl"))


def test_a_bad_value_that_stays_with_its_samples_is_skipped(tmp_path: Path, tokens: Path) -> None:
    # At the first try, at the redo, and on the rank that was given these samples then.
    faults = [Fault(0, "nan", 1, 12, 0), Fault(1, "nan", 1, 12, 1), Fault(2, "nan", 0, 12, 2)]
    result = run_guarded(make_job(tokens, tmp_path / "data", 20, faults))
    history = read_history(tmp_path / "data" / "history.jsonl")
    assert [line["step"] for line in history if line["skipped"]] == [12]
    assert [line["step"] for line in history] == list(range(20))
    assert result.results[0]["steps"] == 20
    (fault,) = result.faults
    assert "the data" in fault.evidence.verdict


def test_a_finished_job_that_is_started_again_only_tells_its_result(tokens: Path, twin: Ran) -> None:
    begin = time.time()
    result = run_guarded(make_job(tokens, twin.folder, STEPS), spares=0)
    assert result.results[0]["digest"] == twin.digest
    assert all(line["time"] < begin for line in read_lines(twin.folder / "history.jsonl")), "no step was done again"
