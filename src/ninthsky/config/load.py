"""Reads run.toml. All mistakes are told at once, each with its line, a suggestion and a stable code."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ninthsky.config.schema import Settings
from ninthsky.config.size import derive
from ninthsky.errors import UserError

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """One thing wrong in a settings file."""

    code: str
    what: str
    where: str
    help: str

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.what}\n  --> {self.where}\n  help: {self.help}   (n9 explain {self.code})"


class SettingsError(UserError):
    """Every mistake of a settings file at once."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__(mistakes[0].code, mistakes[0].what)
        self.mistakes = mistakes

    def __str__(self) -> str:
        count = len(self.mistakes)
        return "\n".join([*map(str, self.mistakes), f"{count} mistake{'s' if count > 1 else ''}; nothing was run."])


def load_settings(path: Path, overrides: dict[str, Any] | None = None) -> Settings:
    """Settings of a file, with `overrides` (dotted key -> value) on top, and all that `size` derives.

    Raises SettingsError with every mistake, or UserError when the file cannot be read.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "N9-CFG-001", f"cannot read {path}: {error}", str(path), "check the path; it must be UTF-8 text"
        ) from error
    return parse_settings(text, str(path), overrides)


def parse_settings(text: str, name: str, overrides: dict[str, Any] | None = None) -> Settings:
    """As load_settings, from text. `name` stands in the messages."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            "N9-CFG-002", f"not TOML: {error}", name, "a line reads `key = value`; text stands in quotes"
        ) from error
    for dotted, value in (overrides or {}).items():
        block = tree
        *parents, last = dotted.split(".")
        for parent in parents:
            block = block.setdefault(parent, {})
        block[last] = value
    lines = _line_numbers(text)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError([_mistake(detail, name, lines) for detail in error.errors()]) from None
    mistakes = _contradictions(settings, name, lines)
    if mistakes:
        raise SettingsError(mistakes)
    return derive(settings)


def _contradictions(settings: Settings, name: str, lines: dict[Key, int]) -> list[Mistake]:
    """Settings that are fine one by one and cannot hold together."""
    ranks = settings.layout.hosts * settings.layout.ranks_per_host
    found = []

    def add(key: Key, what: str, help: str) -> None:
        found.append(Mistake("N9-CFG-013", what, _place(key, name, lines), help))

    if settings.mesh is not None:
        m = settings.mesh
        size = m.pp * m.dp_replicate * m.dp_shard * m.cp * m.tp
        if size != ranks:
            add(
                ("mesh",),
                f"[mesh] cuts the model over {size} ranks, [layout] has {ranks}",
                "pp x dp_replicate x dp_shard x cp x tp must equal hosts x ranks_per_host; `n9 layout` proposes a mesh",
            )
        elif (m.dp_replicate * m.dp_shard * m.cp * m.tp) % m.ep:
            add(("mesh", "ep"), f"ep = {m.ep} does not divide the ranks of one pipeline stage", "choose a divisor")
    if settings.train.budget and settings.train.steps:
        add(("train", "budget"), "[train] has both budget and steps", "keep one: budget measures first, steps is exact")
    for index, fault in enumerate(settings.train.inject):
        if fault.rank >= ranks:
            add(("train", "inject", index, "rank"), f"rank {fault.rank} does not exist", f"ranks go from 0 to {ranks - 1}")
    return found


def _mistake(detail: Any, name: str, lines: dict[Key, int]) -> Mistake:
    key: Key = tuple(detail["loc"])
    where = _place(key, name, lines)
    dotted = ".".join(map(str, key[:-1]))
    block = f"[{dotted}]" if dotted else "the top of the file"
    if detail["type"] == "extra_forbidden":
        valid = _valid_keys(key)
        close = difflib.get_close_matches(str(key[-1]), valid, n=1, cutoff=0.5)
        help = f"did you mean `{close[0]}`? " if close else ""
        return Mistake("N9-CFG-010", f"unknown key `{key[-1]}` in {block}", where, f"{help}valid: {', '.join(sorted(valid))}")
    wrong_type = detail["type"].endswith(("_type", "_parsing")) or detail["type"] in {"int_from_float"}
    message = detail["msg"].removeprefix("Value error, ")
    code = "N9-CFG-011" if wrong_type else "N9-CFG-012"
    given = detail.get("input")
    help = f"it is {given!r} now"
    if detail["type"] == "literal_error" and isinstance(given, str):
        close = difflib.get_close_matches(given, re.findall(r"'([^']+)'", detail["ctx"]["expected"]), n=1, cutoff=0.4)
        help = f"did you mean {close[0]!r}?" if close else help
    return Mistake(code, f"`{'.'.join(map(str, key))}`: {message}", where, help)


def _valid_keys(key: Key) -> list[str]:
    """Keys of the block that holds `key`."""
    model: type[BaseModel] = Settings
    for part in key[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        for candidate in (annotation, *_flatten(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)


def _flatten(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for inner in get_args(annotation):
        found += [inner, *_flatten(inner)]
    return found


def _place(key: Key, name: str, lines: dict[Key, int]) -> str:
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return f"{name}:{lines[key[:length]]}"
    return name


_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?")
_ASSIGN = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+)\s*=")


def _line_numbers(text: str) -> dict[Key, int]:
    """Line of each block and key: tomllib forgets them. Keys inside inline tables are found through their block."""
    lines: dict[Key, int] = {}
    tables: dict[Key, int] = {}
    block: Key = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            block = tuple(part.strip().strip("\"'") for part in header[2].split("."))
            if header[1] == "[[":
                tables[block] = tables.get(block, -1) + 1
                block = (*block, tables[block])
            lines.setdefault(block, number)
        elif assign := _ASSIGN.match(line):
            key = tuple(part.strip().strip("\"'") for part in assign[1].split("."))
            lines.setdefault((*block, *key), number)
    return lines
