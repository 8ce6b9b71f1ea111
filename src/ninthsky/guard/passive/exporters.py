"""Scrapes of vendors' exporters, kept as Prometheus text -> what is wrong with which card, in one vocabulary.

What the vendors' metrics mean stands in guard/telemetry/table.toml, for these and for live exporters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ninthsky.evidence import Fact
from ninthsky.guard.passive.lines import lines_of
from ninthsky.guard.telemetry.scrape import SAMPLE, samples
from ninthsky.guard.telemetry.table import shipped


@dataclass(frozen=True)
class Alarm:
    """A metric that speaks, of one card (of the host, where `card` is empty)."""

    cause: str  # empty where the playbook has to read `text`
    host: str
    card: str
    text: str
    fact: Fact


def is_scrape(path: Path) -> bool:
    """Whether a file looks like Prometheus text."""
    try:
        with path.open("r", encoding="utf-8", errors="replace") as file:
            head = [file.readline(500) for _ in range(20)]
    except OSError:
        return False
    return sum(bool(SAMPLE.match(line)) or line.startswith(("# HELP", "# TYPE")) for line in head) >= 2


def alarms(path: Path) -> list[Alarm]:
    """What speaks in one scrape, in the file's order. Counters are held against limits for all of a card's life."""
    found = []
    metrics = shipped().metrics
    for sample in samples((text for _, text in lines_of(path)), metrics):
        metric = metrics[sample.name]
        value, limit = sample.value * metric.factor, metric.alone
        if not math.isfinite(value):
            continue
        if metric.kind == "bits":
            speaks = metric.weigh(value)[0] is not None
        else:
            speaks = value < limit if metric.below else value >= limit
        if not speaks:
            continue
        card = sample.card if metric.card else ""
        where = f", card {card}" if card else ""
        text = f"{metric.text(value)} on {f'card {card}' if card else 'the host'}"
        fact = Fact(f"{metric.says}{where}", value, limit, metric.unit, f"{path}:{sample.line} {sample.name}")
        found.append(Alarm(metric.cause, sample.host, card, text, fact))
    return found
