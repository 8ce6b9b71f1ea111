"""`n9 radio`: counters to a plan, a backtest of a file, why a station's hour is as it is. Needs no run and no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from ninthsky.errors import OK, UserError

if TYPE_CHECKING:
    from ninthsky.radio.rules import Rules

app = App(name="radio", help="Station counters to forecast to energy plan. Nothing is ever sent to a network.")

Json = Annotated[bool, Parameter(name="--json", negative="", help="One JSON object instead of text.")]
Column = Annotated[tuple[str, ...], Parameter(name="--column", negative="", help="A column's name: --column load=PRB_UTIL")]
Label = Literal["start", "end"]


@app.command
def plan(
    counters: Path,
    *,
    out: Path = Path("radio-plan"),
    hour_label: Label = "start",
    unit: Literal["share", "percent", "traffic"] = "share",
    days: int = 28,
    column: Column = (),
    epsilon: float = 0.05,
    load_limit: float = 0.6,
    min_off_hours: int = 2,
    max_sleeps: int = 3,
    sleep_power: float = 0.10,
    json_: Json = False,
) -> int:
    """Tomorrow's sleeping hours of every carrier, from a CSV or Parquet file with the columns ts, station, cell, load.

    Parameters
    ----------
    counters:
        The file. A column `role` (coverage or capacity) says which cells may sleep; else the first cell by name never does.
    out:
        Folder for plan.csv, plan/, forecast/ and summary.json.
    hour_label:
        Whether `ts` names the start or the end of its hour. An hour's slip doubles violations.
    unit:
        What `load` holds. Traffic is scaled per cell, which is an assumption.
    days:
        The last days that are read.
    epsilon:
        Chance in an hour that the load exceeds what is left on.
    load_limit:
        Highest load of the carriers that stay on.
    min_off_hours:
        Shortest sleep.
    max_sleeps:
        Most sleeps of a carrier in a day.
    sleep_power:
        Power asleep, as a share of idle power.
    """
    rules = _rules(epsilon, load_limit, min_off_hours, max_sleeps, sleep_power)
    from ninthsky.radio.alone import Source, plan_counters

    summary = plan_counters(Source(counters, hour_label, unit, _columns(column), days), rules, out)
    if json_:
        print(json.dumps(summary, ensure_ascii=False))
        return OK
    _print_found(summary)
    print(
        f"\nplan for {summary['date']}: {summary['saving_tomorrow']:.1%} of carrier energy, {summary['sleeps']:,} sleeps, "
        f"{summary['stations_kept_on']:,} of {summary['stations']:,} stations kept on for lack of data"
    )
    _print_plans(summary["backtest"], rules)
    _print_lines("", summary["assumed"])
    print(f"\n{out / 'plan.csv'}   why: n9 radio why STATION@HOUR --plan {out}")
    return OK


@app.command
def backtest(
    file: Path,
    *,
    hour_label: Label = "start",
    unit: Literal["auto", "share", "percent", "traffic"] = "auto",
    days: int | None = None,
    column: Column = (),
    twins: bool | None = None,
    epsilon: float = 0.05,
    load_limit: float = 0.6,
    min_off_hours: int = 2,
    max_sleeps: int = 3,
    sleep_power: float = 0.10,
    json_: Json = False,
) -> int:
    """Forecast and plan the last days of a file, each from the days before it, and hold both against what then happened.

    Parameters
    ----------
    file:
        CSV or Parquet with the columns ts, cell, load, and perhaps station.
    hour_label:
        Whether `ts` names the start or the end of its hour.
    unit:
        What `load` holds; auto takes loads up to 1.05 for shares of capacity, else for traffic.
    days:
        The last days that are read; all otherwise.
    twins:
        Take every cell for two equal carriers; so it is without a station column.
    epsilon:
        Chance in an hour that the load exceeds what is left on.
    load_limit:
        Highest load of the carriers that stay on.
    min_off_hours:
        Shortest sleep.
    max_sleeps:
        Most sleeps of a carrier in a day.
    sleep_power:
        Power asleep, as a share of idle power.
    """
    rules = _rules(epsilon, load_limit, min_off_hours, max_sleeps, sleep_power)
    from ninthsky.radio.alone import Source
    from ninthsky.radio.alone import backtest as run_backtest

    found = run_backtest(Source(file, hour_label, unit, _columns(column), days), rules, twins)
    if json_:
        print(json.dumps(found, ensure_ascii=False))
        return OK
    _print_found(found)
    print(f"\n{found['cells']:,} cells, {found['reported_days']} days forecast a day ahead; {found['method']}\n")
    print(f"{'method':28s} {'WAPE':>7s} {'MASE':>7s} {'WQL':>7s} {'under q90':>10s}")
    for name, one in found["accuracy"].items():
        wql, cover = ("" if one[key] is None else f"{one[key]:.1%}" for key in ("wql", "coverage_q90"))
        print(f"{name:28s} {one['wape']:7.1%} {one['mase']:7.3f} {wql:>7s} {cover:>10s}")
    for title, key in (("load", "coverage_q90_by_load_decile"), ("earlier error", "coverage_q90_by_earlier_error_decile")):
        print(f"under q90, by decile of {title}: " + " ".join("-" if one is None else f"{one:.0%}" for one in found[key]))
    _print_plans(found["plans"], rules)
    _print_lines("", found["assumed"])
    return OK


@app.command
def why(id: str, *, plan: Path = Path("radio-plan"), json_: Json = False) -> int:
    """Why a station's carriers sleep in an hour, or why not more: STATION@HOUR of a plan that `n9 radio plan` wrote.

    Parameters
    ----------
    id:
        STATION@HOUR, the hour named by its start: S17@3
    plan:
        The plan's folder.
    """
    from ninthsky.evidence import encode
    from ninthsky.radio.why import explain

    record = explain(plan, id)
    if record is None:
        raise UserError("N9-WHY-001", f"no record has the id {id!r}", str(plan), "STATION@HOUR, with a station of plan.csv")
    print(encode(record).decode() if json_ else record.render())
    return OK


def _rules(epsilon: float, load_limit: float, min_off_hours: int, max_sleeps: int, sleep_power: float) -> Rules:
    from ninthsky.radio.rules import Rules

    for name, value in (("epsilon", epsilon), ("load_limit", load_limit), ("sleep_power", sleep_power)):
        if not 0 <= value <= 1:
            raise UserError("N9-CFG-012", f"--{name.replace('_', '-')} {value} is no share", "n9 radio", "a share is 0 to 1")
    if min_off_hours < 1 or max_sleeps < 1:
        raise UserError("N9-CFG-012", "--min-off-hours and --max-sleeps are 1 at least", "n9 radio", "give a whole number")
    return Rules(epsilon, load_limit, min_off_hours, max_sleeps, sleep_power)


def _columns(pairs: tuple[str, ...]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not equals or not theirs or ours not in {"ts", "station", "cell", "load", "role"}:
            raise UserError(
                "N9-CFG-012", f"--column {pair}", "n9 radio", "write OURS=YOURS; ours: ts, station, cell, load, role"
            )
        columns[ours] = theirs
    return columns


def _print_found(found: dict[str, Any]) -> None:
    for what, count, done in found["found"]:
        print(f"  {count:,} {what}: {done}")


def _print_lines(head: str, lines: list[str]) -> None:
    print(head)
    for line in lines:
        print(f"  {line}")


def _print_plans(figures: dict[str, Any], rules: Rules) -> None:
    from ninthsky.radio.plan import plans_table

    print(
        f"\n{figures['days']} past days, {figures['sites']:,} sites, loads held under {rules.load_limit:.0%} of what stays on"
    )
    columns, rows = plans_table(figures)
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    heads = ["plan", "saved", "of best", "violations", "off h/day", "sites", "worst 5 %"]
    widths = [max(width, len(head)) for width, head in zip(widths, heads, strict=True)]
    for row in [heads, *rows]:
        print("  " + "  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)))
    from ninthsky.radio.trial import verdict

    print(f"  {verdict(figures)}")
