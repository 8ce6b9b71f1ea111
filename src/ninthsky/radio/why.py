"""`n9 why STATION@HOUR`: why a station's carriers sleep in an hour, or why no more of them do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ninthsky.evidence import Evidence, Fact
from ninthsky.radio.plan import read_plan
from ninthsky.run.folder import read_json


def explain(folder: Path, id: str) -> Evidence | None:
    """The record of one station's hour from a radio.plan folder, or None when the id is no such hour or no such station.

    HOUR is 0 to 23, also written 03 or 03:00, and names the hour by its start.
    """
    match = re.fullmatch(r"(?P<station>.+)@(?P<hour>\d{1,2})(:00)?", id)
    rules = read_json(folder / "rules.json")
    if match is None or rules is None or int(match["hour"]) > 23:
        return None
    found = read_plan(folder, match["station"])
    return None if found is None else _record(id, int(match["hour"]), *found, rules)


def _record(id: str, hour: int, site: dict[str, Any], cells: list[dict[str, Any]], rules: dict[str, Any]) -> Evidence:
    load, asleep = float(site["load"][hour]), int(site["asleep"][hour])
    carriers, limit = int(site["carriers"]), float(rules["load_limit"])
    sleeping = [cell["cell"] for cell in cells if cell["asleep"] >> hour & 1]
    # Order among the sleepers, so that the next one to sleep is known.
    sleepers = sorted((cell for cell in cells if cell["order"] is not None), key=lambda cell: cell["order"])
    facts = [
        Fact(
            f"load at the {rules['level']:.0%} quantile",
            load,
            limit * (carriers - asleep),
            "carriers",
            "radio.forecast; threshold: load limit of what stays on",
        ),
    ]
    ruled_out = []
    if site["reason"]:
        facts.append(Fact("data", site["reason"], None, "", "radio.stations"))
        ruled_out.append("any sleep: without sound data every carrier stays on")
    else:
        ruled_out += [
            f"{cell['cell']} asleep too: {_obstacle(cell, number, hour, load, carriers, site, rules)}"
            for number, cell in enumerate(sleepers)
            if not cell["asleep"] >> hour & 1
        ]
    ruled_out += [f"{cell['cell']} asleep too: a coverage cell is never off" for cell in cells if cell["role"] == "coverage"]
    made = " (synthetic)" if rules["made"] else ""
    if site["reason"]:
        verdict = f"all {carriers} carriers stay on: {site['reason']}"
    elif asleep:
        verdict = f"{asleep} of {carriers} carriers asleep ({', '.join(sleeping)})"
    else:
        verdict = f"all {carriers} carriers on"
    return Evidence(
        id=id,
        kind="station-hour",
        subject=f"station {site['station']}{made}, {rules['date']} {hour:02d}:00-{hour + 1:02d}:00",
        verdict=verdict,
        facts=tuple(facts),
        ruled_out=tuple(ruled_out),
        decided_by="radio.plan: " + rules["power"],
        where={"station": site["station"], "hour": hour},
    )


def _obstacle(
    cell: dict[str, Any], number: int, hour: int, load: float, carriers: int, site: dict[str, Any], rules: dict[str, Any]
) -> str:
    """What keeps the sleeper of that number awake in this hour."""
    room = float(np.float32(rules["load_limit"] * (carriers - 1 - number)))  # to the same bit as the plan
    if not load <= room:
        return f"{carriers - 1 - number} carrier(s) may bear {room:.3f}, {load:.3f} may come"
    fits = [value <= room for value in site["load"]]
    begin = end = hour
    while begin > 0 and fits[begin - 1]:
        begin -= 1
    while end < 23 and fits[end + 1]:
        end += 1
    if end - begin + 1 < rules["min_off_hours"]:
        return f"its load fits for {end - begin + 1} h only, and a sleep lasts {rules['min_off_hours']} h at least"
    return f"it already sleeps {rules['max_sleeps']} times that day, in longer runs of hours"
