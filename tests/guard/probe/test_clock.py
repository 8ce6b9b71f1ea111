from __future__ import annotations

import time
from pathlib import Path

from ninthsky.guard.probe.clock import RunClock


def test_time_in_line_for_a_processor_does_not_pass(tmp_path: Path) -> None:
    schedule = tmp_path / "schedstat"
    schedule.write_text("1 0 1")
    clock = RunClock(str(schedule))
    begin = clock()
    schedule.write_text("1 60000000000 1")
    assert clock() - begin < -20


def test_asleep_it_goes_on() -> None:
    clock = RunClock()
    begin = clock()
    time.sleep(0.05)
    assert clock() - begin >= 0.049


def test_it_is_the_wall_clock_where_the_kernel_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "odd").write_text("")
    for source in (tmp_path / "none", tmp_path / "odd"):
        before = time.perf_counter()
        assert before <= RunClock(str(source))() <= time.perf_counter()
