"""Stage radio.plan: tomorrow's sleeping hours per carrier, and what such plans would have saved and broken on past days."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ninthsky.radio import store
from ninthsky.radio.energy import Power, asleep_by_hour
from ninthsky.radio.fast import LEVELS, site_roots
from ninthsky.radio.forecast import lists_of, write_table
from ninthsky.radio.kernels import Floats
from ninthsky.radio.plots import band_plot, frontier_plot, saving_plot
from ninthsky.radio.rules import STAY_ON_REASONS, Rules, Sites, schedule, stay_on
from ninthsky.radio.trial import Trial, compare, verdict
from ninthsky.run.folder import write_json
from ninthsky.run.stage import StageContext

ASSUMED = (
    "Assumed: the cells of a station are carriers of one area with equal capacity and power, so that load moves between them "
    "freely; offered load does not change when a carrier sleeps; hours are means, and bursts inside the hour are not seen "
    "(two-minute peaks were 1.8 times the hourly mean in the median, on three measured cells)."
)


@dataclass(frozen=True)
class Plan:
    """Tomorrow's plan of one shard."""

    cells: pa.Table  # station, cell, role, order of going to sleep, asleep (bit h: 24 hours from 00:00)
    stations: pa.Table  # station, carriers, may_sleep, reason to stay on, load reckoned with [24], carriers asleep [24]
    windows: pa.Table  # station, cell, date, start, end: one row per sleep
    saved: float  # idle-carrier-hours
    all_on: float


def run(ctx: StageContext) -> None:
    """Writes `plan/cells-*.parquet`, `plan/stations-*.parquet`, `plan.csv`, `rules.json`, `backtest.json`."""
    rules = Rules.of(ctx.settings.radio)
    figures, made = _backtest(ctx, rules)
    parts = store.shards(ctx.inputs["radio.stations"])
    forecasts = sorted((ctx.inputs["radio.forecast"] / "forecast").glob("part-*.parquet"))
    saved = all_on = 0.0
    kept_on = stations = 0
    shown: tuple[str, dict[str, Any]] | None = None
    with ctx.progress("shards planned", total=len(parts), unit="shards") as bar, ctx.open("plan.csv") as lines:
        lines.write(b"station,cell,date,start,end,state\n")
        for number, (path, forecast_path) in enumerate(zip(parts, forecasts, strict=True)):
            part, forecast = store.read(path), pq.read_table(forecast_path)
            plan = plan_shard(part, site_forecast(forecast, "q_plan"), site_forecast(forecast, "q50"), rules)
            for kind, table in (("cells", plan.cells), ("stations", plan.stations)):
                with ctx.open(f"plan/{kind}-{number:05d}.parquet", rows=len(table)) as file:
                    write_table(table, file, {"made": part.made})
            write_windows(plan.windows, lines)
            saved, all_on = saved + plan.saved, all_on + plan.all_on
            kept_on += sum(1 for reason in plan.stations.column("reason").to_pylist() if reason)
            stations += len(plan.stations)
            if shown is None:
                shown = _typical(forecast, plan)
            bar.advance()
    date = tomorrow(part)
    write_json(
        ctx.out / "rules.json",
        {**rules.plain(), "date": date.isoformat(), "made": made, "power": Power(sleep=rules.sleep_power).text()},
    )
    ctx.adopt("rules.json")
    ctx.summary(
        date=date.isoformat(),
        saved_tomorrow=f"{saved / all_on:.1%}" if all_on else "0 %",
        stations_kept_on=kept_on,
        **{f"{key}_share": value for key, value in figures["plan"].items() if key in {"saving", "violations"}},
        saving_over_oracle=figures["saving_over_oracle"],
        over_hourly_maximum=figures["over_hourly_maximum"],
    )
    name, band = shown if shown is not None else ("", {})
    if band:
        band_plot(ctx, name, band, rules, made)
    _headline(ctx, figures, made, name)
    ctx.say(
        f"plan for {date}: {saved / max(all_on, 1e-9):.1%} of carrier energy, "
        f"{kept_on} of {stations} stations kept on for lack of data"
    )


def tomorrow(part: store.Counters) -> datetime.date:
    """The date that is planned for."""
    return part.first_day + datetime.timedelta(days=part.days)


def site_forecast(forecast: pa.Table, column: str) -> Floats:
    """A quantile of the station sums [stations, 24]: the first rows of a shard's forecast, whose cell is empty."""
    sites = sum(1 for name in forecast.column("cell").to_pylist() if not name)
    return lists_of(forecast, column)[:sites]


