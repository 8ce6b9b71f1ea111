from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from ninthsky.config.load import parse_settings
from ninthsky.errors import UserError
from ninthsky.evidence import find
from ninthsky.guard.faults import read_faults
from ninthsky.run.folder import RunFolder, read_json, read_lines
from ninthsky.train.account import accounts, read_history
from ninthsky.train.launch import place_faults
from tests.conftest import ROOT
from tests.train.nano import run_training

SETTINGS = """
size = "nano"
seed = 3
[model]
layers = 2
dim = 16
expert_dim = 16
dense_dim = 32
[train]
steps = 60
sequence = 16
precision = "fp32"
optimizer = "muon"
lr = 0.01
schedule = "cosine"
mixture = { en = 0.7, zh = 0.3 }
checkpoint_every = 10
[guard]
action = "act"
"""
FAULTS = """
[[train.inject]]
kind = "kill"
rank = 2
at = 0.2
[[train.inject]]
kind = "nan"
rank = 1
at = 0.7
"""


def test_faults_are_placed_within_the_run() -> None:
    settings = parse_settings(SETTINGS + FAULTS, "run.toml")
    assert [(fault.kind, fault.step) for fault in place_faults(settings, 60)] == [("kill", 12), ("nan", 42)]
    ends = parse_settings(SETTINGS + FAULTS.replace("0.2", "0.0").replace("0.7", "1.0"), "run.toml")
    assert [fault.step for fault in place_faults(ends, 60)] == [1, 57]


def test_of_a_step_done_again_the_last_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 0, "loss": 3}\n{"step": 1, "loss": 9}\n{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert [line["loss"] for line in read_history(path)] == [3, 2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Both stages, a killed rank and a NaN on the way."""
    folder = tmp_path_factory.mktemp("trained")
    run_training(folder, SETTINGS + FAULTS, "train.pretrain", "train.twin")
    return RunFolder(folder)


@pytest.mark.slow
def test_the_stage_tells_each_fault_with_its_evidence_and_cost(trained: RunFolder) -> None:
    out = trained.stage("train.pretrain")
    summary = read_json(out / "summary.json")
    assert summary is not None
    assert (summary["steps"], summary["faults"], summary["steps_redone"], summary["committed_steps_lost"]) == (60, 2, 2, 0)
    passes = summary["passes_over_the_tokens"]
    assert set(passes) == {"en", "zh"} and passes["en"] / passes["zh"] == pytest.approx(7 / 3)
    assert summary["headlines"]
    assert all("torchrun" in line["rival"] for line in summary["headlines"])
    assert summary["limits"]
    assert [fault.cause for fault in read_faults(out / "faults")] == ["exit", "nonfinite"]
    record = find([out / "evidence.jsonl"], "F-0001")
    assert record is not None
    assert "SIGKILL" in record.verdict
    assert "injected" in record.verdict
    figures = {figure["id"]: figure for figure in read_json(out / "figures.json") or []}
    assert len(figures["train-faults"]["rows"]) == 2
    losses = figures["train-losses"]
    assert losses["columns"] == ["", "all", "en", "zh", "nats per token"] and len(losses["rows"]) == 4
    assert {trace["name"] for trace in figures["train-loss"]["traces"]} == {"training loss", "F-0001 kill", "F-0002 nan"}
    for account in accounts(out):
        assert account.injection is not None
        assert account.named_seconds is not None
        assert account.again_seconds is not None
        assert 0 <= account.named_seconds <= account.again_seconds


@pytest.mark.slow
def test_the_twin_is_equal_and_a_twin_that_is_not_fails_the_run(trained: RunFolder) -> None:
    faulty, twin = (read_json(trained.stage(f"train.{name}") / "result.json") for name in ("pretrain", "twin"))
    assert faulty is not None
    assert twin is not None
    assert faulty["digest"] == twin["digest"]
    result = trained.stage("train.pretrain") / "result.json"
    before = result.read_bytes()
    result.write_bytes(before.replace(faulty["digest"].encode(), b"0" * 32))
    try:
        # The twin's own checkpoint is there, so nothing is trained again.
        with pytest.raises(UserError, match="N9-TRN-005"):
            run_training(trained.path, SETTINGS + FAULTS, "train.twin")
    finally:
        result.write_bytes(before)


@pytest.mark.slow
def test_a_twin_that_is_not_wanted_is_not_run_and_says_so(trained: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.stage("train.pretrain").parent.mkdir(parents=True)
    for name in ("data.tokens", "layout", "train.pretrain"):
        folder.stage(name).symlink_to(trained.stage(name))
    run_training(tmp_path, SETTINGS.replace("[train]", "[train]\ntwin = false"), "train.twin")
    summary: dict[str, Any] = read_json(folder.stage("train.twin") / "summary.json") or {}
    assert "not run" in summary["twin"]
    assert summary["limits"]


@pytest.mark.slow
def test_killed_at_random_points_and_started_again_it_ends_in_the_same_weights(trained: RunFolder, tmp_path: Path) -> None:
    wanted = read_json(trained.stage("train.pretrain") / "result.json")
    assert wanted is not None
    text, out = SETTINGS + FAULTS, RunFolder(tmp_path).stage("train.pretrain")
    call = f"run_training(pathlib.Path({str(tmp_path)!r}), {text!r}, 'train.pretrain')"
    code = f"import pathlib\nfrom tests.train.nano import run_training\n{call}"
    chance = random.Random(5)
    for end in (chance.randint(1, 25), chance.randint(26, 55)):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
        while max((line["step"] for line in read_lines(out / "history.jsonl")), default=-1) < end:
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    run_training(tmp_path, text, "train.pretrain")
    assert read_json(out / "result.json") == wanted
    assert [line["step"] for line in read_history(out / "history.jsonl")] == list(range(60))
    manifests = [read_json(run.stage("train.pretrain") / "manifest.json") for run in (trained, RunFolder(tmp_path))]
    assert manifests[0] is not None
    assert manifests[1] is not None
    assert manifests[0]["digest"] == manifests[1]["digest"]
    assert not [path for path in Path("/dev/shm").glob("n9-*") if tmp_path.name[:16] in path.name], (
        "nothing is left in shared memory"
    )
