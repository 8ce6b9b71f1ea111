"""`causes.toml` as values: every cause with its evidence patterns, its ladder, and what a person does."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from ninthsky.errors import UserError
from ninthsky.guard.playbook.plain import plain

UNKNOWN = "unknown"
VENDORS = ("nvidia", "ascend", "amd")
# How sure one pattern alone makes of its cause; several count together as 1 - product of (1 - each).
WEIGHTS = {"strong": 0.86, "fair": 0.5, "weak": 0.2}
RUNGS = ("redo", "restart", "regroup", "shrink", "rollback")


class Row(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One cause as it stands in the file."""

    title: str
    kind: str
    scope: str
    component: str
    ladder: list[str]
    person: str
    strong: list[str] = []
    fair: list[str] = []
    weak: list[str] = []
    excluded: list[str] = msgspec.field(default=[], name="not")
    over: list[str] = []
    parts: dict[str, str] = {}
    nvidia: dict[str, list[str]] = {}
    ascend: dict[str, list[str]] = {}
    amd: dict[str, list[str]] = {}


@dataclass(frozen=True)
class Pattern:
    """One kind of evidence. `weight` is how sure it alone makes."""

    says: re.Pattern[str]
    weight: float
    strength: str  # strong, fair or weak
    vendor: str = ""


@dataclass(frozen=True)
class Cause:
    """A class of faults."""

    name: str
    title: str
    kind: str  # hardware, software or environment
    scope: str  # card, rank, node, rack or job: what it takes with it
    component: str
    ladder: tuple[str, ...]  # rungs allowed without a person
    person: str
    patterns: tuple[Pattern, ...]
    excluded: tuple[re.Pattern[str], ...]
    over: tuple[str, ...]
    parts: tuple[tuple[re.Pattern[str], str], ...]

    def component_of(self, text: str) -> str:
        """What is to be looked at, by the nearest part that the text names."""
        return next((part for pattern, part in self.parts if pattern.search(text)), self.component)


@dataclass(frozen=True)
class Playbook:
    """All causes, the words of those who only suffer from another one's fault, and what is printed whatever the cause is."""

    version: int
    causes: dict[str, Cause]
    echoes: tuple[re.Pattern[str], ...]
    advice: tuple[re.Pattern[str], ...] = ()

    def is_echo(self, line: str) -> bool:
        """Whether a line only tells that somebody else has gone."""
        return any(pattern.search(line) for pattern in self.echoes)

    def read(self, text: str) -> str:
        """The text in plain form, without what programs print for their reader: a list of causes is evidence of none."""
        text = plain(text)
        for pattern in self.advice:
            text = pattern.sub(" ", text)
        return text


def location() -> Path:
    """Where the playbook of this release lies."""
    return Path(str(resources.files(__package__).joinpath("causes.toml")))


@functools.cache
def shipped() -> Playbook:
    """The playbook that comes with this release."""
    return parse(location().read_text("utf-8"), "causes.toml")


def load(path: Path) -> Playbook:
    """A playbook of one's own. Raises UserError N9-GRD-020 where it is none, with all that is wrong in it."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "N9-GRD-020", f"cannot be read: {error}", str(path), "n9 guard playbook: where the shipped one lies"
        ) from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Playbook:
    """From the file's text. Raises UserError N9-GRD-020."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError("N9-GRD-020", f"no TOML: {error}", where, "n9 guard playbook --check FILE") from error
    wrong: list[str] = []
    causes = {name: cause for name, row in tree.get("causes", {}).items() if (cause := _cause(name, row, wrong)) is not None}
    wrong += [
        f"{cause.name}: over names {name!r}, which is no cause"
        for cause in causes.values()
        for name in cause.over
        if name not in causes
    ]
    echoes = _compiled("echoes", tree.get("echoes", {}).get("patterns", []), wrong)
    advice = _compiled("advice", tree.get("advice", {}).get("patterns", []), wrong)
    if not causes:
        wrong.append("it has no [causes.NAME]")
    if wrong:
        raise UserError("N9-GRD-020", "; ".join(wrong[:8]), where, "n9 guard playbook --check FILE")
    return Playbook(int(tree.get("version", 0)), causes, echoes, advice)


def _cause(name: str, tree: Any, wrong: list[str]) -> Cause | None:
    try:
        row = msgspec.convert(tree, Row)
    except msgspec.ValidationError as error:
        wrong.append(f"{name}: {error}")
        return None
    wrong += [f"{name}: no such rung as {rung!r}" for rung in row.ladder if rung not in RUNGS]
    patterns = [pattern for strength in WEIGHTS for pattern in _patterns(name, strength, getattr(row, strength), "", wrong)]
    for vendor in VENDORS:
        for strength, given in getattr(row, vendor).items():
            if strength not in WEIGHTS:
                wrong.append(f"{name}.{vendor}: {strength!r} is none of {', '.join(WEIGHTS)}")
                continue
            patterns += _patterns(name, strength, given, vendor, wrong)
    parts = tuple(zip(_compiled(name, list(row.parts), wrong), row.parts.values(), strict=False))
    excluded = _compiled(name, row.excluded, wrong)
    return Cause(
        name,
        row.title,
        row.kind,
        row.scope,
        row.component,
        tuple(row.ladder),
        row.person,
        tuple(patterns),
        excluded,
        tuple(row.over),
        parts,
    )


def _patterns(name: str, strength: str, given: list[str], vendor: str, wrong: list[str]) -> list[Pattern]:
    return [Pattern(says, WEIGHTS[strength], strength, vendor) for says in _compiled(name, given, wrong)]


def _compiled(name: str, given: list[str], wrong: list[str]) -> tuple[re.Pattern[str], ...]:
    """A blank in a pattern is any blank of the text, a line's end as well: logs wrap where they like."""
    found = []
    for text in given:
        try:
            found.append(re.compile(text.replace(" ", r"\s"), re.IGNORECASE))
        except re.error as error:
            wrong.append(f"{name}: {text!r} is no pattern: {error}")
    return tuple(found)
