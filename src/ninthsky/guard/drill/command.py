"""`n9 guard drill`: which drill is meant, and what is shown of it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import msgspec

from ninthsky.errors import FAILED, OK, UserError
from ninthsky.guard.drill.processes import run_drill
from ninthsky.guard.watch import line_of

CLOCKED_FROM = 32  # ranks
DEFAULTS = (4, 4)  # faults and ranks of the scripted drill
LARGE_DEFAULT = 20  # faults of the others


def drill(
    faults: int | None,
    ranks: int | None,
    seed: int,
    scenario: Path | None,
    days: float,
    sockets: bool,
    minutes: float,
    json_lines: bool,
) -> int:
    """Returns an exit status. Raises UserError N9-CFG-012 for what cannot be."""
    if (ranks is not None and (ranks < 4 or ranks % 2)) or (faults is not None and faults < 1) or days < 0 or minutes <= 0:
        what = f"{ranks} ranks, {faults} faults, {days:g} days, {minutes:g} minutes"
        how = "ranks: even, 4 at least; faults: 1 at least; days: none or more; minutes: over 0"
        raise UserError("N9-CFG-012", what, "n9 guard drill", how)
    plain = faults is None and ranks is None and scenario is None and not sockets and not json_lines
    if plain and sys.stdin.isatty() and sys.stdout.isatty():
        from ninthsky.guard.drill.live import play

        play(seed)
        return OK
    if sockets or scenario is not None or (ranks or 0) >= CLOCKED_FROM:
        size = max(ranks or CLOCKED_FROM, CLOCKED_FROM)
        return _fleet(faults or LARGE_DEFAULT, size, seed, scenario, days, minutes if sockets else None, json_lines)
    return _scripted(faults or DEFAULTS[0], ranks or DEFAULTS[1], seed, json_lines)


def _scripted(faults: int, ranks: int, seed: int, json_lines: bool) -> int:
    def show(event: dict[str, object]) -> None:
        text = line_of(event)
        if text and not json_lines:
            print(text, flush=True)

    begin = time.monotonic()
    sheet = run_drill(faults, ranks // 2, seed, show)
    if json_lines:
        print(msgspec.json.encode(sheet).decode())
    else:
        print(f"\nsimulated ranks, {time.monotonic() - begin:.0f} s: {sheet.exact} of {sheet.faults} faults named exactly,")
        print(f"{sheet.wrong} wrong, {sheet.committed_steps_lost} committed steps lost")
        for cause, seconds in sheet.named_seconds.items():
            print(f"  {cause:<10} named after {seconds:.2f} s, training again after {sheet.training_seconds[cause]:.2f} s")
    return OK if sheet.exact == sheet.faults and not sheet.wrong else FAILED


def _fleet(faults: int, ranks: int, seed: int, path: Path | None, days: float, minutes: float | None, json_lines: bool) -> int:
    from ninthsky.guard.drill.scenario import load
    from ninthsky.guard.drill.sheet import as_text, mix, run_clocked, run_sockets

    def show(text: str) -> None:
        if not json_lines:
            print(f"simulated: {text}", flush=True)

    scenario = load(path) if path else mix()
    if minutes is None:
        figures = run_clocked(ranks, faults, seed, scenario, days, show)
    else:
        figures = run_sockets(ranks, faults, seed, scenario, minutes, days, show)
    print(json.dumps(figures) if json_lines else "\n" + as_text(figures))
    return OK
