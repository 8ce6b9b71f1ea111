from __future__ import annotations

from pathlib import Path

import pytest

from ninthsky.guard.faults import Timeline
from ninthsky.guard.page.cost import cost_of, goodput, step_seconds
from ninthsky.guard.page.folder import JobFolder
from tests.guard.page.job_files import JobFiles


def test_a_fault_costs_all_cards_from_its_beginning_until_all_train(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    fault = files.fault(state="repaired", steps_redone=2, timeline=Timeline(began=100.0, named=101.0, trained=104.0))
    cost = cost_of(fault, cards=360, each=3.0, newest=99, now=1e9)
    assert (cost.steps, cost.seconds, cost.card_hours) == (2, 10.0, 1.0)
    still = files.fault(timeline=Timeline(began=100.0))
    assert cost_of(still, 360, 3.0, 10, now=130.0).card_hours == 3.0
    borne = files.fault(state="advised", timeline=Timeline(began=100.0))
    assert cost_of(borne, 360, 3.0, 10, now=130.0).card_hours == 0.0, "a slow card: the steps go on"
    told = files.fault(state="advised", cause="frozen", timeline=Timeline(began=100.0))
    assert cost_of(told, 360, 3.0, told.step, now=130.0).card_hours == 3.0, "nobody acts, and all wait"
    assert cost_of(told, 360, 3.0, told.step + 2, now=130.0).card_hours == 0.0, "it thawed"


def test_goodput_is_the_time_of_the_steps_that_were_kept(tmp_path: Path) -> None:
    assert goodput(kept=60, each=1.5, seconds=100.0) == pytest.approx(0.9)
    assert (goodput(0, 1.5, 100.0), goodput(5, 1.0, 0.0), goodput(100, 2.0, 100.0)) == (0.0, 0.0, 1.0)
    job = JobFolder(JobFiles(tmp_path).folder)
    assert job.goodput(0.0) is None
    job.look()
    # It began a hundred seconds ago with step 0; steps 0 to 10 are committed, half a second each.
    assert job.began is not None and job.goodput(job.began + 100.0) == pytest.approx(11 * 0.5 / 100)


def test_a_step_takes_the_median_of_the_newest() -> None:
    assert step_seconds([]) == 0.0
    assert step_seconds([(n, 9.0) for n in range(64)] + [(64 + n, 1.0) for n in range(64)]) == 1.0
