"""Radio's figures: accuracy and saving on real counters beside plain rules, and the rate from compact store to plan.

Real counters are third-party data for development (NINTHSKY_DATA); without them only the rate is measured. The rate is
measured on made stations, over processes as a country would be; a country's time is that rate times its stations, and said
to be so.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.report import publish
from ninthsky.radio import store
from ninthsky.radio.accuracy import truth_of
from ninthsky.radio.alone import Source, backtest
from ninthsky.radio.candidates import FAST, MEDIAN
from ninthsky.radio.conformal import at_level, groups_of
from ninthsky.radio.fast import site_roots
from ninthsky.radio.kernels import Floats
from ninthsky.radio.made import make_shard
from ninthsky.radio.plan import tomorrow
from ninthsky.radio.rolling import FastModel, Pool, Split, hour_mean, naive_error, prepare, split_days
from ninthsky.radio.rules import Rules, Sites, schedule, stay_on
from ninthsky.radio.trial import Trial, level_within

COUNTRY_STATIONS = 6_860_000
CELLS = 3
REAL: dict[str, dict[str, Any]] = {
    "milan25": {"columns": {"load": "traffic"}},
    "lte3_year": {"columns": {"load": "traffic"}},
    "itu5g": {"columns": {"station": "site"}, "hour_label": "end"},
}
MOST_VIOLATIONS = 0.01
Values = NDArray[np.float64]


def make_store(folder: Path, shards: int, stations: int) -> None:
    """Compact store of made stations; the same few shards are written again under new numbers, since only the rate is asked."""
    for number in range(shards):
        part = make_shard(number % 4, stations, CELLS, 28, seed=7)
        with (folder / f"part-{number:05d}.parquet").open("wb") as file:
            store.write(part, file)


def plan_file(task: tuple[Path, Path, FastModel]) -> tuple[int, float]:
    """One shard, from the store's Parquet to plan Parquet; (stations, CPU seconds)."""
    begin = time.process_time()
    source, target, model = task
    part = store.read(source)
    roots = site_roots(part)
    group = groups_of(roots, part.days, part.first_day)
    rules = Rules()
    load = at_level(model.quantiles(roots, part.days, group), rules.level) ** 2
    masks = schedule(load, Sites.of(part), stay_on(roots, part.days)[0], rules)
    stations = [part.station[row] for row in part.starts[:-1]]
    table = pa.table({"station": stations, "date": [tomorrow(part).isoformat()] * len(stations), **{
        f"sleeper_{number}": masks[:, number] for number in range(masks.shape[1])
    }})  # fmt: skip
    pq.write_table(table, target, compression="zstd")
    return len(stations), time.process_time() - begin


def country(series: int, processes: int) -> dict[str, Any]:
    """Measured rate over `series` cells, and what a country would take at that rate."""
    per_shard = 12_500
    shards = max(processes, round(series / CELLS / per_shard))
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "store", Path(scratch) / "plan"
        folder.mkdir()
        out.mkdir()
        make_store(folder, shards, per_shard)
        sample = site_roots(make_shard(0, 1500, CELLS, 28, seed=7))
        first = store.read(folder / "part-00000.parquet").first_day
        model = prepare(Pool(sample, groups_of(sample, 28, first), first), 28, seed=7)
        tasks = [(path, out / path.name, model) for path in sorted(folder.glob("*.parquet"))]
        with ProcessPoolExecutor(processes) as pool:
            list(pool.map(plan_file, tasks[:processes]))  # imports and compiled code are there before the clock starts
            begin = time.monotonic()
            done = list(pool.map(plan_file, tasks))
            seconds = time.monotonic() - begin
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        stored = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    stations = sum(count for count, _ in done)
    rate = stations / seconds
    cpu = sum(used for _, used in done)
    return {
        "measured_series": stations * CELLS,
        "measured_seconds": seconds,
        "processes": processes,
        "series_per_second": rate * CELLS,
        "country_seconds_fast": COUNTRY_STATIONS / rate,
        "country_cpu_seconds_fast": COUNTRY_STATIONS * cpu / stations,
        "country_mb": memory * processes,
        "store_bytes_per_series": stored / (stations * CELLS),
    }