def plan_shard(part: store.Counters, load: Floats, median: Floats, rules: Rules) -> Plan:
    """The plan of one shard from the load to reckon with and the median [stations, 24], both in carriers."""
    sites = Sites.of(part)
    starts = part.starts
    awake, reason = stay_on(site_roots(part), part.days)
    masks = schedule(load, sites, awake, rules)
    order = _order(part, starts)
    cell_mask = np.zeros(len(part.codes), np.uint32)
    for sleeper in range(masks.shape[1]):
        rows = np.flatnonzero(order == sleeper)
        site = np.searchsorted(starts, rows, side="right") - 1
        cell_mask[rows] = masks[site, sleeper]
    asleep = asleep_by_hour(masks)
    power = Power(sleep=rules.sleep_power)
    known = np.where(np.isfinite(median), median, 0).astype(np.float32)
    all_on = power.site_energy(known, sites.carriers, np.zeros_like(asleep)).sum()
    stations = [part.station[row] for row in starts[:-1]]
    cells = pa.table(
        {
            "station": pa.array(part.station),
            "cell": pa.array(part.cell),
            "role": pa.array(np.where(part.coverage, "coverage", "capacity").tolist()).dictionary_encode(),
            "order": pa.array(order.astype(np.int32), mask=order < 0),
            "asleep": pa.array(cell_mask),
        }
    )
    table = pa.table(
        {
            "station": pa.array(stations),
            "carriers": pa.array(sites.carriers.astype(np.int32)),
            "may_sleep": pa.array(sites.may_sleep.astype(np.int32)),
            "reason": pa.array([STAY_ON_REASONS[number] for number in reason]).dictionary_encode(),
            "load": pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(load, np.float32).ravel()), 24),
            "asleep": pa.FixedSizeListArray.from_arrays(pa.array(asleep.astype(np.uint8).ravel()), 24),
        }
    )
    return Plan(
        cells,
        table,
        _windows(part, cell_mask),
        float(all_on - power.site_energy(known, sites.carriers, asleep).sum()),
        float(all_on),
    )


