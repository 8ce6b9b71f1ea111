from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ninthsky.config import Settings
from ninthsky.errors import UserError
from ninthsky.run.engine import run_stage
from ninthsky.run.folder import RunFolder, read_json, write_json
from ninthsky.run.progress import PlainScreen
from ninthsky.signal import baselines
from ninthsky.signal.cli import app
from ninthsky.signal.report import Outcome, verdict
from ninthsky.signal.stages import STAGES
from ninthsky.signal.tasks import TASKS, Prepared, prepare, task_named
from tests.align.small import settings, upstream

SHORT = "[signal]\nsteps = 12\n"


def learn(run: Path, prepared: Settings) -> None:
    (stage,) = STAGES
    run_stage(RunFolder(run), prepared, stage, PlainScreen(), fresh=False)


def digest(run: Path) -> str:
    manifest = read_json(run / "stages" / "signal.learn" / "manifest.json")
    assert manifest is not None
    return str(manifest["digest"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("signal")
    prepared = settings(SHORT)
    upstream(run, prepared)
    learn(run, prepared)
    write_json(run / "settings.json", prepared.model_dump(mode="json"))
    return run


@pytest.fixture(scope="module")
def digits() -> Prepared:
    return prepare(TASKS["digits"], 7)


def outcome(data: Prepared, own: float, scratch: float, rival: float) -> Outcome:
    """An outcome in which each arm answers that share of the rows rightly."""
    right = [data.answers[row] for row in data.test]

    def said(share: float) -> list[str]:
        return [text if place < share * len(right) else "none" for place, text in enumerate(right)]

    hits = np.arange(len(right)) < rival * len(right)
    return Outcome(data, {"checkpoint": said(own), "scratch": said(scratch)}, {"rival": hits}, hits)


@pytest.mark.slow
def test_results_hold_every_line(finished: Path) -> None:
    stage = finished / "stages" / "signal.learn"
    results = json.loads((stage / "results.json").read_text())
    assert set(results) == {"digits", "modulation"}
    assert results["digits"]["origin"] == "real" and results["modulation"]["origin"] == "synthetic"
    for found in results.values():
        assert {"decoder, from the checkpoint", "decoder, from scratch", "majority", "shortcut control"} < set(found["scores"])
        for score in found["scores"].values():
            assert 0 <= score["low"] <= score["accuracy"] <= score["high"] <= 1
    assert len((stage / "answers.jsonl").read_text().splitlines()) == sum(found["test"] for found in results.values())
    summary = read_json(stage / "summary.json")
    assert summary is not None and summary["headlines"][0]["synthetic"] and summary["signal_steps"] == 12
    assert not list(stage.glob("work-*"))


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_in_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    prepared = settings(SHORT)
    upstream(tmp_path, prepared)
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.align.small import settings\n"
        "from tests.signal.test_learn import SHORT, learn\nlearn(Path(sys.argv[1]), settings(SHORT))\n"
    )
    job = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        while job.poll() is None and not (tmp_path / "stages" / "signal.learn" / "work-scratch").exists():
            time.sleep(0.01)
        assert job.poll() is None
        os.kill(job.pid, signal.SIGKILL)
    finally:
        job.wait()
    learn(tmp_path, prepared)
    assert digest(tmp_path) == digest(finished)


@pytest.mark.slow
def test_a_run_is_asked_by_the_command(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["answer", "digits", "--run", str(finished), "--row", "2", "--json"], result_action="return_value")
    found = json.loads(capsys.readouterr().out)
    rows = prepare(TASKS["digits"], 7)
    assert found["truth"] == rows.answers[rows.test[2]] and found["right"] == (found["said"] == found["truth"])
    with pytest.raises(UserError, match="rows go from 0 to 449"):
        app(["answer", "digits", "--run", str(finished), "--row", "450"], result_action="return_value")


def test_rivals_and_the_control(digits: Prepared) -> None:
    assert baselines.score(baselines.rivals(digits, 7)["nearest neighbours"], digits).accuracy > 0.95
    assert baselines.score(baselines.control(digits, 7), digits).accuracy < 0.35
    assert baselines.majority(digits).balanced == pytest.approx(0.1)


def test_a_label_that_leaks_shows_in_the_control(digits: Prepared) -> None:
    """Trap: the receiver leaks into the label. Power made to tell the class is found by the control alone."""
    from dataclasses import replace

    leaky = replace(digits, scale=digits.scale * 10.0**digits.rows.labels)
    assert baselines.score(baselines.control(leaky, 7), leaky).accuracy > 0.9


def test_the_interval_counts_recordings() -> None:
    data = prepare(TASKS["modulation"], 7)
    found = baselines.score(np.ones(len(data.test), bool), data)
    assert found.n == 2 * found.recordings


def test_cumulants_tell_what_they_should() -> None:
    n = np.arange(256)
    bpsk, tone = (1.0 - 2 * (n // 8 % 2))[None].astype(complex), np.exp(0.1j * n)[None]
    both = baselines.cumulants(np.concatenate([bpsk, tone]))
    assert both[0, 1] == pytest.approx(1) and both[0, 0] < 0.8  # the square of BPSK is a line, BPSK itself none
    assert both[1, 8] == pytest.approx(0, abs=1e-9)  # a tone's envelope does not vary


@pytest.mark.parametrize(
    ("own", "scratch", "rival", "words"),
    [
        (0.9, 0.5, 0.7, ["above the same from scratch", "above rival"]),
        (0.5, 0.9, 0.52, ["below the same from scratch", "not to be told from rival"]),
        (0.5, 0.5, 0.99, ["not to be told from the same from scratch", "below rival"]),
    ],
)
def test_whoever_wins_is_said(digits: Prepared, own: float, scratch: float, rival: float, words: list[str]) -> None:
    text = verdict(outcome(digits, own, scratch, rival))
    assert all(word in text for word in words), text


def test_answers_outside_the_classes_are_wrong(digits: Prepared) -> None:
    found = outcome(digits, 0.6, 0.6, 0.6)
    assert found.outside("checkpoint") == sum(~found.arms["checkpoint"]) == 180


def test_a_task_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="there are digits, modulation"):
        task_named("posture")


def test_list_command(capsys: pytest.CaptureFixture[str]) -> None:
    app(["list", "--json"], result_action="return_value")
    found = {task["task"]: task for task in json.loads(capsys.readouterr().out)}
    assert found["digits"]["origin"] == "real" and found["modulation"]["split_by"] == "recording"
