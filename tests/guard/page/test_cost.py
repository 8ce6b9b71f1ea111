from __future__ import annotations

from pathlib import Path

import pytest

from ninthsky.guard.faults import Timeline
from ninthsky.guard.page.cost import cost_of, goodput, step_seconds
from tests.guard.page.job_files import JobFiles


def test_a_fault_costs_all_cards_from_its_beginning_until_all_train(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    fault = files.fault(state="repaired", steps_redone=2, timeline=Timeline(began=100.0, named=101.0, trained=104.0))
    cost = cost_of(fault, cards=360, each=3.0, now=1e9)
    assert (cost.steps, cost.seconds, cost.card_hours) == (2, 10.0, 1.0)
    still = files.fault(timeline=Timeline(began=100.0))
    assert cost_of(still, 360, 3.0, now=130.0).card_hours == 3.0
    borne = files.fault(state="advised", timeline=Timeline(began=100.0))
    assert cost_of(borne, 360, 3.0, now=130.0).card_hours == 0.0


def test_goodput_takes_off_the_start_the_faults_once_and_the_steps_done_twice(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    one = files.fault(state="repaired", steps_redone=5, timeline=Timeline(began=40.0, trained=50.0))
    at_once = files.fault(2, state="repaired", timeline=Timeline(began=45.0, trained=55.0))
    # 100 s: 20 until all had joined, 15 in two faults that overlap, 5 steps of 1 s done twice.
    assert goodput([one, at_once], 0.0, 20.0, 1.0, 100.0) == pytest.approx(0.60)
    assert goodput([], 0.0, None, 1.0, 100.0) == 0.0, "nobody has joined yet"
    assert goodput([], 5.0, None, 1.0, 5.0) == 0.0


def test_a_step_takes_the_median_of_the_newest() -> None:
    assert step_seconds([]) == 0.0
    assert step_seconds([(n, 9.0) for n in range(64)] + [(64 + n, 1.0) for n in range(64)]) == 1.0
