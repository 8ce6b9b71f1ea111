"""Stage radio.stations: a person's counters, or made ones, into the compact store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ninthsky.errors import UserError
from ninthsky.radio import store
from ninthsky.radio.counters import LEAST_DAYS, Findings, read_counters
from ninthsky.radio.made import AREAS, make
from ninthsky.run.folder import write_json
from ninthsky.run.stage import StageContext


def run(ctx: StageContext) -> None:
    """Writes `counters/part-*.parquet` and `counters.json` (what was found in the counters, and done about it)."""
    radio = ctx.settings.radio
    if radio.stations is None:
        raise ValueError("settings were not derived: radio.stations is None")
    if radio.counters is None and radio.days < LEAST_DAYS:
        raise UserError("N9-RAD-001", f"{radio.days} days; {LEAST_DAYS} are the least", "[radio] days", "28 are a good history")
    findings = Findings()
    parts: Iterable[store.Counters]
    if radio.counters is not None:
        counters, findings = read_counters(Path(radio.counters), hour_label=radio.hour_label, unit=radio.unit, days=radio.days)
        total = len(counters.starts) - 1
        parts = store.split(counters)
    else:
        total = radio.stations
        parts = make(total, radio.cells_per_station, radio.days, ctx.settings.seed)
    cells = known = hours = days = 0
    with ctx.progress("stations", total=total, unit="stations") as bar:
        for number, part in enumerate(parts):
            with ctx.open(f"counters/part-{number:05d}.parquet", rows=len(part.codes)) as file:
                store.write(part, file)
            cells += len(part.codes)
            hours += part.codes.size
            known += int((part.codes != store.MISSING).sum())
            days = part.days
            bar.advance(len(part.starts) - 1)
    made = radio.counters is None
    write_json(
        ctx.out / "counters.json",
        {"made": made, "stations": total, "cells": cells, "days": days, "rows": findings.rows, "found": findings.found},
    )
    ctx.adopt("counters.json")
    kind = "synthetic: made up for this run" if made else "a person's counters"
    ctx.summary(source=kind, stations=total, cells=cells, days=days, hours_known=f"{known / hours:.2%}")
    if made:
        ctx.limit(
            f"No station was measured: all {total:,} are synthetic ({', '.join(AREAS)}), shaped by hand and fitted to nothing. "
            "Their forecast and saving show that the machinery works, not what a network would save."
        )
        ctx.say(f"{total:,} stations of {radio.cells_per_station} cells, {days} days: synthetic", "yellow")
    else:
        ctx.table("radio-findings", "What was found in the counters", ["found", "times", "done"], findings.found)
        for what, count, done in findings.found:
            ctx.say(f"{count:,} {what}: {done}")
