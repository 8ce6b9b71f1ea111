"""Stage radio.forecast: tomorrow's load of every cell and station as quantiles, by the forecaster better on earlier days."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ninthsky.radio import store
from ninthsky.radio.accuracy import Q90, report
from ninthsky.radio.candidates import BACKBONE, BOTH, CHOSEN, FAST, Chosen, Days, Scores, look, roll
from ninthsky.radio.conformal import GROUPS, at_level, groups_of
from ninthsky.radio.fast import LEVELS, cell_roots, site_roots
from ninthsky.radio.kernels import Floats
from ninthsky.radio.rolling import Pool, Split, prepare, split_days
from ninthsky.radio.rules import Rules
from ninthsky.run.stage import StageContext

if TYPE_CHECKING:
    from ninthsky.radio.transformer import Learner

SAMPLE_STATIONS = 1500  # that weights and ranks are learnt from
JUDGED_STATIONS = 800  # that forecasters and plans are held against
JUDGED_CELLS = 400
FIRST_PART = 0.4  # of the transformer's steps come before the choosing days, the rest before the reported ones


@dataclass(frozen=True)
class Sample:
    """Stations drawn from all shards: their sums and their cells as one pool, and the part that is judged."""

    counters: store.Counters
    pool: Pool
    judged: Pool
    sites: int  # the first rows of `judged` are station sums
    station: list[str]  # names of those


def run(ctx: StageContext) -> None:
    """Writes `forecast/part-*.parquet` (tomorrow), `sample.parquet` and `backtest.parquet` (to hold plans against)."""
    shards = store.shards(ctx.inputs["radio.stations"])
    seed, radio = ctx.settings.seed, ctx.settings.radio
    sample = draw(map(store.read, shards), len(shards), seed)
    split = split_days(sample.counters.days)
    fast = prepare(sample.pool, split.report, seed)
    days = range(split.report, split.days)
    learner = _learner(ctx, sample, split)
    scores: Scores | None = None
    if learner is None:
        quantiles = np.stack([fast.quantiles(sample.judged.roots, day, sample.judged.group) ** 2 for day in days])
        said = {CHOSEN: quantiles, FAST: quantiles}
        tomorrow = Chosen(prepare(sample.pool, split.days, seed))
    else:
        rolled = roll(sample.judged, days, fast, learner, _train(ctx, sample, split, learner))
        said, scores = rolled.said, rolled.scores
        shifts = {name: rolled.seen.shift(name, sample.judged.group) for name in (BACKBONE, BOTH)}
        tomorrow = Chosen(prepare(sample.pool, split.days, seed), learner, shifts, scores.best())
    report(ctx, sample, split, fast, said, scores)
    _write_backtest(ctx, sample, split, said[CHOSEN])
    date = sample.counters.first_day + datetime.timedelta(days=split.days)
    with ctx.progress("shards forecast", total=len(shards), unit="shards") as bar:
        for number, path in enumerate(shards):
            part = store.read(path)
            table = forecast_table(part, tomorrow, split.days, Rules.of(radio).level)
            with ctx.open(f"forecast/part-{number:05d}.parquet", rows=len(table)) as file:
                write_table(table, file, {"date": date.isoformat(), "made": part.made})
            bar.advance()
    shutil.rmtree(ctx.out / "work", ignore_errors=True)


def draw(parts: Iterable[store.Counters], shards: int, seed: int, stations: int = SAMPLE_STATIONS) -> Sample:
    """Looks through the shards once and keeps randomly drawn stations of them, the same number of each."""
    rng = np.random.default_rng((seed, 4))
    most = -(-stations // shards)
    kept: list[store.Counters] = []
    for part in parts:
        starts = part.starts
        count = len(starts) - 1
        chosen = np.sort(rng.choice(count, min(most, count), replace=False))
        rows = np.concatenate([np.arange(starts[one], starts[one + 1]) for one in chosen])
        kept.append(store.pick(part, rows))
    joined = store.join(kept)
    # In random order, so that the first of them are a fair part: shards follow the stations' names.
    starts = joined.starts
    shuffled = [np.arange(starts[one], starts[one + 1]) for one in rng.permutation(len(starts) - 1)]
    counters = store.pick(joined, np.concatenate(shuffled))
    return sample_of(counters, split_days(counters.days))


def sample_of(counters: store.Counters, split: Split) -> Sample:
    """Station sums and cells of these counters as one pool; groups from the days before the reported ones."""
    sites = site_roots(counters)
    cells = cell_roots(counters)
    roots = np.concatenate([sites, cells])
    pool = Pool(roots, groups_of(roots, split.report, counters.first_day), counters.first_day)
    few_sites, few_cells = min(JUDGED_STATIONS, len(sites)), min(JUDGED_CELLS, len(cells))
    # Cells from the far end: mostly of other stations than the judged sums.
    rows = np.concatenate([np.arange(few_sites), len(roots) - few_cells + np.arange(few_cells)])
    names = [counters.station[row] for row in counters.starts[:few_sites]]
    return Sample(counters, pool, pool.rows(rows), few_sites, names)


def _learner(ctx: StageContext, sample: Sample, split: Split) -> Learner | None:
    """The transformer, not yet trained; None, and said so, where it cannot be had."""
    export = ctx.inputs["train.pretrain"] / "export"
    if split.choose == split.report:
        ctx.say(f"{split.days} days of history: too few to train and choose on, so the fast path alone", "yellow")
        ctx.limit(f"With {split.days} days of history the transformer was not tried.")
        return None
    if not (export / "model.safetensors").exists():
        ctx.say("no pretrained checkpoint: the fast path alone", "yellow")
        ctx.limit("There was no pretrained checkpoint, so the transformer was not tried.")
        return None
    try:
        from ninthsky.radio.transformer import Learner
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ninthsky"):
            raise
        ctx.say(f"{error.name} is not installed: the fast path alone", "yellow")
        ctx.limit(f"The package {error.name!r} is not installed, so the transformer was not tried.")
        return None
    return Learner(export, sample.pool.roots, sample.pool.first_day, ctx.settings.seed)


def _train(ctx: StageContext, sample: Sample, split: Split, learner: Learner) -> Days:
    """Trains in two parts, each of which ends before the days that it is judged on; returns what the first part said."""
    radio = ctx.settings.radio
    steps = int(ctx.fixed("steps", lambda: radio.steps or learner.steps_within(radio.budget or 20.0)))
    first = max(1, int(steps * FIRST_PART))
    with ctx.progress("transformer", total=steps, unit="steps") as bar:
        learner.learn(split.choose, first, bar, ctx.out / "work" / "choose")
        earlier = prepare(sample.pool, split.choose, ctx.settings.seed)
        seen = look(sample.judged, range(split.choose, split.report), earlier, learner)
        losses = learner.learn(split.report, max(1, steps - first), bar, ctx.out / "work" / "report")
    loss = float(np.mean(losses[-20:]))
    ctx.summary(transformer_steps=steps, transformer_weights=learner.parameters(), transformer_loss=loss)
    return seen


def _write_backtest(ctx: StageContext, sample: Sample, split: Split, quantiles: Floats) -> None:
    """The judged stations' counters, and quantiles of their sums on the reported days: what radio.plan holds plans against."""
    days, sites = split.days - split.report, sample.sites
    values = np.ascontiguousarray(quantiles[:, :sites].reshape(days * sites, -1))
    table = pa.table(
        {
            "station": pa.array(sample.station * days),
            "day": pa.array(np.repeat(np.arange(split.report, split.days), sites).astype(np.int32)),
            "quantiles": _lists(values),
        }
    )
    judged = sample.counters.starts[sites]
    with ctx.open("sample.parquet", rows=int(judged)) as file:
        store.write(store.pick(sample.counters, np.arange(judged)), file)
    with ctx.open("backtest.parquet", rows=len(table)) as file:
        write_table(table, file, {"levels": ",".join(f"{level:g}" for level in LEVELS)})


