from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ninthsky.config.load import parse_settings
from ninthsky.config.schema import Settings
from ninthsky.errors import UserError
from ninthsky.run.engine import in_order, plan, run_stages
from ninthsky.run.folder import HashedFile, RunFolder, read_json, read_lines
from ninthsky.run.progress import JsonScreen, PlainScreen, duration
from ninthsky.run.stage import Stage
from tests.run.toy import STAGES


def settings(**overrides: object) -> Settings:
    return parse_settings('name = "toy"', "run.toml", dict(overrides))


def reasons(folder: RunFolder, using: Settings, stages: tuple[Stage, ...] = STAGES) -> dict[str, str]:
    return {d.stage.name: d.reason for d in plan(folder, using, list(stages)) if d.runs}


def run(folder: RunFolder, using: Settings) -> None:
    run_stages(folder, using, list(STAGES), PlainScreen())


def digests(folder: RunFolder) -> dict[str, str]:
    return {stage.name: read_json(folder.stage(stage.name) / "manifest.json")["digest"] for stage in STAGES}  # type: ignore[index]


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert set(reasons(folder, settings())) == {"toy.numbers", "toy.sum"}
    run(folder, settings())
    assert (folder.stage("toy.sum") / "sum.txt").read_text() == str(7 * sum(range(20)))
    assert reasons(folder, settings()) == {}
    before = {path: path.stat().st_mtime_ns for path in folder.stage("toy.numbers").rglob("*")}
    run(folder, settings())
    assert before == {path: path.stat().st_mtime_ns for path in folder.stage("toy.numbers").rglob("*")}


def test_only_what_depends_on_a_change_runs_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    run(folder, settings())
    assert reasons(folder, settings(**{"radio.epsilon": 0.1})) == {"toy.sum": "radio.epsilon 0.05 -> 0.1"}
    changed = reasons(folder, settings(seed=8))
    assert changed == {"toy.numbers": "seed 7 -> 8", "toy.sum": "needs `toy.numbers`, which runs"}
    assert reasons(folder, settings(**{"align.beta": 0.2})) == {}
    newer = (replace(STAGES[0], version=2), STAGES[1])
    assert reasons(folder, settings(), newer)["toy.numbers"] == "its version went from 1 to 2"


def test_a_missing_or_cut_output_is_a_reason(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    run(folder, settings())
    victim = folder.stage("toy.sum") / "sum.txt"
    victim.write_text("1")
    assert "missing or was cut" in reasons(folder, settings())["toy.sum"]


def test_changed_input_files_are_a_reason(tmp_path: Path) -> None:
    counters = tmp_path / "counters.csv"
    counters.write_text("ts,load")
    stages = (replace(STAGES[0], files=("radio.counters",)), STAGES[1])
    using = settings(**{"radio.counters": str(counters)})
    folder = RunFolder(tmp_path / "run")
    run_stages(folder, using, list(stages), PlainScreen())
    assert reasons(folder, using, stages) == {}
    counters.write_text("ts,load\n0,1")
    assert reasons(folder, using, stages)["toy.numbers"].startswith(f"files of {counters}")


def test_times_are_no_part_of_a_digest(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    run(first, settings())
    run(second, settings())
    assert digests(first) == digests(second)
    third = RunFolder(tmp_path / "c")
    run(third, settings(seed=9))
    assert digests(third) != digests(first)


def test_killed_ten_times_at_random_points_the_result_is_the_same(tmp_path: Path) -> None:
    whole = RunFolder(tmp_path / "whole")
    run(whole, settings())
    program = (
        "from pathlib import Path; from tests.run.test_engine import *; "
        f"run(RunFolder(Path({str(tmp_path / 'killed')!r})), settings())"
    )
    chance = random.Random(2)
    for number in range(10):
        place = f"{chance.choice(['before', 'after'])}-{chance.randrange(20)}"
        environment = os.environ | {"TOY_DIES_AT": place, "TOY_MARKER": str(tmp_path / f"marker-{number}"), "PYTHONPATH": "."}
        subprocess.run([sys.executable, "-c", program], env=environment, check=False, capture_output=True)
    killed = RunFolder(tmp_path / "killed")
    run(killed, settings())
    assert digests(killed) == digests(whole)


def test_an_unfinished_stage_does_not_go_on_under_other_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    run(folder, settings())
    (folder.stage("toy.numbers") / "manifest.json").unlink()
    run(folder, settings(seed=3))
    assert (folder.stage("toy.sum") / "sum.txt").read_text() == str(3 * sum(range(20)))


def test_a_failing_stage_keeps_what_was_finished(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    broken = [STAGES[0], replace(STAGES[1], run="tests.run.toy:missing")]
    with pytest.raises(UserError, match="N9-RUN-003"):
        run_stages(folder, settings(), broken, PlainScreen())
    assert "AttributeError" in (folder.stage("toy.sum") / "error.txt").read_text()
    assert reasons(folder, settings()).keys() == {"toy.sum"}


def test_a_missing_package_names_what_to_install(tmp_path: Path) -> None:
    absent = Stage("toy.absent", "Absent", 1, "no_such_package_anywhere:run")
    with pytest.raises(UserError, match="N9-RUN-004"):
        run_stages(RunFolder(tmp_path), settings(), [absent], PlainScreen())


def test_order_puts_needs_first() -> None:
    assert [stage.name for stage in in_order(reversed(STAGES))] == ["toy.numbers", "toy.sum"]


def test_only_one_process_works_in_a_run_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path).lock():
        program = "import sys; from pathlib import Path; from ninthsky.run.folder import RunFolder\n"
        program += "with RunFolder(Path(sys.argv[1])).lock(): pass"
        second = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "N9-RUN-002" in second.stderr


def test_a_file_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    file = HashedFile(tmp_path / "x")
    file.write(b"half")
    assert not (tmp_path / "x").exists()
    file.close()
    assert (tmp_path / "x").read_bytes() == b"half"
    with contextlib.suppress(ZeroDivisionError), HashedFile(tmp_path / "y") as other:
        other.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_a_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a":')
    assert [record["a"] for record in read_lines(path)] == [1, 2]


def test_json_screen_prints_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    screen = JsonScreen()
    task = screen.task("pages", 10, "pages")
    task.advance(10, loss=0.5)
    task.finish()
    screen.line("done")
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[0] | {"rate": 0, "seconds_left": 0} == {
        "kind": "progress",
        "task": "pages",
        "done": 10,
        "total": 10,
        "unit": "pages",
        "rate": 0,
        "seconds_left": 0,
        "finished": True,
        "loss": 0.5,
    }
    assert records[1] == {"kind": "line", "text": "done"}


def test_durations_read_well() -> None:
    assert [duration(s) for s in (7, 185, 7800)] == ["7 s", "3 min 05 s", "2 h 10 min"]
