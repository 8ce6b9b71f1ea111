from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ninthsky.radio.alone import Source, plan_counters
from ninthsky.radio.plan import plan_shard
from ninthsky.radio.rules import Rules
from ninthsky.radio.store import MISSING, Counters
from ninthsky.radio.why import explain
from tests.radio.rows import FIRST, QUIET, rows_of

Write = Callable[..., Path]


def planned(path: Path, out: Path, **how: Any) -> tuple[dict[str, Any], pl.DataFrame]:
    summary = plan_counters(Source(path, **how), Rules(), out)
    return summary, pl.read_csv(out / "plan.csv")


def hours(plan: pl.DataFrame, cell: str) -> list[tuple[str, str]]:
    return plan.filter(pl.col("cell") == cell).select("start", "end").rows()


def test_capacity_carriers_sleep_in_the_quiet_hours_and_the_coverage_cell_never(write: Write, tmp_path: Path) -> None:
    summary, plan = planned(write(rows_of(days=21)), tmp_path / "out")
    assert summary["stations"] == 1 and summary["stations_kept_on"] == 0
    assert hours(plan, "A") == []
    assert hours(plan, "B") == hours(plan, "C") == [("01:00", "06:00")]
    assert set(plan["date"]) == {str(FIRST.date() + datetime.timedelta(days=21))}
    assert set(plan["state"]) == {"asleep"}


@pytest.mark.parametrize("unit", ["share", "percent"])
def test_a_slip_of_the_hour_label_moves_the_plan_by_that_hour(write: Write, tmp_path: Path, unit: str) -> None:
    rows = [(ts, station, cell, load * (100 if unit == "percent" else 1)) for ts, station, cell, load in rows_of(days=21)]
    _, start = planned(write(rows), tmp_path / "start", unit=unit)
    _, end = planned(write(rows), tmp_path / "end", unit=unit, hour_label="end")
    assert hours(start, "B") == [("01:00", "06:00")]
    assert hours(end, "B") == [("00:00", "05:00")]


def test_a_dead_counter_keeps_its_whole_station_on(write: Write, tmp_path: Path) -> None:
    dead = FIRST + datetime.timedelta(days=15)
    rows = [(ts, s, cell, 0.0 if cell == "B" and ts >= dead else load) for ts, s, cell, load in rows_of(days=21)]
    rows += [(ts, "T", cell, load) for ts, _, cell, load in rows_of(days=21)]
    summary, plan = planned(write(rows), tmp_path / "out")
    assert summary["stations_kept_on"] == 1
    assert set(plan["station"]) == {"T"}
    record = explain(tmp_path / "out", "S@3")
    assert record is not None
    assert "stay on" in record.verdict and "yesterday" in record.verdict


def test_missing_days_long_ago_do_not_stop_a_plan(write: Write, tmp_path: Path) -> None:
    lost = {FIRST + datetime.timedelta(hours=hour) for hour in range(96, 150)}
    summary, plan = planned(write([row for row in rows_of(days=21) if row[0] not in lost]), tmp_path / "out")
    assert summary["stations_kept_on"] == 0
    assert hours(plan, "C") == [("01:00", "06:00")]


def test_real_zeros_are_quiet_hours(write: Write, tmp_path: Path) -> None:
    rows = [(ts, s, cell, 0.0 if ts.hour in QUIET else load) for ts, s, cell, load in rows_of(days=21)]
    _, plan = planned(write(rows), tmp_path / "out")
    assert hours(plan, "B") == [("01:00", "06:00")]


def test_the_night_that_the_clock_repeats_an_hour(write: Write, tmp_path: Path) -> None:
    again = FIRST + datetime.timedelta(days=20, hours=2)
    summary, plan = planned(write([*rows_of(days=21), (again, "S", "B", 0.06)]), tmp_path / "out")
    assert ["hours given more than once", 1, "averaged"] in json.loads((tmp_path / "out" / "summary.json").read_text())["found"]
    assert summary["stations_kept_on"] == 0
    assert hours(plan, "B") == [("01:00", "06:00")]


def test_a_short_history_says_that_the_hour_mean_was_taken(write: Write, tmp_path: Path) -> None:
    summary, plan = planned(write(rows_of(days=7)), tmp_path / "out")
    assert "under 14 days" in summary["method"]
    assert hours(plan, "B") == [("01:00", "06:00")]


def test_why_an_hour_sleeps_and_why_no_more_do(write: Write, tmp_path: Path) -> None:
    # From 6 to 12 two carriers can bear the load, one cannot.
    shape = np.full(24, 0.6)
    shape[1:6], shape[6:12], shape[20] = 0.05, 0.3, 0.05
    planned(write(rows_of(days=21, shape=shape)), tmp_path / "out")
    night, morning, evening, noon = (explain(tmp_path / "out", f"S@{hour}") for hour in ("03:00", "7", "20", "13"))
    assert night is not None and morning is not None and evening is not None and noon is not None
    assert night.verdict.startswith("2 of 3 carriers asleep")
    assert night.facts[0].threshold == pytest.approx(0.6)
    assert any("coverage cell is never off" in line for line in night.ruled_out)
    assert morning.verdict.startswith("1 of 3 carriers asleep")
    assert any("1 carrier(s) may bear 0.600" in line for line in morning.ruled_out)
    assert evening.verdict == "all 3 carriers on"
    assert any("fits for 1 h only" in line for line in evening.ruled_out)
    assert noon.verdict == "all 3 carriers on"
    for unknown in ("S@24", "S", "nobody@3", "S@x"):
        assert explain(tmp_path / "out", unknown) is None


def test_the_least_loaded_capacity_cell_sleeps_first(steady: Counters) -> None:
    scale = steady.scale.copy()
    scale[1] *= 1.5
    load = np.full((1, 24), 0.9, np.float32)  # two carriers can bear it
    plan = plan_shard(replace(steady, scale=scale), load, load, Rules())
    asleep = dict(zip(plan.cells.column("cell").to_pylist(), plan.cells.column("asleep").to_pylist(), strict=True))
    assert asleep == {"A": 0, "B": 0, "C": (1 << 24) - 1}


def test_an_unknown_forecast_keeps_carriers_on(steady: Counters) -> None:
    load = np.full((1, 24), np.nan, np.float32)
    assert len(plan_shard(steady, load, load, Rules()).windows) == 0
    quiet = np.full((1, 24), 0.1, np.float32)
    assert len(plan_shard(steady, quiet, quiet, Rules()).windows) == 2
    steady.codes[:, -24:] = MISSING
    assert len(plan_shard(steady, quiet, quiet, Rules()).windows) == 0


def test_the_same_counters_give_the_same_files(write: Write, tmp_path: Path) -> None:
    path = write(rows_of(days=21))
    for name in ("one", "two"):
        planned(path, tmp_path / name)
    for file in ("plan.csv", "plan/cells-00000.parquet", "plan/stations-00000.parquet", "forecast/part-00000.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
