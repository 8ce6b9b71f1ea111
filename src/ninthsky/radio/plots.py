"""Radio's plots as plain plotly dictionaries."""

from __future__ import annotations

from typing import Any

from ninthsky.radio.rules import Rules
from ninthsky.run.stage import StageContext

HOURS = [f"{hour:02d}" for hour in range(24)]


def band_plot(ctx: StageContext, station: str, band: dict[str, Any], rules: Rules, made: bool) -> None:
    """Tomorrow's band of one station, the level that the plan reckons with, and what the carriers left on may bear."""
    room = [rules.load_limit * (band["carriers"] - asleep) for asleep in band["asleep"]]

    def numbers(name: str) -> list[float]:
        return [round(float(value), 4) for value in band[name]]

    ctx.plot(
        "radio-band",
        f"Tomorrow at station {station}{' (synthetic)' if made else ''}: load, and what is left on",
        [
            {
                "type": "scatter",
                "mode": "lines",
                "name": "10 %",
                "x": HOURS,
                "y": numbers("q10"),
                "line": {"width": 0},
                "showlegend": False,
            },
            {
                "type": "scatter",
                "mode": "lines",
                "name": "10-90 %",
                "x": HOURS,
                "y": numbers("q90"),
                "fill": "tonexty",
                "line": {"width": 0},
            },
            {"type": "scatter", "mode": "lines", "name": "median", "x": HOURS, "y": numbers("q50")},
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{rules.level:.0%} quantile, planned with",
                "x": HOURS,
                "y": numbers("q_plan"),
                "line": {"dash": "dot"},
            },
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{rules.load_limit:.0%} of the carriers on",
                "x": HOURS,
                "y": room,
                "line": {"shape": "hvh"},
            },
        ],
        {
            "xaxis": {"type": "category", "title": {"text": "hour, named by its start"}},
            "yaxis": {"title": {"text": "load, in carriers"}, "rangemode": "tozero"},
        },
        f"n9 why {station}@HOUR tells why each hour is as it is.",
    )


def saving_plot(ctx: StageContext, figures: dict[str, Any]) -> None:
    """Savings side by side."""
    names = {
        "night_window": "night window",
        "hourly_maximum": "hourly maximum x 1.2",
        "hourly_maximum_matched": "hourly maximum, matched",
        "plan": "this plan",
        "oracle": "perfect foresight",
    }
    ctx.plot(
        "radio-saving",
        "Energy saved on past days" + (" (synthetic)" if figures["made"] else ""),
        [
            {
                "type": "bar",
                "x": list(names.values()),
                "y": [round(100 * figures[key]["saving"], 2) for key in names],
                "text": [f"{figures[key]['violations']:.2%} violations" for key in names],
            }
        ],
        {"yaxis": {"title": {"text": "% of all carriers on"}}},
    )


def frontier_plot(ctx: StageContext, figures: dict[str, Any]) -> None:
    """Saving against violations: ours over quantiles, the rival over factors."""

    def line(name: str, points: list[dict[str, float]], label: str) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [round(100 * p["violations"], 4) for p in points],
            "y": [round(100 * p["saving"], 3) for p in points],
            "text": [f"{label} {p[label]:g}" for p in points],
        }

    ctx.plot(
        "radio-frontier",
        "Saving against violations" + (" (synthetic)" if figures["made"] else ""),
        [line("this plan", figures["frontier"], "level"), line("hourly maximum", figures["rival_frontier"], "factor")],
        {"xaxis": {"title": {"text": "violations, % of off hours"}}, "yaxis": {"title": {"text": "energy saved, %"}}},
    )
