from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ninthsky.guard.drill import FIRST_STEP, draw
from ninthsky.guard.spec import JobSpec, Watch, load_spec
from ninthsky.guard.watch import follow, line_of
from ninthsky.run.folder import append_line

NAMED = {
    "time": 0.0,
    "kind": "fault.named",
    "fault": "F-0001",
    "subject": "card a/0 (rank 1)",
    "verdict": "process ended",
    "step": 7,
    "facts": ["exit status = SIGKILL"],
    "ruled_out": ["out of memory"],
    "remedy": "regrouped",
}


def test_a_fault_is_told_with_its_evidence_and_unknown_events_are_left_out() -> None:
    text = line_of(NAMED)
    assert "FAULT F-0001  card a/0 (rank 1): process ended  (step 7)" in text.splitlines()[0]
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["evidence", "ruled", "remedy"]
    assert line_of({"time": 0.0, "kind": "something.new"}) == ""


def test_follow_prints_what_is_there_and_skips_a_cut_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tmp_path / "events.jsonl"
    append_line(events, {"time": 0.0, "kind": "stage.start", "stage": "train.pretrain"})
    append_line(events, NAMED)
    with events.open("a") as file:
        file.write('{"time": 0.0, "kind": "stage.do')
    follow(tmp_path, json_lines=False, forever=False)
    lines = capsys.readouterr().out.splitlines()
    assert "stage train.pretrain" in lines[0] and "FAULT F-0001" in lines[1]
    follow(tmp_path, json_lines=True, forever=False)
    assert [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()] == ["stage.start", "fault.named"]


def n9(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ninthsky", "guard", *arguments], capture_output=True, text=True, check=False)


def test_a_job_that_cannot_be_is_refused_before_anything_starts(make_job: Any) -> None:
    from ninthsky.errors import UserError

    spec = make_job("x")
    assert load_spec(spec.save()) == spec
    for changes, code in (
        ({"run_id": "../x"}, "N9-CFG-012"),
        ({"world": 5}, "N9-CFG-013"),
        ({"hosts": spec.hosts[:1] * 2}, "N9-CFG-012"),
    ):
        with pytest.raises(UserError) as caught:
            JobSpec(**{**{name: getattr(spec, name) for name in spec.__struct_fields__}, **changes})
        assert caught.value.code == code
    answer = n9("job", str(Path(spec.folder) / "nothing.json"))
    assert answer.returncode == 2 and "N9-CFG-001" in answer.stderr and "Traceback" not in answer.stderr


def test_settings_of_run_toml_reach_the_watch() -> None:
    from ninthsky.config.schema import Guard

    watch = Watch.of(Guard(action="act", hang_seconds=4.0, max_redo=3), kill_replaced=False)
    assert (watch.action, watch.hang_seconds, watch.max_redo, watch.kill_replaced) == ("act", 4.0, 3, False)


def test_the_same_seed_draws_the_same_drill() -> None:
    assert draw(5, 8, 3) == draw(5, 8, 3) != draw(5, 8, 4)
    assert draw(5, 8, 3)[0].step == FIRST_STEP


@pytest.mark.slow
def test_a_drill_names_every_fault_and_its_files_can_be_read(make_job: Any, tmp_path: Path) -> None:
    answer = n9("drill", "--faults", "2", "--seed", "3", "--json")
    assert answer.returncode == 0, answer.stderr
    sheet = json.loads(answer.stdout)
    assert (sheet["faults"], sheet["exact"], sheet["wrong"], sheet["committed_steps_lost"]) == (2, 2, 0, 0)
    job = n9("job", str(make_job("cli", [{"kind": "kill", "rank": 2, "step": 12}]).save()))
    assert job.returncode == 0 and "repaired F-0001" in job.stdout
    told = n9("faults", str(tmp_path / "cli"))
    assert "F-0001: card host-1/0 (rank 2): process ended by SIGKILL" in told.stdout
    (fault,) = map(json.loads, n9("faults", str(tmp_path / "cli"), "--json").stdout.splitlines())
    assert fault["evidence"]["where"]["card"] == "host-1/0"
    assert "Traceback" not in told.stderr
