"""Scenario files: which faults a drill strikes with, each described by its effects, so that a kind needs no code.

TOML or JSON, by the file's ending. At the top, all optional:

    order = "drawn"                 by `weight` (default), or "given": one after the other as they stand, again and again
    [conditions]                    all the time, of the whole fleet
    skew = 0.0                      seconds, clocks of hosts differ by up to this
    lost = 0.0                      share of messages of agents that do not arrive
    delay = 0.0                     seconds, messages come up to so much late
    noise = 0.1                     factor on the recorded noise of step times (see noise.json)
    neighbours = 0.0                share of hosts on which other work takes time now and then, from half the ranks

    [[fault]]                       at least one
    name = "..."                    its class in the sheet
    like = "freeze"                 begins from a kind of kinds.toml; what is said here replaces it
    who = "ranks"                   or "hosts", "racks", "fleet"
    count = 1                       so many at once
    weight = 1.0
    expect = "unknown"              exit, frozen, stuck, host, nonfinite, slow, mismatch; "unknown": nobody may be
                                    blamed, told or not; "nothing": no fault may be told
    blame = "who"                   or "nobody"
    measure = ""                    "exit", "hang" or "slow": whose p99 its times count for
    also = "kill"                   another kind, at another rank
    also_when = "now"               or "repair": once the first one's repair has begun
    effects = { ... }               see Effects
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from ninthsky.errors import UserError

Where = Literal["local", "tp", "pp", "ep", "dp", "gate"]
Group = Literal["tp", "pp", "ep", "dp", "gate"]
Expected = Literal["exit", "frozen", "stuck", "host", "nonfinite", "slow", "mismatch", "unknown", "nothing"]
GROUPS: tuple[Group, ...] = get_args(Group)  # in the order in which a step enters them
CODE = "N9-GRD-040"


class Effects(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a fault does to those it strikes. Times in seconds."""

    exit: int | None = None  # the process ends: status as in subprocess, negative is a signal
    state: str = ""  # its letter in /proc/PID/stat
    heart: bool = True  # False: the heartbeat stops
    halts: Literal["", "local", "tp", "pp", "ep", "dp", "gate"] = ""  # where it stays: in its own work, or in a collective
    whole_group: bool = False  # all members of its group stay in that collective, though all have entered it
    other_op: Literal["", "tp", "pp", "ep", "dp", "gate"] = ""  # enters another collective than the others of this group
    nonfinite: bool = False  # its gradient of one step
    wall: float = 1.0  # factor on its local wall time
    cpu: float = 1.0  # and on its processor time
    grows: float = 0.0  # the factors, and `stalls`, grow from none over so long
    stalls: float = 0.0  # so much longer every step's collectives take
    silent: bool = False  # nothing is heard of its host's agent
    late: float = 0.0  # the agent's own clock tick comes so late
    share_of_host: float = 1.0  # of a host's ranks, this share
    on: float = 0.0  # comes and goes: so long there ...
    off: float = 0.0  # ... and so long away
    lasts: float = 0.0  # ends by itself; 0: does not


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of fault in a scenario."""

    name: str
    like: str = ""
    who: Literal["ranks", "hosts", "racks", "fleet"] = "ranks"
    count: int = 1
    weight: float = 1.0
    expect: Expected = "unknown"
    blame: Literal["who", "nobody"] = "who"
    measure: Literal["", "exit", "hang", "slow"] = ""
    also: str = ""
    also_when: Literal["now", "repair"] = "now"
    effects: Effects = Effects()


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the whole fleet, all the time."""

    skew: float = 0.0
    lost: float = 0.0
    delay: float = 0.0
    noise: float = 0.1
    neighbours: float = 0.0


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a drill does."""

    fault: list[Fault]
    conditions: Conditions = Conditions()
    order: Literal["drawn", "given"] = "drawn"

    def named(self, name: str) -> Fault:
        """A kind of this scenario, or else of kinds.toml. Raises KeyError."""
        for fault in (*self.fault, *(shipped().fault if self is not _shipped else ())):
            if fault.name == name:
                return fault
        raise KeyError(name)


_shipped: Scenario | None = None


def shipped() -> Scenario:
    """kinds.toml: the drill's own mix."""
    global _shipped
    if _shipped is None:
        _shipped = parse(resources.files(__package__).joinpath("kinds.toml").read_text("utf-8"), "kinds.toml")
    return _shipped


