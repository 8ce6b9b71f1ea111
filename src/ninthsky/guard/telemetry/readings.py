"""Scrapes of one host, one after the other -> notes on what changed for the worse; a quiet exporter gives none.

What was there before the first scrape is history: a counter speaks by what is added, an error code by being new.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from ninthsky.guard.playbook.book import UNKNOWN
from ninthsky.guard.playbook.book import shipped as playbook
from ninthsky.guard.playbook.match import match
from ninthsky.guard.telemetry.note import HOST_WIDE, LONGEST, SURE, Note
from ninthsky.guard.telemetry.scrape import Sample, samples
from ninthsky.guard.telemetry.table import Metric, Table, Weight, shipped

AGAIN_SECONDS = 600.0  # before the same series is told again
APART_LASTS = 3  # scrapes in which a card must stand apart from its host's others
FEWEST = 4  # cards of a host among which one can stand apart
# What DCGM writes where it has no value (dcgm_structs.h: DCGM_INT32_BLANK, DCGM_INT64_BLANK, DCGM_FP64_BLANK, and after them).
_BLANKS = ((2147483632.0, 2147483647.0), (9.2233720368547e18, math.inf), (140737488355328.0, 140737488355343.0))
_PARTS = ("device", "port", "link_index", "controller")
_DIGITS = re.compile(r"(\d+)$")


@dataclass
class _Series:
    """What is remembered of one metric of one card."""

    value: float
    at: float
    streak: int = 0  # scrapes in a row that spoke
    calm: int = 0  # scrapes in a row that did not
    told_at: float = -math.inf
    open: bool = False  # told, and it has not been calm since


class Readings:
    """`slots`: how many cards the host has; what is said of another card is said of the host."""

    def __init__(self, slots: int, table: Table | None = None) -> None:
        self.buses: dict[str, int] = {}  # address on the bus -> slot
        self._slots, self._table = slots, table or shipped()
        self._series: dict[tuple[str, ...], _Series] = {}
        self._apart: dict[tuple[str, int], _Series] = {}
        self._first: set[str] = set()  # sources that have been read once

    def take(self, text: Iterable[str], now: float, source: str = "") -> list[Note]:
        """The notes of one scrape. `now` in seconds of any clock that does not jump; `source` names the exporter."""
        first = source not in self._first
        self._first.add(source)
        notes = []
        side: dict[str, dict[int, float]] = {}  # metric -> slot -> value
        for sample in samples(text, self._table.metrics):
            metric = self._table.metrics[sample.name]
            value = sample.value * metric.factor
            if not math.isfinite(value) or any(low <= sample.value <= high for low, high in _BLANKS):
                continue
            slot = self._slot(sample) if metric.card else HOST_WIDE
            if slot >= 0 and sample.bus:
                self.buses[sample.bus] = slot
            if metric.apart is not None and slot >= 0:
                side.setdefault(sample.name, {})[slot] = value
            key = (source, sample.name, sample.card if metric.card else "", *(sample.labels.get(part, "") for part in _PARTS))
            note = self._look(key, metric, value, slot, now, first)
            if note is not None:
                notes.append(note)
        for name, by_slot in side.items():
            notes += self._stand_apart(name, by_slot, now)
        return notes

    def _look(self, key: tuple[str, ...], metric: Metric, value: float, slot: int, now: float, first: bool) -> Note | None:
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series(value, now)
            if metric.kind == "code" and not first:
                series.value = 0.0  # an exporter shows the series from a card's first error on
            elif metric.kind in {"counter", "rate", "code"}:
                return None
        said, at = series.value, series.at
        series.value, series.at = value, now
        if metric.kind == "code":
            if value == said:
                return None
            weight, _ = metric.weigh(value)
            return None if weight is None else self._note(metric, weight, value, None, slot)
        figure = value
        if metric.kind in {"counter", "rate"}:
            figure = max(0.0, value - said)  # less than before: the exporter was started again
            if metric.kind == "rate":
                figure /= max(now - at, 1e-3)
        weight, limit = metric.weigh(figure)
        if not self._speaks(series, weight is not None, metric.lasts, now):
            return None
        if first and weight == "hard":
            weight = "warning"  # it was so before the job began, and the job runs
        return self._note(metric, weight or "said", figure, limit, slot)

    def _speaks(self, series: _Series, now_speaks: bool, lasts: int, now: float) -> bool:
        """Once when it begins, and not again before it was calm as long, and AGAIN_SECONDS passed."""
        if not now_speaks:
            series.streak, series.calm = 0, series.calm + 1
            series.open = series.open and series.calm < lasts
            return False
        series.streak, series.calm = series.streak + 1, 0
        if series.streak < lasts or series.open or now - series.told_at < AGAIN_SECONDS:
            return False
        series.open, series.told_at = True, now
        return True

    def _stand_apart(self, name: str, by_slot: dict[int, float], now: float) -> list[Note]:
        """Cards whose figure is far from the median of their host's: told as `said`, it may explain why one is slow."""
        metric = self._table.metrics[name]
        if len(by_slot) < FEWEST or metric.apart is None:
            return []
        usual = median(by_slot.values())
        notes = []
        for slot, value in by_slot.items():
            series = self._apart.setdefault((name, slot), _Series(value, now))
            far = value - usual >= metric.apart if metric.apart > 0 else value - usual <= metric.apart
            if self._speaks(series, far, APART_LASTS, now):
                text = f"{metric.text(value)}, the median of the host's cards is {usual:g}"
                limit = usual + metric.apart
                notes.append(Note("exporter", "said", metric.cause, slot, text[:LONGEST], value, limit, metric.unit))
        return notes

    def _note(self, metric: Metric, weight: Weight, value: float, limit: float | None, slot: int) -> Note:
        added = " added since the scrape before" if metric.kind == "counter" else " a second" if metric.kind == "rate" else ""
        text = f"{metric.text(value)}{added}"
        cause = metric.cause or self._read(text)
        return Note("exporter", weight, cause, slot, text[:LONGEST], value, limit, metric.unit)

    def _read(self, text: str) -> str:
        """Codes have no cause of their own in the table: the playbook knows them."""
        best = match(text, playbook())[0]
        return best.cause if best.cause != UNKNOWN and best.score >= SURE else ""

    def _slot(self, sample: Sample) -> int:
        found = _DIGITS.search(sample.card)
        slot = int(found[1]) if found else HOST_WIDE
        return slot if slot < self._slots else HOST_WIDE
