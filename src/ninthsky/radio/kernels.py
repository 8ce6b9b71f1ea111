"""The loops over every series of a country, compiled by numba: site sums, forecasts, sleeping hours.

Series are square roots of loads, because the noise of traffic grows with its level; -1 stands for an unknown hour.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

HISTORY = 28  # days that a forecast looks back
LAGS = 7
FEATURES = LAGS + 12
UNKNOWN = np.float32(-1.0)
Floats = NDArray[np.float32]


def compiled(function: Any) -> Any:
    """Compiled once and kept beside the source; runs without Python's lock."""
    return numba.njit(cache=True, nogil=True, fastmath=True)(function)


@compiled
def site_roots(codes: Any, scale: Any, starts: Any, square: Any, copies: float) -> Any:
    """Square root of each station's load [stations, hours], the loads of its cells added; unknown where any of them is.

    `copies` counts every cell that often (2.0 where one observed carrier stands for twins).
    """
    stations, hours = len(starts) - 1, codes.shape[1]
    out = np.empty((stations, hours), np.float32)
    total = np.empty(hours, np.float32)
    for s in range(stations):
        total[:] = 0.0
        for row in range(starts[s], starts[s + 1]):
            factor = scale[row] * np.float32(copies)
            for t in range(hours):
                code = codes[row, t]
                total[t] = -1.0 if code == 255 or total[t] < 0 else total[t] + square[code] * factor
        for t in range(hours):
            out[s, t] = np.sqrt(total[t]) if total[t] >= 0 else np.float32(-1.0)
    return out


@compiled
def _history(z: Any, day: int, mean: Any, residual: Any, rest: Any) -> int:
    """Hour-of-day mean over the days before `day` (28 at most), and each day's residual from it; unknown hours get residual 0.

    `rest` receives the mean residual of each day. Returns the number of days.
    """
    days = min(day, 28)
    first = day - days
    count = np.zeros(24, np.float32)
    mean[:] = 0.0
    for d in range(days):  # days outside, hours inside: the inner loops become vector instructions
        row = z[(first + d) * 24 : (first + d + 1) * 24]
        for h in range(24):
            known = np.float32(1.0) if row[h] >= 0 else np.float32(0.0)
            mean[h] += row[h] * known
            count[h] += known
    overall = np.float32(0.0)
    number = np.float32(0.0)
    for h in range(24):
        overall += mean[h]
        number += count[h]
    level = overall / number if number > 0 else np.float32(0.0)
    for h in range(24):
        mean[h] = mean[h] / count[h] if count[h] > 0 else level
    for d in range(days):
        total = np.float32(0.0)
        row = z[(first + d) * 24 : (first + d + 1) * 24]
        for h in range(24):
            gap = row[h] - mean[h] if row[h] >= 0 else np.float32(0.0)
            residual[d, h] = gap
            total += gap
        rest[d] = total / np.float32(24.0)
    return days


@compiled
def _features(residual: Any, rest: Any, days: int, weekday: int, out: Any) -> None:
    """What the ridge reads, for each hour of the day after the history: out[FEATURES, 24].

    Residuals of the last seven days at that hour; of the same weekday, averaged over its weeks; of the last 3 and 14 days;
    of yesterday's last three hours; whole-day residuals of yesterday, of the last week, of the same weekday; the same weekday's
    neighbouring hours; and of all days of the same kind (weekend or not), for the hour and the whole day. `weekday` is that of
    the day after the history, 0 for Monday.
    """
    for k in range(7):
        for h in range(24):
            out[k, h] = residual[days - 1 - k, h] if k < days else np.float32(0.0)
    weeks = days // 7
    week_rest = np.float32(0.0)
    for h in range(24):
        out[7, h] = 0.0
        out[8, h] = 0.0
        out[9, h] = 0.0
    for w in range(1, weeks + 1):
        for h in range(24):
            out[7, h] += residual[days - 7 * w, h] / np.float32(weeks)
    for k in range(min(3, days)):
        for h in range(24):
            out[8, h] += residual[days - 1 - k, h] / np.float32(3.0)
    for k in range(min(14, days)):
        for h in range(24):
            out[9, h] += residual[days - 1 - k, h] / np.float32(14.0)
    for w in range(1, weeks + 1):
        week_rest += rest[days - 7 * w] / weeks
    last = np.float32(0.0)
    for k in range(min(7, days)):
        last += rest[days - 1 - k] / np.float32(7.0)
    for h in range(24):
        out[10, h] = residual[days - 1, 23]
        out[11, h] = residual[days - 1, 22]
        out[12, h] = residual[days - 1, 21]
        out[13, h] = rest[days - 1]
        out[14, h] = last
        out[15, h] = week_rest
        out[16, h] = out[7, (h + 23) % 24] + out[7, (h + 1) % 24]
    alike = 0
    alike_rest = np.float32(0.0)
    out[17, :] = 0.0
    for k in range(days):
        if ((weekday + 6 - k % 7) % 7 >= 5) == (weekday >= 5):
            alike += 1
            alike_rest += rest[days - 1 - k]
            for h in range(24):
                out[17, h] += residual[days - 1 - k, h]
    for h in range(24):
        out[17, h] = out[17, h] / alike if alike > 0 else np.float32(0.0)
        out[18, h] = alike_rest / alike if alike > 0 else np.float32(0.0)


