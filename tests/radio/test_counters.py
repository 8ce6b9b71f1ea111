from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ninthsky.errors import UserError
from ninthsky.radio.counters import STUCK_HOURS, read_counters, repeated
from tests.radio.rows import FIRST, rows_of

Write = Callable[..., Path]


def test_hours_land_where_they_are_labelled(write: Write) -> None:
    path = write(rows_of(days=6))
    start, _ = read_counters(path)
    assert start.first_day == FIRST.date()
    assert start.days == 6
    assert start.coverage.tolist() == [True, False, False]
    assert (start.loads()[:, 1] < 0.1).all() and (start.loads()[:, 6] > 0.4).all()
    end, _ = read_counters(path, hour_label="end")
    # The hour that ends at 01:00 is the one that starts at 00:00.
    assert (end.loads()[:, 24] < 0.1).all() and (end.loads()[:, 24 + 5] > 0.4).all()
    assert end.first_day == FIRST.date() - datetime.timedelta(days=1)


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S+08:00", "%Y-%m-%d %H:%M:%S.000"])
def test_written_times_are_local_wall_time(write: Write, form: str) -> None:
    rows = [(ts.strftime(form), station, cell, load) for ts, station, cell, load in rows_of(days=5)]
    counters, findings = read_counters(write(rows))
    assert counters.loads()[0, 1] < 0.1 < counters.loads()[0, 7]
    assert [what for what, _, _ in findings.found] == ["stations without a role column"]


def test_parquet_and_csv_give_the_same(write: Write) -> None:
    one, _ = read_counters(write(rows_of(days=5)))
    other, _ = read_counters(write(rows_of(days=5), "counters.parquet"))
    assert (one.codes == other.codes).all()


def test_missing_hours_and_days_are_unknown_and_counted(write: Write) -> None:
    rows = rows_of(days=7)
    gap = FIRST + datetime.timedelta(days=2)
    kept = [row for row in rows if not (row[2] == "B" and gap <= row[0] < gap + datetime.timedelta(days=1))]
    counters, findings = read_counters(write(kept))
    assert np.isnan(counters.loads()[1, 48:72]).all()
    assert np.isfinite(counters.loads()[0]).all()
    assert findings.count("hours missing between the first and the last") == 24


def test_zeros_are_loads_and_a_dead_counter_is_not(write: Write) -> None:
    rows = rows_of(days=7)
    night = {FIRST + datetime.timedelta(hours=hour) for hour in range(30, 36)}
    dead = FIRST + datetime.timedelta(days=4)
    changed = [
        (ts, station, cell, 0.0 if (cell == "A" and ts in night) or (cell == "C" and ts >= dead) else load)
        for ts, station, cell, load in rows
    ]
    counters, findings = read_counters(write(changed))
    loads = counters.loads()
    assert (loads[0, 30:36] == 0).all()
    assert np.isnan(loads[2, 96:]).all() and np.isfinite(loads[2, :96]).all()
    assert findings.count(f"hours of a counter that repeats one value for {STUCK_HOURS} h or more") == 72


def test_the_hour_that_daylight_saving_repeats_is_averaged_and_the_lost_one_unknown(write: Write) -> None:
    rows: list[Any] = rows_of(days=6, cells=1, noise=0)
    again = FIRST + datetime.timedelta(days=2, hours=2)
    lost = FIRST + datetime.timedelta(days=4, hours=2)
    rows = [row for row in rows if row[0] != lost] + [(again, "S", "A", 0.15)]
    counters, findings = read_counters(write(rows))
    assert counters.loads()[0, 48 + 2] == pytest.approx(0.10, abs=0.002)
    assert np.isnan(counters.loads()[0, 96 + 2])
    assert findings.count("hours given more than once") == 1
    # The clock's jump moves no other hour.
    assert (counters.loads()[0].reshape(6, 24)[:, 6:] > 0.4).all()


def test_quarter_hours_are_averaged(write: Write) -> None:
    rows = [
        (ts + datetime.timedelta(minutes=15 * part), station, cell, load + 0.01 * part)
        for ts, station, cell, load in rows_of(days=5, cells=1, noise=0)
        for part in range(4)
    ]
    counters, findings = read_counters(write(rows))
    assert counters.loads()[0, 1] == pytest.approx(0.065, abs=0.002)
    assert findings.count("rows inside the hour") == 3 * 120
    assert findings.count("hours given more than once") == 0


def test_impossible_loads_become_unknown_one_by_one(write: Write) -> None:
    rows: list[Any] = rows_of(days=7)
    for index, bad in {5: -0.2, 40: 7.0, 41: float("inf"), 100: 1.02}.items():
        rows[index] = (*rows[index][:3], bad)
    rows = [(ts, station, cell, "broken" if index == 77 else str(load)) for index, (ts, station, cell, load) in enumerate(rows)]
    counters, findings = read_counters(write(rows))
    loads = counters.loads()[0]
    assert np.isnan(loads[[5, 40, 41, 77]]).all()
    assert loads[100] == pytest.approx(1.0)
    for what in ("negative loads", "infinite loads", "loads over 1.05", "loads that are no number", "loads between 1 and 1.05"):
        assert findings.count(what) == 1, what