def forecast_table(part: store.Counters, model: Chosen, day: int, plan_level: float) -> pa.Table:
    """Tomorrow's quantiles of one shard: a row per station sum (cell is empty) and per cell, 24 hours each.

    Columns q10, q50, q90 and q_plan (the level that the plan reckons with), in carriers.
    """
    roots = np.concatenate([site_roots(part), cell_roots(part)])
    pool = Pool(roots, groups_of(roots, day, part.first_day), part.first_day)
    quantiles = model.quantiles(pool, day)
    stations = [part.station[row] for row in part.starts[:-1]]
    names = np.array(model.model_of_group)[pool.group] if model.fast.ridge.ridge else np.full(len(roots), "hour-of-day mean")
    return pa.table(
        {
            "station": pa.array(stations + part.station),
            "cell": pa.array([""] * len(stations) + part.cell),
            "group": pa.array([GROUPS[number] for number in pool.group]).dictionary_encode(),
            "model": pa.array(names.tolist()).dictionary_encode(),
            "q10": _lists(quantiles[..., 0]),
            "q50": _lists(model.point(pool, day, quantiles)),
            "q90": _lists(quantiles[..., Q90]),
            "q_plan": _lists(at_level(quantiles, plan_level)),
        }
    )


def _lists(values: Floats) -> pa.Array:
    flat = np.ascontiguousarray(values, dtype=np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def write_table(table: pa.Table, file: Any, about: dict[str, Any]) -> None:
    """As Parquet, with `about` in its metadata."""
    kept = table.replace_schema_metadata({f"ninthsky.{key}": str(value) for key, value in about.items()})
    pq.write_table(kept, file, compression="zstd")


def lists_of(table: pa.Table, column: str) -> NDArray[np.float32]:
    """A fixed-size list column as an array [rows, width]."""
    chunk = table.column(column).combine_chunks()
    return np.asarray(chunk.flatten()).reshape(len(chunk), -1)
