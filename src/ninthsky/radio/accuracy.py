"""What radio.forecast shows of its accuracy: errors beside the plain rivals', the choice per group, coverage by decile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ninthsky.radio.candidates import CHOSEN, FAST, FORECASTERS, MEDIAN, Scores
from ninthsky.radio.conformal import GROUPS
from ninthsky.radio.fast import LEVELS
from ninthsky.radio.kernels import Floats
from ninthsky.radio.rolling import (
    FastModel,
    Pool,
    Split,
    accuracy,
    coverage,
    days_of,
    deciles,
    hour_mean,
    naive_error,
    seasonal_naive,
)
from ninthsky.run.stage import StageContext

if TYPE_CHECKING:
    from ninthsky.radio.forecast import Sample

Q90 = int(np.flatnonzero(LEVELS == 0.9)[0])
HOUR_MEAN, WEEK_AGO = "hour-of-day mean", "seasonal naive"


def truth_of(pool: Pool, days: range) -> Floats:
    """Load [days, n, 24], NaN unknown."""
    roots = days_of(pool.roots, days)
    return np.where(roots >= 0, roots**2, np.nan).astype(np.float32)


def points(pool: Pool, days: range, fast: FastModel, said: dict[str, Floats]) -> dict[str, Floats]:
    """Point forecasts [days, n, 24]: medians, or with a short history the hour-of-day mean itself; and the plain rivals."""
    mean = np.stack([hour_mean(pool.roots, day) for day in days])
    return {
        **{name: quantiles[..., MEDIAN] if fast.ridge.ridge else mean for name, quantiles in said.items()},
        HOUR_MEAN: mean,
        WEEK_AGO: np.stack([seasonal_naive(pool.roots, day) for day in days]),
    }


def figures(
    pool: Pool, days: range, fast: FastModel, said: dict[str, Floats], part: slice
) -> dict[str, dict[str, float | None]]:
    """Per method WAPE, MASE, WQL and the share of truth at or under its 90 % quantile, over some rows of the pool."""
    truth = truth_of(pool, days)[:, part]
    scale = np.stack([naive_error(pool.roots, day) for day in days])[:, part]
    found: dict[str, dict[str, float | None]] = {}
    for name, point in points(pool, days, fast, said).items():
        quantiles = said[name][:, part] if name in said else None
        one = accuracy(truth, point[:, part], scale, quantiles).row()
        found[name] = {**one, "coverage_q90": None if quantiles is None else float(coverage(truth, quantiles[..., Q90])[0])}
    return found


def coverage_by_decile(pool: Pool, days: range, fast: FastModel, quantiles: Floats) -> dict[str, list[float | None]]:
    """Coverage of the 90 % quantile by decile of the forecast hour's load, and of the series' earlier error.

    Both deciles are fixed before the day: deciles chosen after the fact make a perfect forecaster look badly calibrated.
    """
    truth = truth_of(pool, days)
    spread = fast.ridge.predict(pool.roots, days[0])[1].mean(axis=1)
    level = quantiles[..., MEDIAN].mean(axis=(0, 2)) + 1e-9
    # By the error relative to the load: an absolute one would only sort cells by size.
    error = np.broadcast_to(deciles(spread / np.sqrt(level))[None, :, None], truth.shape)
    upper = quantiles[..., Q90]
    return {
        "by_load": _plain(coverage(truth, upper, deciles(quantiles[..., MEDIAN]))),
        "by_earlier_error": _plain(coverage(truth, upper, error)),
    }


def _plain(values: list[float]) -> list[float | None]:
    return [round(value, 4) if np.isfinite(value) else None for value in values]


def report(
    ctx: StageContext, sample: Sample, split: Split, fast: FastModel, said: dict[str, Floats], scores: Scores | None
) -> None:
    """Tables, plot and summary of the reported days; `said` holds every forecaster's load quantiles of the judged series."""
    judged, days, sites = sample.judged, range(split.report, split.days), sample.sites
    rows: list[list[Any]] = []
    for kind, part in (("stations", slice(0, sites)), ("cells", slice(sites, None))):
        found = figures(judged, days, fast, said, part)
        for name, one in found.items():
            rows.append([kind, name, *(_percent(one[key]) if key != "mase" else f"{one[key]:.3f}" for key in one)])
        if kind == "stations":
            ctx.summary(
                wape=found[CHOSEN]["wape"],
                wape_hour_mean=found[HOUR_MEAN]["wape"],
                mase=found[CHOSEN]["mase"],
                mase_hour_mean=found[HOUR_MEAN]["mase"],
                coverage_q90=found[CHOSEN]["coverage_q90"],
            )
    made = "Synthetic stations. " if sample.counters.made else ""
    ctx.table(
        "radio-accuracy",
        "Day-ahead accuracy on days that nothing was chosen or fitted on",
        ["series", "method", "WAPE", "MASE", "WQL", "truth at or under q90"],
        rows,
        f"{made}{len(days)} day(s), {sites} stations and {len(judged.roots) - sites} cells drawn at random. Seasonal naive: "
        "the same hour a week ago, or a day ago where there was no week.",
    )
    if scores is not None:
        wql = scores.wql()
        groups = [number for number in range(len(GROUPS)) if np.isfinite(wql[number]).all()]
        best = scores.best()
        ctx.table(
            "radio-choice",
            "Which forecaster each group takes for tomorrow",
            ["group", "series", *(f"WQL {name}" for name in FORECASTERS), "chosen"],
            [
                [
                    GROUPS[number],
                    int((judged.group == number).sum()),
                    *(_percent(float(value)) for value in wql[number]),
                    best[number],
                ]
                for number in groups
            ],
            f"{made}By the quantile loss of the last seven days, as every reported day was by the seven before it; a group "
            "leaves the fast path only for one that beat it on six of the seven.",
        )
        ctx.summary(chosen={GROUPS[number]: best[number] for number in groups})
    else:
        ctx.summary(chosen=FAST if fast.ridge.ridge else "hour-of-day mean (under 14 days of history)")
    if not fast.ridge.ridge:
        ctx.say("under 14 days of history: the hour-of-day mean, which nothing beats there", "yellow")
    _coverage_plot(ctx, coverage_by_decile(judged, days, fast, said[CHOSEN]), made)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _coverage_plot(ctx: StageContext, by: dict[str, list[float | None]], made: str) -> None:
    tens = [str(number) for number in range(1, 11)]
    line = {"type": "scatter", "mode": "lines+markers", "x": tens}
    ctx.plot(
        "radio-coverage",
        "Truth at or under the 90 % quantile, by decile",
        [
            {**line, "name": "by forecast load", "y": by["by_load"]},
            {**line, "name": "by earlier error of the series", "y": by["by_earlier_error"]},
            {**line, "name": "promised", "y": [0.9] * 10, "mode": "lines", "line": {"dash": "dot"}},
        ],
        {
            "xaxis": {"type": "category", "title": {"text": "decile, 1 lowest"}},
            "yaxis": {"title": {"text": "share"}, "range": [0.7, 1.0]},
        },
        f"{made}Deciles are fixed before the reported days.",
    )