def test_percent_and_traffic(write: Write) -> None:
    rows = [(ts, station, cell, 100 * load) for ts, station, cell, load in rows_of(days=7)]
    percent, _ = read_counters(write(rows), unit="percent")
    assert percent.loads()[0, 7] == pytest.approx(0.5, rel=0.1)
    traffic, _ = read_counters(write(rows), unit="traffic")
    assert np.nanpercentile(traffic.loads()[0], 99.5) == pytest.approx(0.45, rel=0.01)
    assert "assumed" in traffic.unit
    auto, _ = read_counters(write(rows), unit="auto")
    assert (auto.codes == traffic.codes).all()


def test_traffic_is_scaled_without_a_look_at_the_days_held_back(write: Write) -> None:
    rows = rows_of(days=8, cells=1)
    late = FIRST + datetime.timedelta(days=6)
    bigger = [(ts, station, cell, load * (3 if ts >= late else 1)) for ts, station, cell, load in rows]
    held, _ = read_counters(write(bigger), unit="traffic", held_days=lambda days: 2)
    assert np.nanpercentile(held.loads()[0, :144], 99.5) == pytest.approx(0.45, rel=0.01)
    assert held.loads()[0, 6 * 24 + 12] > 1


def test_only_the_last_days_are_kept_and_an_unfinished_day_is_cut(write: Write) -> None:
    rows = [row for row in rows_of(days=9) if row[0] < FIRST + datetime.timedelta(days=8, hours=10)]
    counters, findings = read_counters(write(rows), days=6)
    assert counters.days == 6
    assert counters.first_day == FIRST.date() + datetime.timedelta(days=2)
    assert findings.count("hours of an unfinished last day") == 30


def test_roles_say_which_cells_never_sleep(write: Write) -> None:
    roles = {"A": "capacity", "B": "Coverage", "C": "capacity"}
    rows = [(*row, roles[row[2]]) for row in rows_of(days=5)]
    counters, _ = read_counters(write(rows, columns=("ts", "station", "cell", "load", "role")))
    assert counters.coverage.tolist() == [False, True, False]
    none = [(*row[:4], "capacity") for row in rows]
    counters, findings = read_counters(write(none, columns=("ts", "station", "cell", "load", "role")))
    assert counters.coverage.tolist() == [True, False, False]
    assert findings.count("stations whose cells are all of role capacity") == 1


def test_own_column_names(write: Write) -> None:
    path = write(rows_of(days=5), columns=("time", "site", "sector", "prb"))
    counters, _ = read_counters(path, columns={"ts": "time", "station": "site", "cell": "sector", "load": "prb"})
    assert counters.cell == ["A", "B", "C"]


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no load column": (lambda t: t.rename({"load": "prb"}), "no column 'load'"),
    "no rows": (lambda t: t.head(0), "no rows"),
    "too few days": (lambda t: t.filter(pl.col("ts") < "2026-03-05"), "whole day"),
    "unreadable times": (lambda t: t.with_columns(ts=pl.lit("yesterday")), "cannot be read"),
    "percent taken for shares": (lambda t: t.with_columns(pl.col("load") * 100), "over 1"),
    "negative loads": (lambda t: t.with_columns(-pl.col("load")), "negative"),
    "words for loads": (lambda t: t.with_columns(load=pl.lit("high")), "impossible"),
    "cells of many stations under one name": (
        lambda t: pl.concat([t, t.with_columns(pl.col("load") / 2)]), "more than once with different loads"),
    "a year from the future": (
        lambda t: t.with_columns(ts=pl.when(pl.int_range(pl.len()) > 0).then("ts").otherwise(pl.lit("2099-01-01 00:00"))),
        "the times span"),
    "an unknown role": (lambda t: t.with_columns(role=pl.lit("booster")), "unknown role"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_counters_are_refused_with_a_reason(write: Write, case: str) -> None:
    change, reason = REFUSED[case]
    path = write(rows_of(days=8))
    change(pl.read_csv(path)).write_csv(path)
    with pytest.raises(UserError) as caught:
        read_counters(path)
    assert caught.value.code == "N9-RAD-001"
    assert reason in caught.value.what
    assert caught.value.next


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe" * 50, b"ts,station\n1,2,3\n", b"PAR1garbage"])
@pytest.mark.parametrize("name", ["counters.csv", "counters.parquet"])
def test_damaged_files_are_refused_with_a_reason(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_counters(tmp_path / name)
    assert caught.value.code == "N9-RAD-001"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_counters(tmp_path / "nowhere.csv")


def test_runs_of_one_value_are_found_from_a_day_on_and_whole() -> None:
    rng = np.random.default_rng(0)
    loads = rng.random((4, 96)).astype(np.float32)
    loads[0, 10 : 10 + STUCK_HOURS] = 0.3
    loads[1, 10 : 10 + STUCK_HOURS - 1] = 0.3
    loads[2, 50:] = 0.0
    loads[3, :60] = np.nan
    stuck = repeated(loads)
    assert np.flatnonzero(stuck[0]).tolist() == list(range(10, 10 + STUCK_HOURS))
    assert not stuck[1].any()
    assert np.flatnonzero(stuck[2]).tolist() == list(range(50, 96))
    assert not stuck[3].any()
