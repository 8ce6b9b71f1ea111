"""table.toml as values: what an exporter's metric means in our words, and how heavy a line of the kernel's log weighs."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Literal, NamedTuple

import msgspec

Weight = Literal["hard", "warning", "said"]
Kind = Literal["gauge", "counter", "rate", "code", "bits"]


class Metric(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One metric of one vendor. `warn`, `hard`, `least` in our unit; see the head of table.toml."""

    figure: str
    cause: str
    says: str
    kind: Kind
    unit: str = ""
    factor: float = 1.0
    warn: float | None = None
    hard: float | None = None
    least: float | None = None
    below: bool = False
    lasts: int = 1
    apart: float | None = None
    card: bool = True
    codes_hard: tuple[int, ...] = ()
    codes_warn: tuple[int, ...] | Literal["any"] = ()
    set: int = 0

    @property
    def alone(self) -> float:
        """The value from which one scrape by itself speaks."""
        for limit in (self.least, self.hard, self.warn):
            if limit is not None:
                return limit
        return 1.0

    def weigh(self, value: float) -> tuple[Weight | None, float | None]:
        """What a value (gauge, increase, rate, code or mask, in our unit) says, and the limit that it was held against."""
        if self.kind == "code":
            code = int(value)
            if not code:
                return None, None
            warned = self.codes_warn == "any" or code in self.codes_warn
            return "hard" if code in self.codes_hard else "warning" if warned else "said", None
        if self.kind == "bits":
            return ("warning", float(self.set)) if int(value) & self.set else (None, None)
        limits: tuple[tuple[Weight, float | None], ...] = (("hard", self.hard), ("warning", self.warn))
        for weight, limit in limits:
            if limit is not None and (value < limit if self.below else value >= limit):
                return weight, limit
        return None, None

    def text(self, value: float) -> str:
        """`Xid 79`, `temperature 91 C`, `NPU error code 0x80e01801`."""
        shown = f"{int(value):#x}" if self.kind == "bits" or (self.kind == "code" and value > 0xFFFF) else f"{value:g}"
        return f"{self.says} {shown}" + (f" {self.unit}" if self.unit else "")


class _Row(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    weight: Weight | Literal["ignore"]
    says: str
    cause: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    version: int
    metrics: dict[str, Metric]
    kernel: list[_Row]


class Row(NamedTuple):
    """One kind of lines of the kernel's log. `cause` where the row knows better than the playbook."""

    weight: Weight | Literal["ignore"]
    says: re.Pattern[str]
    cause: str


@dataclass(frozen=True)
class Table:
    """`metrics` by the exporter's name; `kernel` in the order in which rows are asked."""

    version: int
    metrics: dict[str, Metric]
    kernel: tuple[Row, ...]

    def row_of(self, text: str) -> Row | None:
        """The row that knows a line of the kernel's log."""
        return next((row for row in self.kernel if row.says.search(text)), None)


@functools.cache
def shipped() -> Table:
    """The table of this release. Raises msgspec.ValidationError or re.error where it is none."""
    text = resources.files(__package__).joinpath("table.toml").read_text("utf-8")
    file = msgspec.convert(tomllib.loads(text), _File)
    rows = tuple(Row(row.weight, re.compile(row.says, re.IGNORECASE), row.cause) for row in file.kernel)
    return Table(file.version, file.metrics, rows)
