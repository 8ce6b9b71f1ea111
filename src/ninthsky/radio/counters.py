"""A person's counters -> the compact store: what is wrong is found, counted, and repaired or refused with a reason."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from ninthsky.errors import UserError
from ninthsky.radio.measurements import LOAD, Damaged, is_measurement, read_measurements
from ninthsky.radio.store import Counters, Loads, encode

Unit = Literal["share", "percent", "traffic", "auto"]
KnownUnit = Literal["share", "percent", "traffic"]
COLUMNS = ("ts", "station", "cell", "load", "role")
LEAST_DAYS = 5  # four to learn from, one to hold it against
MOST = 1.05  # a load up to here is a full carrier and a rounding; over it, impossible
STUCK_HOURS = 24  # an hourly mean that repeats exactly for a day is a dead counter, not a quiet cell
REFUSE_SHARE = 0.05  # more rows than this beyond repair: the file is not what it is said to be
TRAFFIC_PERCENTILE, TRAFFIC_LOAD = 99.5, 0.45  # assumption where only traffic is known: its busiest hours fill 45 %


@dataclass
class Findings:
    """What was found in the counters and done about it: (what, how often, what was done)."""

    rows: int = 0
    found: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, what: str, count: int, done: str) -> None:
        """Notes a finding that occurred."""
        if count:
            self.found.append((what, int(count), done))

    def count(self, what: str) -> int:
        """How often it was found."""
        return sum(count for name, count, _ in self.found if name == what)


def refuse(what: str, path: Path, next: str) -> UserError:
    """The error for counters that nothing should be planned on."""
    return UserError("N9-RAD-001", what, str(path), next)


def read_counters(
    path: Path,
    *,
    hour_label: Literal["start", "end"] = "start",
    unit: Unit = "share",
    days: int | None = None,
    columns: dict[str, str] | None = None,
    station_needed: bool = True,
    held_days: Callable[[int], int] | None = None,
) -> tuple[Counters, Findings]:
    """Counters of a CSV or Parquet file with the columns ts, station, cell, load and perhaps role (coverage or capacity).

    `ts` is local wall time; an offset after it is cut off, since a day's shape follows the wall clock. `hour_label` says
    whether it names the start or the end of its hour. `columns` maps our names to the file's (`{"load": "traffic"}`). `days`
    keeps the last days only. Without a station column (allowed if not `station_needed`) every cell is a station of its own.

    With unit "traffic" each cell is scaled so that the 99.5th percentile of its hours is a load of 0.45: an assumption, told
    in `Counters.unit`; of the number of days `held_days` says how many last ones must not be looked at for that. Unit "auto" is
    "share" where no load is over 1.05, else "traffic". A 3GPP measurement file, or a folder of them, says its times itself,
    and its counter (`columns["load"]`, else RRU.PrbTotDl) is in percent.

    Raises UserError N9-RAD-001 with the reason when nothing should be planned on the file.
    """
    findings = Findings()
    if is_measurement(path):
        table, hour_label = _measured(path, (columns or {}).get("load", LOAD), findings), "start"
        unit = "percent" if unit in {"share", "auto"} else unit
    else:
        table = _table(path, columns or {}, station_needed, findings)
    table = _clean_times(table, path, hour_label, findings)
    table, known_unit = _clean_loads(table, path, unit, findings)
    table = _one_row_per_hour(table, path, findings)
    return _grid(table, path, known_unit, days, held_days, findings), findings


def _measured(path: Path, counter: str, findings: Findings) -> pl.DataFrame:
    try:
        delivery = read_measurements(path, counter)
    except Damaged as error:
        raise refuse(str(error), path, "give whole 3GPP measurement files; another counter: --column load=NAME") from error
    findings.rows = len(delivery.rows)
    for what, count, done in delivery.found:
        findings.add(what, count, done)
    return delivery.rows


def _table(path: Path, columns: dict[str, str], station_needed: bool, findings: Findings) -> pl.DataFrame:
    try:
        raw = (
            pl.read_parquet(path)
            if path.suffix.lower() in {".parquet", ".pq"}
            else pl.read_csv(path, infer_schema=False, truncate_ragged_lines=False)
        )
    except FileNotFoundError as error:
        raise refuse("there is no such file", path, "check the path") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).strip().splitlines()[0]
        raise refuse(
            f"the file cannot be parsed: {reason}", path, "give a CSV with a header line, in UTF-8, or a Parquet file"
        ) from error
    names = {ours: columns.get(ours, ours) for ours in COLUMNS}
    wanted = [ours for ours in ("ts", "station", "cell", "load") if ours != "station" or station_needed]
    absent = [names[ours] for ours in wanted if names[ours] not in raw.columns]
    if absent:
        raise refuse(
            f"no column {', '.join(map(repr, absent))}; the file has {', '.join(raw.columns)}",
            path,
            "columns wanted: ts, station, cell, load; a name of your own: --column load=NAME",
        )
    if raw.is_empty():
        raise refuse("the file has no rows", path, "give hours of load")
    findings.rows = len(raw)
    present = [ours for ours in COLUMNS if names[ours] in raw.columns]
    table = raw.select(pl.col(names[ours]).alias(ours) for ours in present)
    if "station" not in present:
        table = table.with_columns(station=pl.col("cell"))
    table = table.with_columns(pl.col("station", "cell").cast(pl.String).str.strip_chars())
    unnamed = table["station"].is_null() | table["cell"].is_null() | (table["station"] == "") | (table["cell"] == "")
    findings.add("rows without a station or cell", int(unnamed.sum()), "left out")
    return table.filter(~unnamed)


def _clean_times(table: pl.DataFrame, path: Path, hour_label: str, findings: Findings) -> pl.DataFrame:
    kind = table.schema["ts"]
    if kind == pl.String:
        wall = pl.col("ts").str.strip_chars().str.replace("T", " ").str.slice(0, 19)
        padded = pl.when(wall.str.len_chars() == 16).then(wall + ":00").otherwise(wall)
        times = padded.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
    elif isinstance(kind, pl.Datetime):
        times = pl.col("ts").dt.replace_time_zone(None).cast(pl.Datetime("us"))
    else:
        raise refuse(f"`ts` holds {kind}, not times", path, "write local times such as 2026-01-31 13:00")
    table = table.with_columns(ts=times)
    unreadable = table["ts"].null_count()
    if unreadable > REFUSE_SHARE * len(table):
        raise refuse(
            f"{unreadable:,} of {len(table):,} times in `ts` cannot be read", path, "write local times such as 2026-01-31 13:00"
        )
    findings.add("times that cannot be read", unreadable, "left out")
    table = table.drop_nulls("ts")
    if hour_label == "end":
        table = table.with_columns(pl.col("ts") - pl.duration(hours=1))
    inside = int((table["ts"] != table["ts"].dt.truncate("1h")).sum())
    findings.add("rows inside the hour", inside, "averaged over their hour")
    return table.with_columns(pl.col("ts").dt.truncate("1h"))


def _clean_loads(table: pl.DataFrame, path: Path, unit: Unit, findings: Findings) -> tuple[pl.DataFrame, KnownUnit]:
    given = table["load"].null_count()
    table = table.with_columns(pl.col("load").cast(pl.Float64, strict=False).fill_nan(None))
    unread = table["load"].null_count()
    findings.add("hours given without a load", given, "unknown")
    findings.add("loads that are no number", unread - given, "unknown")
    if unit == "auto":
        unit = "traffic" if bool((table["load"] > MOST).any()) else "share"
    if unit == "percent":
        table = table.with_columns(pl.col("load") / 100)
    infinite = int(table["load"].is_infinite().sum())
    table = table.with_columns(load=pl.when(pl.col("load").is_finite()).then(pl.col("load")))
    negative = int((table["load"] < 0).sum())
    over = int((table["load"] > MOST).sum()) if unit != "traffic" else 0
    bad = negative + infinite + over + unread - given
    if bad > REFUSE_SHARE * len(table):
        advice = "say what `load` holds: --unit percent or --unit traffic" if over > negative else "check the column `load`"
        raise refuse(f"{bad:,} of {len(table):,} loads are impossible ({over:,} over 1, {negative:,} negative)", path, advice)
    findings.add("negative loads", negative, "unknown")
    findings.add("infinite loads", infinite, "unknown")
    findings.add("loads over 1.05", over, "unknown")
    possible = pl.col("load") >= 0
    if unit != "traffic":
        possible &= pl.col("load") <= MOST
        findings.add("loads between 1 and 1.05", int(table["load"].is_between(1, MOST, closed="right").sum()), "set to 1")
    table = table.with_columns(load=pl.when(possible).then(pl.col("load")))
    return (table if unit == "traffic" else table.with_columns(pl.col("load").clip(upper_bound=1.0))), unit


def _one_row_per_hour(table: pl.DataFrame, path: Path, findings: Findings) -> pl.DataFrame:
    """Quarter hours, repeated deliveries and the hour that daylight saving repeats all become one mean."""
    key = ["station", "cell", "ts"]
    role = [pl.col("role").cast(pl.String).str.to_lowercase().first()] if "role" in table.columns else []
    differ = (pl.col("load").n_unique() > 1).alias("differ")
    single = table.group_by(key).agg(pl.col("load").mean(), *role, pl.len().alias("rows"), differ)
    if not findings.count("rows inside the hour"):
        more = int((single["rows"] > 1).sum())
        odd = int(single["differ"].sum())
        if odd > REFUSE_SHARE * len(single):
            raise refuse(
                f"{odd:,} of {len(single):,} hours are given more than once with different loads",
                path,
                "cells of different stations share a name: name the column, --column station=NAME",
            )
        findings.add("hours given more than once", more, "averaged")
    return single.sort("station", "cell", "ts")


def _grid(
    table: pl.DataFrame,
    path: Path,
    unit: KnownUnit,
    days: int | None,
    held_days: Callable[[int], int] | None,
    findings: Findings,
) -> Counters:
    first = table["ts"].min()
    last = table["ts"].max()
    if not isinstance(first, datetime.datetime) or not isinstance(last, datetime.datetime):
        raise refuse("no row is left to read", path, "check `ts`, `cell` and `load`")
    origin = datetime.datetime.combine(first.date(), datetime.time())
    end = datetime.datetime.combine(last.date(), datetime.time()) + datetime.timedelta(days=1)
    # A last day that nobody has the evening of is cut: tomorrow starts where whole days end.
    if last.hour != 23:
        end -= datetime.timedelta(days=1)
        findings.add("hours of an unfinished last day", int((table["ts"] >= end).sum()), "left out")
    total = (end - origin).days
    if days is not None and total > days:
        origin = end - datetime.timedelta(days=days)
        findings.add(f"hours before the last {days} days", int((table["ts"] < origin).sum()), "not used")
        total = days
    if total < LEAST_DAYS:
        raise refuse(
            f"{total} whole day(s) of hours; {LEAST_DAYS} are the least", path, "give more days; 28 are a good history"
        )
    if total > 3660:
        raise refuse(f"the times span {total:,} days, from {first} to {last}", path, "check the years in `ts`")
    table = table.filter(pl.col("ts").is_between(origin, end, closed="left"))
    cells = table.select("station", "cell").unique().sort("station", "cell").with_row_index("row")
    table = table.join(cells, on=["station", "cell"], how="left")
    loads = np.full((len(cells), total * 24), np.nan, dtype=np.float32)
    hour = ((table["ts"] - origin).dt.total_hours()).to_numpy()
    loads[table["row"].to_numpy(), hour] = table["load"].cast(pl.Float32).fill_null(float("nan")).to_numpy()
    findings.add("hours missing between the first and the last", loads.size - len(table), "unknown")
    stuck = repeated(loads)
    findings.add(f"hours of a counter that repeats one value for {STUCK_HOURS} h or more", int(stuck.sum()), "unknown")
    findings.add("dead cells (nothing known)", int((~np.isfinite(np.where(stuck, np.nan, loads))).all(axis=1).sum()), "stay on")
    loads[stuck] = np.nan
    if unit == "traffic":
        loads = _scaled(loads, held_days(total) if held_days else 0)
    codes, scale = encode(loads)
    return Counters(
        origin.date(),
        cells["station"].to_list(),
        cells["cell"].to_list(),
        _coverage(table, cells, path, findings),
        scale,
        codes,
        made=False,
        unit="traffic, 99.5th percentile taken as a load of 0.45 (assumed)" if unit == "traffic" else "share of capacity",
    )


def repeated(loads: Loads) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Hours [cells, hours] inside runs of STUCK_HOURS or more equal known values, zeros included."""
    cells, hours = loads.shape
    stuck = np.zeros((cells, hours), dtype=bool)
    same = np.isfinite(loads[:, 1:]) & (loads[:, 1:] == loads[:, :-1])
    if hours < STUCK_HOURS:
        return stuck
    run = np.zeros(cells, dtype=np.int32)
    for hour in range(1, hours):
        run = np.where(same[:, hour - 1], run + 1, 0)
        stuck[run >= STUCK_HOURS - 1, hour] = True
        stuck[run == STUCK_HOURS - 1, hour - STUCK_HOURS + 1 : hour] = True
    return stuck


