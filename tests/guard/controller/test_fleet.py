"""The controller's picture of the fleet, fed with records as ranks write them; and the journal that outlives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ninthsky.guard.controller.fleet import Fleet
from ninthsky.guard.controller.journal import Journal, recall
from ninthsky.guard.faults import Fault, Timeline, read_faults
from ninthsky.guard.probe.record import Phase, RecordWriter, group_id
from ninthsky.guard.seen import Seen, pack
from ninthsky.run.folder import write_json

PLACES = [("a", 0, 10), ("b", 0, 20)]


class Writer:
    """A rank's record, and how its agent would report it."""

    def __init__(self, folder: Path, host: str, pid: int) -> None:
        self.path, self.host, self.pid = folder / f"{pid}.record", host, pid
        self.record = RecordWriter(self.path)

    def report(self, fleet: Fleet, now: float, cpu: float = 0.0, age: float = 0.0, **fields: Any) -> None:
        self.record.update(**fields)
        fleet.report(self.host, pack([Seen(0, self.pid, self.path.read_bytes(), age, "S", cpu, 0.0)]), now)


@pytest.fixture
def fleet(tmp_path: Path) -> tuple[Fleet, Writer, Writer]:
    fleet = Fleet(2)
    fleet.begin(1, PLACES, 100.0)
    return fleet, Writer(tmp_path, "a", 10), Writer(tmp_path, "b", 20)


def test_times_of_finished_steps_are_kept_newest_last(fleet: tuple[Fleet, Writer, Writer]) -> None:
    state, a, b = fleet
    for step in range(4):
        for writer, slow in ((a, 1.0), (b, 2.0)):
            writer.report(state, 100.0 + step, generation=1, step=step, local_wall=10.0 * slow + step, local_cpu=5.0)
    window = state.window(104.0)
    assert window.local_wall[:, -3:].tolist() == [[11.0, 12.0, 13.0], [21.0, 22.0, 23.0]]
    assert np.isnan(window.local_wall[:, -4]).all() and window.steps_seen == 3
    assert window.host_silence == {"a": 1.0, "b": 1.0} and state.step() == 3


def test_a_record_of_an_older_generation_is_not_known(fleet: tuple[Fleet, Writer, Writer]) -> None:
    state, a, b = fleet
    a.report(state, 101.0, generation=1, step=0)
    b.report(state, 101.0, generation=0, step=50)
    assert state.window(101.0).known.tolist() == [True, False] and state.step() == 0


def test_progress_is_steps_phases_and_collectives_not_heartbeats(fleet: tuple[Fleet, Writer, Writer]) -> None:
    state, a, _ = fleet
    a.report(state, 101.0, generation=1, step=0, phase=Phase.LOCAL)
    a.report(state, 103.0, cpu=1.5)
    window = state.window(103.5)
    assert window.quiet[0] == pytest.approx(2.5) and window.busy_cpu[0] == pytest.approx(1.5)
    a.record.enqueue(group_id("world"), 1)
    a.report(state, 104.0, cpu=1.6)
    assert state.window(104.0).quiet[0] == 0 and state.window(104.0).busy_cpu[0] == 0


def test_one_long_silence_that_ended_does_not_become_normal(fleet: tuple[Fleet, Writer, Writer]) -> None:
    state, a, _ = fleet
    now = 100.0
    for step in range(12):
        now += 60.0 if step == 6 else 0.5
        a.report(state, now, generation=1, step=step)
    assert state.window(now).longest_gap == pytest.approx(0.5)


def test_ages_go_on_while_no_report_comes(fleet: tuple[Fleet, Writer, Writer]) -> None:
    state, a, _ = fleet
    a.report(state, 101.0, age=0.3, generation=1)
    window = state.window(105.0)
    assert window.heartbeat_age[0] == pytest.approx(4.3) and window.host_silence["a"] == pytest.approx(4.0)


def test_a_journal_forgets_only_the_line_that_a_crash_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write("generation", generation=1, reason="start")
    journal.write("places", generation=1, resume_step=-1, places=[("a", 0, 10)])
    journal.write("eviction", at=5.0, card="a/0")
    journal.write("lost", host="b", generation=2)
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "generation", "gener')
    journal = Journal(path)
    journal.write("commit", step=7)
    journal.close()
    memory = recall(Journal(path).entries)
    assert (memory.generation, memory.places, memory.lost, memory.committed) == (1, [("a", 0, 10)], {"b"}, 7)
    assert memory.history.card_failures["a/0"] == 1 and memory.ended is None


def test_faults_gathered_by_a_stage_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ninthsky.evidence import Evidence
    from ninthsky.guard.cli import faults

    evidence = Evidence(id="F-0001", kind="fault", subject="card a/0", verdict="gone")
    where: dict[str, Any] = {"generation": 1, "step": 3, "rank": 0, "host": "a", "card": "a/0"}
    timeline = Timeline(began=1.0, named=1.5)
    fault = Fault(id="F-0001", cause="exit", state="repaired", injected=False, timeline=timeline, evidence=evidence, **where)
    for folder in ("stage/faults", "stage/guard/start-1/faults"):
        write_json(tmp_path / folder / "F-0001.json", msgspec.to_builtins(fault))
    assert read_faults(tmp_path / "stage" / "faults") == [fault]
    assert faults(tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count("F-0001: card a/0: gone") == 1 and "named      0.500 s" in out
