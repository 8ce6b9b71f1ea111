"""Stations that do not exist: for a run without counters. Everything made from them is labelled so.

Shapes are by area (offices, homes, transport, a venue, the country), with weekends, slow drift, autocorrelated noise, bursts,
event evenings at venues, rain days that everybody shares, lost hours and dead counters. They are plausible, not fitted.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ninthsky.radio.store import MISSING, SHARD_STATIONS, Counters, encode

FIRST_DAY = datetime.date(2026, 1, 5)  # a Monday; no real date is meant
Array = NDArray[np.float32]

# area -> (share of stations, (hour, width, height) of a working day's humps, weekend factor, hours that a weekend is later)
AREAS: dict[str, tuple[float, tuple[tuple[float, float, float], ...], float, float]] = {
    "office": (0.25, ((10.5, 2.6, 1.0), (15.5, 3.0, 0.95)), 0.35, 1.0),
    "homes": (0.35, ((8.0, 1.8, 0.45), (20.5, 3.2, 1.0)), 1.05, 1.5),
    "transport": (0.15, ((8.2, 1.4, 1.0), (18.0, 1.8, 0.95)), 0.55, 2.0),
    "venue": (0.05, ((13.0, 4.0, 0.5), (19.5, 2.5, 0.6)), 1.3, 0.5),
    "country": (0.20, ((12.0, 5.5, 0.8), (19.0, 2.5, 0.6)), 0.9, 0.5),
}


def shapes() -> tuple[Array, NDArray[np.float64]]:
    """Weekly shape of each area [areas, 7 x 24], peak near 1, and the areas' shares."""
    hours = np.arange(24) + 0.5
    weeks = []
    for _, humps, weekend, later in AREAS.values():

        def day(shift: float, humps: tuple[tuple[float, float, float], ...] = humps) -> NDArray[np.float64]:
            away = [np.abs((hours - at - shift + 12) % 24 - 12) / width for at, width, _ in humps]
            return sum((h[2] * np.exp(-0.5 * a**2) for h, a in zip(humps, away, strict=True)), np.full(24, 0.04))

        weeks.append(np.concatenate([day(0.0)] * 5 + [day(later) * weekend] * 2))
    return np.array(weeks, dtype=np.float32), np.array([area[0] for area in AREAS.values()])


def make(stations: int, cells: int, days: int, seed: int) -> Iterator[Counters]:
    """Shards of made counters. A shard depends on (seed, its number) alone, so that shards can be made in any order."""
    for number, begin in enumerate(range(0, stations, SHARD_STATIONS)):
        yield make_shard(number, min(SHARD_STATIONS, stations - begin), cells, days, seed)


def make_shard(number: int, stations: int, cells: int, days: int, seed: int) -> Counters:
    """One shard of `stations` stations with `cells` cells each."""
    rng = np.random.default_rng((seed, number))
    weekly = np.random.default_rng((seed, 1 << 40)).normal(0, 0.08, days).astype(np.float32)  # rain and fairs: shared by all
    forms, shares = shapes()
    area = rng.choice(len(shares), stations, p=shares)
    demand = _station_demand(rng, forms, area, days) * np.exp(weekly).repeat(24)[None]
    split = rng.dirichlet(np.full(cells, 12.0), stations).astype(np.float32)
    loads = demand[:, None, :] * (split * cells)[:, :, None]
    loads *= np.exp(rng.standard_normal(loads.shape, dtype=np.float32) * 0.10)
    loads = np.minimum(loads, 1.0).reshape(stations * cells, days * 24)
    codes, scale = encode(loads)
    _lose_hours(rng, codes)
    names = [f"S{number * SHARD_STATIONS + index:07d}" for index in range(stations)]
    return Counters(
        FIRST_DAY,
        [name for name in names for _ in range(cells)],
        [f"{name}-C{carrier + 1}" for name in names for carrier in range(cells)],
        np.tile(np.arange(cells) == 0, stations),
        scale,
        codes,
        made=True,
        unit="share of capacity (made)",
    )


def _station_demand(rng: np.random.Generator, forms: Array, area: NDArray[np.int64], days: int) -> Array:
    """Mean load per carrier [stations, hours]."""
    stations, hours = len(area), days * 24
    tiles = -(-days // 7)
    peak = np.clip(rng.lognormal(np.log(0.36), 0.45, stations), 0.04, 0.95).astype(np.float32)
    week = forms[area]
    # Every station bends its area's shape a little, once for all weeks.
    week = week * np.exp(rng.normal(0, 0.15, (stations, 24)).astype(np.float32))[:, np.tile(np.arange(24), 7)]
    load = np.tile(week, tiles)[:, :hours] * peak[:, None]
    noise = rng.standard_normal((stations, hours), dtype=np.float32)
    keep = np.float32(0.6)
    for hour in range(1, hours):
        noise[:, hour] = keep * noise[:, hour - 1] + np.sqrt(1 - keep**2) * noise[:, hour]
    spread = rng.gamma(6.0, 0.025, stations).astype(np.float32)  # most stations are calm, some are not
    drift = np.cumsum(rng.normal(0, 0.03, (stations, days)).astype(np.float32), axis=1)
    load = load * np.exp(noise * spread[:, None] + drift.repeat(24, axis=1))
    bursts = rng.random((stations, hours)) < 0.002
    load[bursts] *= 1 + rng.exponential(1.0, int(bursts.sum())).astype(np.float32)
    venue = np.flatnonzero(area == list(AREAS).index("venue"))
    for day in range(days):  # event evenings: nobody tells the forecast
        for station in venue[rng.random(len(venue)) < 0.08]:
            load[station, day * 24 + 18 : day * 24 + 23] *= 1 + 2 * rng.random()
    return load.astype(np.float32)


def _lose_hours(rng: np.random.Generator, codes: NDArray[np.uint8]) -> None:
    """Single lost hours everywhere, lost half days in some cells, and a counter that died in one of 400."""
    cells, hours = codes.shape
    codes[rng.random((cells, hours), dtype=np.float32) < 0.003] = MISSING
    for cell in np.flatnonzero(rng.random(cells) < 0.05):
        begin = int(rng.integers(0, hours - 12))
        codes[cell, begin : begin + 12] = MISSING
    for cell in np.flatnonzero(rng.random(cells) < 1 / 400):
        codes[cell, int(rng.integers(hours // 2, hours)) :] = MISSING