def _order(part: store.Counters, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of its station's cells each one goes to sleep after: capacity cells by rising mean load; -1 for coverage cells."""
    known = part.codes != store.MISSING
    root = np.where(known, part.codes, 0).astype(np.float32) / store.TOP
    mean = (root**2).sum(axis=1) / np.maximum(known.sum(axis=1), 1) * part.scale
    site = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    by_load = np.lexsort((np.arange(len(mean)), mean, part.coverage, site))
    order = np.empty(len(mean), np.int64)
    order[by_load] = np.arange(len(mean)) - starts[site[by_load]]
    order[part.coverage] = -1
    return order


def _windows(part: store.Counters, mask: NDArray[np.uint32]) -> pa.Table:
    bits = ((mask[:, None] >> np.arange(24, dtype=np.uint32)) & 1).astype(np.int8)
    edge = np.diff(bits, axis=1, prepend=np.int8(0), append=np.int8(0))
    rows, start = np.nonzero(edge == 1)
    _, end = np.nonzero(edge == -1)
    date = tomorrow(part).isoformat()
    return pa.table(
        {
            "station": pa.array([part.station[row] for row in rows], pa.string()),
            "cell": pa.array([part.cell[row] for row in rows], pa.string()),
            "date": pa.array([date] * len(rows), pa.string()),
            "start": pa.array([f"{hour:02d}:00" for hour in start], pa.string()),
            "end": pa.array([f"{hour:02d}:00" for hour in end], pa.string()),
            "state": pa.array(["asleep"] * len(rows), pa.string()),
        }
    )


def write_windows(windows: pa.Table, lines: Any) -> None:
    """Appends sleeps to a CSV file whose header is written: local hours, named by their start; 24:00 is midnight after."""
    text = pl.DataFrame(windows).write_csv(include_header=False)
    lines.write(text.encode())


def _backtest(ctx: StageContext, rules: Rules) -> tuple[dict[str, Any], bool]:
    """Holds plans against the days that radio.forecast reported on."""
    folder = ctx.inputs["radio.forecast"]
    counters, table = store.read(folder / "sample.parquet"), pq.read_table(folder / "backtest.parquet")
    days = sorted(set(table.column("day").to_pylist()))
    quantiles = lists_of(table, "quantiles").reshape(len(days), -1, 24, len(LEVELS))
    trial = Trial(site_roots(counters), days, Sites.of(counters), rules)
    figures = compare(trial, quantiles)
    figures["made"] = counters.made
    write_json(ctx.out / "backtest.json", figures)
    ctx.adopt("backtest.json")
    ctx.table(
        "radio-plans",
        "What each plan would have saved and broken",
        *plans_table(figures),
        plans_note(figures, rules, counters.made),
    )
    saving_plot(ctx, figures)
    frontier_plot(ctx, figures)
    return figures, counters.made


def plans_table(figures: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: each plan beside its rivals."""
    oracle = figures["oracle"]["saving"]
    names = [
        ("plan", "this plan"),
        (
            "hourly_maximum_matched",
            f"hourly maximum x {figures['hourly_maximum_matched']['factor']:.2f}, matched with hindsight",
        ),
        ("hourly_maximum", f"hourly maximum x {figures['hourly_maximum']['factor']:.1f}"),
        ("night_window", "night window 00-06, whitelisted"),
        ("oracle", "perfect foresight"),
    ]
    rows = []
    for key, title in names:
        one = figures[key]
        share = one["saving"] / oracle if oracle else 0.0
        rows.append(
            [
                title,
                f"{one['saving']:.1%}",
                f"{share:.0%}",
                f"{one['violations']:.2%}",
                f"{one['off_hours']:.1f}",
                f"{one['sites_violating']:.1%}",
                f"{one['worst_share']:.0%}",
            ]
        )
    return [
        "plan",
        "energy saved",
        "of perfect foresight",
        "violations of off hours",
        "off hours per site and day",
        "sites ever violating",
        "violations of worst 5 % of sites",
    ], rows


def plans_note(figures: dict[str, Any], rules: Rules, made: bool) -> str:
    """Under what the table holds, and who won."""
    head = "Synthetic stations. " if made else ""
    return (
        f"{head}{verdict(figures)} {figures['sites']} sites, {figures['days']} days. A violation: a carrier-hour asleep while "
        f"the carriers on had more than {rules.load_limit:.0%} load. All plans keep the same limits: "
        f"{rules.min_off_hours} h at least, {rules.max_sleeps} sleeps a day per carrier. "
        f"{Power(sleep=rules.sleep_power).text()}."
    )


def _typical(forecast: pa.Table, plan: Plan) -> tuple[str, dict[str, Any]]:
    """A station whose sleep is the middle one of its shard, with its forecast."""
    asleep = lists_of(plan.stations, "asleep")
    row = int(np.argsort(asleep.sum(axis=1), kind="stable")[len(asleep) // 2])
    band: dict[str, Any] = {column: site_forecast(forecast, column)[row].tolist() for column in ("q10", "q50", "q90", "q_plan")}
    band |= {"asleep": asleep[row].tolist(), "carriers": plan.stations.column("carriers")[row].as_py()}
    return plan.stations.column("station")[row].as_py(), band


def _headline(ctx: StageContext, figures: dict[str, Any], made: bool, station: str) -> None:
    plan, rival = figures["plan"], figures["hourly_maximum_matched"]
    ctx.headline(
        f"Carrier energy saved at {plan['violations']:.2%} violations",
        f"{plan['saving']:.1%} ({figures['saving_over_oracle']:.0%} of perfect foresight)",
        "per-cell hourly maximum at the same violations",
        f"{rival['saving']:.1%}",
        f"n9 why {station}@3",
        synthetic=made,
    )
    ctx.say(verdict(figures))
    ctx.limit(ASSUMED)
    ctx.limit(
        "Savings are shares of carrier energy under stated power figures, not kWh: no meter was read. "
        + Power(sleep=ctx.settings.radio.sleep_power).text()
        + "."
    )
    rules = Rules.of(ctx.settings.radio)
    if rules.level != 1 - rules.epsilon:
        ctx.limit(f"epsilon {rules.epsilon:g} asks for a level that is not forecast: {rules.level:g} was planned with.")
    if not made:
        ctx.limit(
            "Hours in which earlier plans had carriers asleep are not marked in the counters: their loads are taken as offered."
        )
    ctx.limit("Past days are replayed: no network followed a plan, and nothing is ever sent to one.")


def read_plan(folder: Path, station: str) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """A station's row and its cells' rows of a plan folder."""
    import pyarrow.compute as pc

    for path in sorted((folder / "plan").glob("stations-*.parquet")):
        table = pq.read_table(path)
        found = table.filter(pc.equal(table.column("station"), station))
        if len(found):
            cells = pq.read_table(path.with_name(path.name.replace("stations", "cells")))
            return found.to_pylist()[0], cells.filter(pc.equal(cells.column("station"), station)).to_pylist()
    return None