@compiled
def design(z: Any, targets: Any, first_weekday: int) -> Any:
    """For every series and target day: hour mean [n, targets, 24], features [n, targets, FEATURES, 24].

    `first_weekday` is the weekday of day 0 (0 for Monday), here and in `predict`.
    """
    n = z.shape[0]
    mean = np.empty((n, len(targets), 24), np.float32)
    features = np.empty((n, len(targets), 19, 24), np.float32)
    residual = np.empty((28, 24), np.float32)
    rest = np.empty(28, np.float32)
    for i in range(n):
        for t in range(len(targets)):
            days = _history(z[i], targets[t], mean[i, t], residual, rest)
            _features(residual, rest, days, (first_weekday + targets[t]) % 7, features[i, t])
    return mean, features


@compiled
def _predict(
    z: Any, day: int, first_weekday: int, weights: Any, mean: Any, residual: Any, rest: Any, features: Any, out: Any
) -> None:
    """Median of the root load in each hour of `day`."""
    days = _history(z, day, mean, residual, rest)
    _features(residual, rest, days, (first_weekday + day) % 7, features)
    for h in range(24):
        out[h] = mean[h]
    for k in range(19):
        for h in range(24):
            out[h] += weights[k, h] * features[k, h]
    for h in range(24):
        out[h] = max(out[h], np.float32(0.0))


@compiled
def predict(z: Any, day: int, first_weekday: int, weights: Any, spread_by_hour: Any, calibration: int, prior: float) -> Any:
    """Median [n, 24] and spread [n, 24] of the root load in each hour of `day`, from the days before it alone.

    `weights` [FEATURES, 24]; all zero gives the hour-of-day mean. The spread is the mean absolute error of the same predictor
    on the `calibration` days before, for this series and hour and its two neighbours, drawn towards the series' own average
    (shaped by `spread_by_hour` [24]) with the weight of `prior` observations.
    """
    n = z.shape[0]
    median = np.empty((n, 24), np.float32)
    spread = np.empty((n, 24), np.float32)
    mean = np.empty(24, np.float32)
    residual = np.empty((28, 24), np.float32)
    rest = np.empty(28, np.float32)
    features = np.empty((19, 24), np.float32)
    guess = np.empty(24, np.float32)
    error = np.empty(24, np.float32)
    count = np.empty(24, np.float32)
    for i in range(n):
        error[:] = 0.0
        count[:] = 0.0
        for back in range(1, calibration + 1):
            _predict(z[i], day - back, first_weekday, weights, mean, residual, rest, features, guess)
            for h in range(24):
                truth = z[i, (day - back) * 24 + h]
                if truth >= 0:
                    error[h] += abs(truth - guess[h])
                    count[h] += 1
        total = np.float32(0.0)
        shape = np.float32(0.0)
        for h in range(24):
            total += error[h]
            shape += count[h] * spread_by_hour[h]
        own = total / shape if shape > 0 else np.float32(1.0)
        _predict(z[i], day, first_weekday, weights, mean, residual, rest, features, guess)
        for h in range(24):
            before, after = (h + 23) % 24, (h + 1) % 24
            near = error[before] + error[h] + error[after]
            seen = count[before] + count[h] + count[after]
            median[i, h] = guess[h]
            spread[i, h] = max((near + prior * own * spread_by_hour[h]) / (seen + prior), np.float32(1e-3))
    return median, spread


@compiled
def sleeping(load: Any, carriers: Any, may_sleep: Any, awake: Any, limit: float, min_off: int, max_sleeps: int) -> Any:
    """Hours [stations, sleepers] in which each capacity carrier sleeps, as a 24-bit mask (bit 0 is 00:00-01:00).

    `load` [stations, 24] is what each hour must be able to carry, in carriers; less than 0 (unknown) keeps the hour on, and
    `awake` the whole day. `may_sleep` [stations] of the `carriers` are capacity carriers, at least one always stays on.
    Sleeper k (0 first to sleep) may sleep in the hours that `carriers - 1 - k` carriers can carry below `limit`; its hours
    are the `max_sleeps` longest of those runs that last `min_off` hours or more. That is the most any single carrier can
    sleep; the order among carriers is fixed.
    """
    n = load.shape[0]
    most = 0
    for i in range(n):
        most = max(most, may_sleep[i])
    mask = np.zeros((n, most), np.uint32)
    begin = np.empty(24, np.int64)
    length = np.empty(24, np.int64)
    for i in range(n):
        if awake[i]:
            continue
        for k in range(may_sleep[i]):
            room = np.float32(limit * (carriers[i] - 1 - k))
            runs = 0
            run = 0
            for h in range(25):
                fits = h < 24 and load[i, h] >= 0 and load[i, h] <= room
                if fits:
                    run += 1
                elif run > 0:
                    if run >= min_off:
                        begin[runs] = h - run
                        length[runs] = run
                        runs += 1
                    run = 0
            bits = 0
            for _ in range(min(max_sleeps, runs)):
                best = 0
                for r in range(1, runs):
                    if length[r] > length[best]:
                        best = r
                for h in range(begin[best], begin[best] + length[best]):
                    bits |= 1 << h
                length[best] = 0
            mask[i, k] = bits
    return mask
