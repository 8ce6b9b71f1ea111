"""On real counters, where they are at hand. Bounds are loose: they guard against breakage, they are no claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ninthsky.errors import UserError
from ninthsky.radio.alone import Source, backtest
from ninthsky.radio.rules import Rules


def held(folder: Path, name: str, twins: bool | None = None, **how: Any) -> dict[str, Any]:
    return backtest(Source(folder / "radio" / name / "load.parquet", unit="auto", **how), Rules(), twins)


def test_milan_a_month_of_hourly_traffic(shared_data: Path) -> None:
    found = held(shared_data, "milan25", columns={"load": "traffic"})
    assert found["cells"] == 25 and found["reported_days"] == 7
    assert found["mase"] < found["mase_best_rival"]
    assert 0.85 <= found["coverage_q90"] <= 0.95
    assert found["violations"] < 0.03
    assert 0 < found["saving"] < found["plans"]["oracle"]["saving"]
    assert any("assumed" in line for line in found["assumed"])


def test_a_year_of_three_cells(shared_data: Path) -> None:
    found = held(shared_data, "lte3_year", columns={"load": "traffic"})
    assert found["reported_days"] == 28
    assert found["mase"] <= found["mase_best_rival"]
    assert 0.82 <= found["coverage_q90"] <= 0.95


def test_a_holiday_week_whose_hours_are_labelled_by_their_end(shared_data: Path) -> None:
    found = held(shared_data, "itu5g", twins=True, hour_label="end", columns={"station": "site"})
    assert "hour-of-day mean" in found["method"]
    assert found["wape"] == pytest.approx(found["accuracy"]["hour-of-day mean"]["wape"])
    assert 0.85 <= found["coverage_q90"] <= 0.95
    night = found["plans"]["night_window"]["violations"]
    slipped = held(shared_data, "itu5g", twins=True, columns={"station": "site"})
    assert slipped["plans"]["night_window"]["violations"] > 1.2 * night


def test_cells_that_share_a_name_are_not_mixed_up(shared_data: Path) -> None:
    with pytest.raises(UserError, match="column station"):
        held(shared_data, "itu5g", hour_label="end")