def load(path: Path) -> Scenario:
    """Raises UserError N9-GRD-040 with the place of what is wrong."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"the scenario cannot be read: {error}", str(path)) from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Scenario:
    """A scenario from its text; JSON where `where` ends in .json. Raises UserError N9-GRD-040."""
    try:
        tree: Any = msgspec.json.decode(text) if where.endswith(".json") else tomllib.loads(text)
    except (msgspec.DecodeError, tomllib.TOMLDecodeError) as error:
        raise _wrong(f"not a scenario: {error}", where) from error
    rows = tree.get("fault") if isinstance(tree, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise _wrong("a scenario needs at least one [[fault]]", where)
    known = {row.get("name"): row for row in rows}
    if where != "kinds.toml":
        known = {fault.name: msgspec.to_builtins(fault) for fault in shipped().fault} | {
            name: row for name, row in known.items() if "like" not in row
        }
    try:
        scenario = msgspec.convert({**tree, "fault": [_completed(row, known, where) for row in rows]}, Scenario)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), where) from error
    _check(scenario, set(known) | {fault.name for fault in scenario.fault}, where)
    return scenario


def _completed(row: dict[str, Any], known: dict[str, dict[str, Any]], where: str) -> dict[str, Any]:
    like = row.get("like")
    if not like:
        return row
    if like not in known:
        raise _wrong(f"fault {row.get('name')!r} is like {like!r}, which is no kind", where)
    base = known[like]
    effects = row.get("effects", {})
    return {**base, **row, "effects": {**base.get("effects", {}), **effects} if isinstance(effects, dict) else effects}


def _check(scenario: Scenario, known: set[str | None], where: str) -> None:
    names = [fault.name for fault in scenario.fault]
    conditions = scenario.conditions
    for wrong, what in (
        (len(set(names)) != len(names), "two faults of one name"),
        (not 0 <= conditions.lost < 0.5, "conditions.lost: from 0 to 0.5"),
        (not 0 <= conditions.delay <= 3.0, "conditions.delay: from 0 to 3 seconds"),
        (not 0 <= conditions.neighbours <= 0.5, "conditions.neighbours: from 0 to 0.5"),
        (not 0 <= conditions.noise <= 10.0, "conditions.noise: from 0 to 10"),
        (scenario.order == "drawn" and sum(max(f.weight, 0) for f in scenario.fault) <= 0, "no fault has a weight"),
    ):
        if wrong:
            raise _wrong(what, where)
    for fault in scenario.fault:
        e = fault.effects
        for bad, what in (
            (not fault.name, "a name is wanted"),
            (fault.weight < 0, "weight: 0 or more"),
            (not 1 <= fault.count <= 64, "count: from 1 to 64"),
            (fault.also and fault.also not in known, f"also {fault.also!r}, which is no kind"),
            (len(e.state) > 1 or (e.state and e.state not in "RSDTtZX"), "effects.state: one of R S D T t Z X"),
            (min(e.wall, e.cpu) <= 0 or max(e.wall, e.cpu) > 1000, "effects.wall, effects.cpu: factors over 0"),
            (min(e.grows, e.stalls, e.late, e.on, e.off, e.lasts) < 0, "effects: times are 0 or more"),
            ((e.on > 0) != (e.off > 0), "effects.on and effects.off go together"),
            (not 0 < e.share_of_host <= 1, "effects.share_of_host: over 0, 1 at most"),
            (e.whole_group and e.halts in ("", "local"), "effects.whole_group needs a group in effects.halts"),
            (e == Effects(), "it has no effect"),
        ):
            if bad:
                raise _wrong(f"fault {fault.name!r}: {what}", where)


def _wrong(what: str, where: str) -> UserError:
    return UserError(CODE, what, where, 'docs/guard/drill.md has the form; start from a kind: like = "freeze"')