def bootstrap(gaps: Values, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of a mean over series, by resampling series."""
    rng = np.random.default_rng(0)
    means = gaps[rng.integers(0, len(gaps), (draws, len(gaps)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Series:
    """One open set as a backtest sees it: each cell two equal carriers."""

    pool: Pool
    sites: Sites
    split: Split

    @classmethod
    def of(cls, folder: Path, name: str) -> Series:
        counters, _ = Source(folder / name / "load.parquet", unit="auto", **REAL[name]).read(station_needed=False)
        split = split_days(counters.days)
        cells = np.arange(len(counters.codes) + 1)
        roots = site_roots(store.renamed(counters, [str(cell) for cell in cells[:-1]], counters.cell), 2.0)
        pool = Pool(roots, groups_of(roots, split.report, counters.first_day), counters.first_day)
        return cls(pool, Sites.twins(len(roots)), split)

    def said(self, days: range) -> Floats:
        """Load quantiles of some days by a model that knows the days before the first of them."""
        model = prepare(self.pool, days[0], seed=7)
        return np.stack([model.quantiles(self.pool.roots, day, self.pool.group) ** 2 for day in days])

    def gap(self) -> Values:
        """Per series MASE of the hour-of-day mean less ours, on the reported days."""
        days = range(self.split.report, self.split.days)
        truth = truth_of(self.pool, days)
        scale = np.stack([naive_error(self.pool.roots, day) for day in days])
        ours = self.said(days)[..., MEDIAN]
        mean = np.stack([hour_mean(self.pool.roots, day) for day in days])
        errors = (np.nanmean(np.abs(truth - one), axis=2) / scale for one in (mean, ours))
        return np.nanmean(next(errors) - next(errors), axis=0)

    def careful(self) -> dict[str, float]:
        """The plan whose level was chosen on the week before the reported days, to keep violations under one per cent."""
        earlier, days = range(self.split.choose, self.split.report), range(self.split.report, self.split.days)
        before = Trial(self.pool.roots, earlier, self.sites, Rules())
        level = level_within(before, self.said(earlier), MOST_VIOLATIONS)
        trial = Trial(self.pool.roots, days, self.sites, Rules())
        plan, oracle = trial.quantile_plan(self.said(days), level), trial.oracle()
        _, rival = trial.matched_maximum(plan.violations)
        return {
            "level": level,
            "saving": plan.saving,
            "violations": plan.violations,
            "rival_saving": rival.saving,
            "saving_over_oracle": plan.saving / oracle.saving,
        }


def main() -> int:
    """Prints the table, and as its last line one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=300_000, help="made cells that the rate is measured on")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    rows: list[list[Any]] = []
    figures: dict[str, Any] = {}
    rate = country(given.series, given.processes)
    figures.update(rate)
    rows.append([
        f"store to plan, {rate['measured_series']:,} made cells, {rate['processes']} processes",
        f"{rate['series_per_second']:,.0f} cells/s", f"{rate['measured_seconds']:.1f} s measured",
    ])  # fmt: skip
    rows.append([
        "a country, 6.86 M stations x 3 cells: EXTRAPOLATED from that rate, not run",
        f"{rate['country_seconds_fast']:.0f} s, {rate['country_cpu_seconds_fast']:.0f} CPU-s",
        f"{rate['country_mb']:.0f} MB at most; fast path alone, one forecast per station's sum",
    ])  # fmt: skip
    folder = Path(os.environ.get("NINTHSKY_DATA", str(Path(__file__).parents[2] / "shared" / "data"))) / "radio"
    if not folder.is_dir():
        rows.append(["real counters", f"none under {folder}", "set NINTHSKY_DATA"])
        publish("radio", rows, figures)
        return 0
    gaps = []
    for name, how in REAL.items():
        found = backtest(Source(folder / name / "load.parquet", unit="auto", **how), Rules(), twins=True)
        plan, rival, oracle = (found["plans"][key] for key in ("plan", "hourly_maximum_matched", "oracle"))
        rivals = ", ".join(f"{key} {one['mase']:.3f}" for key, one in found["accuracy"].items() if key != FAST)
        rows.append([f"{name}: {found['cells']} cells, {found['reported_days']} days, MASE (WAPE)",
                     f"{found['mase']:.3f} ({found['wape']:.1%})", rivals])  # fmt: skip
        rows.append([f"{name}: truth at or under q90", f"{found['coverage_q90']:.1%}", "90 % promised"])
        rows.append([
            f"{name}: saving at {plan['violations']:.2%} violations, twin carriers assumed",
            f"{plan['saving']:.1%}",
            f"hourly maximum at the same violations {rival['saving']:.1%}, perfect foresight {oracle['saving']:.1%}",
        ])  # fmt: skip
        figures[name] = {key: found[key] for key in (
            "mase", "wape", "mase_best_rival", "best_rival", "coverage_q90", "saving", "violations", "saving_over_oracle",
            "over_history_max", "reported_days", "cells",
        )}  # fmt: skip
        if found["history_days"] >= 14:
            series = Series.of(folder, name)
            gaps.append(series.gap())
            careful = series.careful()
            figures[name]["at_most_1_percent"] = careful
            rows.append([f"{name}: level {careful['level']:.2f}, chosen on the week before for at most 1 % violations",
                         f"{careful['saving']:.1%} at {careful['violations']:.2%}",
                         f"hourly maximum at the same violations {careful['rival_saving']:.1%}"])  # fmt: skip
    # The headline keys are milan25's: the only open set here with weeks of history and more than a handful of series.
    milan = figures["milan25"]
    both = np.concatenate(gaps)
    low, high = bootstrap(both)
    figures |= {"mase": milan["mase"], "mase_best_rival": milan["mase_best_rival"], "coverage_q90": milan["coverage_q90"],
                "saving_over_oracle": milan["saving_over_oracle"], "violations": milan["violations"],
                "over_history_max": milan["over_history_max"], "mase_gain_over_hour_mean": float(both.mean()),
                "mase_gain_over_hour_mean_ci_low": low, "mase_gain_over_hour_mean_ci_high": high,
                "mase_gain_over_hour_mean_n": len(both)}  # fmt: skip
    rows.append([f"MASE less than the hour-of-day mean's, mean over {len(both)} series with weeks of history",
                 f"{both.mean():.3f}", f"95 % interval {low:.3f} to {high:.3f}, series resampled"])  # fmt: skip
    publish("radio", rows, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
