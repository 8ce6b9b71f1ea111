"""Radio without a run and without torch: a person's counters to a plan, or to a backtest, by the fast path alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ninthsky.radio import store
from ninthsky.radio.accuracy import HOUR_MEAN, WEEK_AGO, coverage_by_decile, figures
from ninthsky.radio.candidates import FAST, Chosen
from ninthsky.radio.conformal import GROUPS, groups_of
from ninthsky.radio.counters import Findings, Unit, read_counters
from ninthsky.radio.energy import Power
from ninthsky.radio.fast import site_roots
from ninthsky.radio.forecast import draw, forecast_table, write_table
from ninthsky.radio.kernels import Floats
from ninthsky.radio.plan import ASSUMED, plan_shard, site_forecast, tomorrow, write_windows
from ninthsky.radio.rolling import Pool, Split, prepare, split_days
from ninthsky.radio.rules import Rules, Sites
from ninthsky.radio.trial import Trial, compare, verdict
from ninthsky.run.folder import HashedFile, write_json

MOST_SERIES = 4000  # that a backtest is held against
TWINS = "Assumed: every cell is one of two equal carriers with the same load, one of which may sleep."


@dataclass(frozen=True)
class Source:
    """A counters file and how to read it."""

    path: Path
    hour_label: Literal["start", "end"] = "start"
    unit: Unit = "share"
    columns: dict[str, str] | None = None
    days: int | None = None

    def read(self, station_needed: bool) -> tuple[store.Counters, Findings]:
        """Counters, scaled (if they are traffic) without a look at the days that a backtest reports."""

        def held(total: int) -> int:
            return total - split_days(total).report

        return read_counters(
            self.path,
            hour_label=self.hour_label,
            unit=self.unit,
            days=self.days,
            columns=self.columns,
            station_needed=station_needed,
            held_days=held,
        )


@dataclass(frozen=True)
class Held:
    """Site sums held against their last days: the forecast's quantiles, and the plans'."""

    pool: Pool
    sites: Sites
    split: Split
    said: dict[str, Floats]
    accuracy: dict[str, dict[str, float | None]]
    coverage: dict[str, list[float | None]]
    plans: dict[str, Any]


def hold(counters: store.Counters, sites: Sites, copies: float, rules: Rules, seed: int) -> Held:
    """Rolling backtest of the fast path on the station sums (each cell counted `copies` times)."""
    split = split_days(counters.days)
    roots = site_roots(counters, copies)
    pool = Pool(roots, groups_of(roots, split.report, counters.first_day), counters.first_day)
    if len(roots) > MOST_SERIES:
        rows = np.sort(np.random.default_rng((seed, 5)).choice(len(roots), MOST_SERIES, replace=False))
        pool, sites = pool.rows(rows), Sites(sites.carriers[rows], sites.may_sleep[rows])
    fast = prepare(pool, split.report, seed)
    days = range(split.report, split.days)
    said = {FAST: np.stack([fast.quantiles(pool.roots, day, pool.group) ** 2 for day in days])}
    plans = compare(Trial(pool.roots, days, sites, rules), said[FAST])
    plans["made"] = counters.made
    found = figures(pool, days, fast, said, slice(None))
    return Held(pool, sites, split, said, found, coverage_by_decile(pool, days, fast, said[FAST]), plans)


def backtest(source: Source, rules: Rules, twins: bool | None = None, seed: int = 7) -> dict[str, Any]:
    """Accuracy, coverage by decile, saving and violations on the last days of a file, beside the rivals', as plain values.

    Without a station column, or with `twins`, every cell stands for two equal carriers.
    """
    counters, findings = source.read(station_needed=False)
    alone = counters.station == counters.cell if twins is None else twins
    if alone:
        # Every cell becomes a station of its own.
        names = counters.cell if counters.station == counters.cell else _joined(counters)
        counters = store.renamed(counters, names, names)
    sites = Sites.twins(len(counters.codes)) if alone else Sites.of(counters)
    held = hold(counters, sites, 2.0 if alone else 1.0, rules, seed)
    fast, mean, week = held.accuracy[FAST], held.accuracy[HOUR_MEAN], held.accuracy[WEEK_AGO]
    rivals = {HOUR_MEAN: mean["mase"], WEEK_AGO: week["mase"]}
    best = min(rivals, key=lambda name: rivals[name] or float("inf"))
    long = held.split.report >= 14
    return {
        "file": source.path.name,
        "cells": len(counters.cell),
        "days": counters.days,
        "history_days": held.split.report,
        "reported_days": held.split.days - held.split.report,
        "method": "ridge on the residual of the hour-of-day mean" if long else "hour-of-day mean (under 14 days of history)",
        "mase": fast["mase"],
        "wape": fast["wape"],
        "wql": fast["wql"],
        "mase_best_rival": rivals[best],
        "best_rival": best,
        "coverage_q90": fast["coverage_q90"],
        "coverage_q90_by_load_decile": held.coverage["by_load"],
        "coverage_q90_by_earlier_error_decile": held.coverage["by_earlier_error"],
        "accuracy": held.accuracy,
        "saving": held.plans["plan"]["saving"],
        "violations": held.plans["plan"]["violations"],
        "saving_over_oracle": held.plans["saving_over_oracle"],
        "over_history_max": held.plans["over_hourly_maximum"],
        "plans": held.plans,
        "verdict": verdict(held.plans),
        "groups": {name: int((held.pool.group == number).sum()) for number, name in enumerate(GROUPS)},
        "rules": rules.plain(),
        "assumed": [*([TWINS] if alone else [ASSUMED]), f"load: {counters.unit}", Power(sleep=rules.sleep_power).text()],
        "found": findings.found,
    }


def _joined(counters: store.Counters) -> list[str]:
    return [f"{station}/{cell}" for station, cell in zip(counters.station, counters.cell, strict=True)]


def plan_counters(source: Source, rules: Rules, out: Path, seed: int = 7) -> dict[str, Any]:
    """Reads counters and writes tomorrow's plan under `out`: `forecast/`, `plan/`, `plan.csv`, `rules.json`, `summary.json`.

    Returns the summary, which holds the backtest of such plans on the last days of the same counters.
    """
    counters, findings = source.read(station_needed=True)
    parts = list(store.split(counters))
    sample = draw(parts, len(parts), seed)
    model = Chosen(prepare(sample.pool, counters.days, seed))
    date = tomorrow(counters).isoformat()
    saved = all_on = 0.0
    sleeps = kept_on = 0
    with HashedFile(out / "plan.csv") as lines:
        lines.write(b"station,cell,date,start,end,state\n")
        for number, part in enumerate(parts):
            forecast = forecast_table(part, model, part.days, rules.level)
            plan = plan_shard(part, site_forecast(forecast, "q_plan"), site_forecast(forecast, "q50"), rules)
            _write(out / f"forecast/part-{number:05d}.parquet", forecast, date)
            _write(out / f"plan/cells-{number:05d}.parquet", plan.cells, date)
            _write(out / f"plan/stations-{number:05d}.parquet", plan.stations, date)
            write_windows(plan.windows, lines)
            saved, all_on, sleeps = saved + plan.saved, all_on + plan.all_on, sleeps + len(plan.windows)
            kept_on += sum(1 for reason in plan.stations.column("reason").to_pylist() if reason)
    power = Power(sleep=rules.sleep_power).text()
    write_json(out / "rules.json", {**rules.plain(), "date": date, "made": False, "power": power})
    held = hold(sample.counters, Sites.of(sample.counters), 1.0, rules, seed)
    summary = {
        "date": date,
        "stations": len(counters.starts) - 1,
        "cells": len(counters.cell),
        "days": counters.days,
        "saving_tomorrow": saved / all_on if all_on else 0.0,
        "sleeps": sleeps,
        "stations_kept_on": kept_on,
        "backtest": held.plans,
        "verdict": verdict(held.plans),
        "method": "ridge on the residual of the hour-of-day mean"
        if model.fast.ridge.ridge
        else "hour-of-day mean (under 14 days of history)",
        "assumed": [ASSUMED, f"load: {counters.unit}", power],
        "found": findings.found,
        "out": str(out),
    }
    write_json(out / "summary.json", summary)
    return summary


def _write(path: Path, table: pa.Table, date: str) -> None:
    with HashedFile(path) as file:
        write_table(table, file, {"date": date, "made": False})