def _scaled(loads: Loads, held: int) -> Loads:
    past = loads[:, : max(loads.shape[1] - 24 * held, 48)]
    known = np.isfinite(past).any(axis=1)
    top = np.ones(len(loads), dtype=np.float32)
    top[known] = np.nanpercentile(past[known], TRAFFIC_PERCENTILE, axis=1)
    return (loads / np.where(top > 0, top, 1)[:, None] * TRAFFIC_LOAD).astype(np.float32)


def _coverage(table: pl.DataFrame, cells: pl.DataFrame, path: Path, findings: Findings) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which cells never sleep: those of role `coverage`, else the first cell of each station by name (assumed)."""
    station = cells["station"].to_numpy()
    first = np.append(True, station[1:] != station[:-1]) if len(station) else np.zeros(0, dtype=bool)
    if "role" not in table.columns:
        findings.add("stations without a role column", int(first.sum()), "first cell by name kept on as coverage (assumed)")
        return first
    roles = table.group_by("row").agg(pl.col("role").drop_nulls().first()).sort("row")["role"]
    odd = set(roles.drop_nulls().to_list()) - {"coverage", "capacity"}
    if odd:
        raise refuse(f"unknown role {sorted(odd)[0]!r}", path, "roles are: coverage, capacity")
    # A cell without a role is kept on: nothing is switched off on a guess.
    covers = roles.fill_null("coverage").to_numpy() == "coverage"
    number = np.cumsum(first) - 1
    uncovered = np.bincount(number, weights=covers, minlength=int(first.sum())) == 0
    findings.add("stations whose cells are all of role capacity", int(uncovered.sum()), "first cell by name kept on")
    return covers | (first & uncovered[number])
