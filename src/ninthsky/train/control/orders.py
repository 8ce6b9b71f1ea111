"""A person's orders to a live run: lines in a file that only the run's owner can write, taken at a step boundary.

control/orders.jsonl   what was ordered, by `n9 train set`, `pause` and `resume`
control/taken.jsonl    the step from which each order holds: decided once, so that a resume and a twin replay it
"""

from __future__ import annotations

import math
import os
import stat
import time
from pathlib import Path
from typing import Literal

import msgspec

from ninthsky.errors import UserError
from ninthsky.run.folder import append_line, read_lines
from ninthsky.train.control.program import SETTABLE

FOLDER, ORDERS, TAKEN = "control", "orders.jsonl", "taken.jsonl"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file. `number` counts from 0 in the run's life."""

    number: int = -1
    verb: Literal["set", "pause", "resume"]
    values: dict[str, float] = {}
    time: float = 0.0


class Due(msgspec.Struct, frozen=True):
    """An order, and the step from which it holds."""

    order: Order
    step: int


def open_box(folder: Path) -> Path:
    """Makes `folder`/control for its owner alone, as the run does before it listens."""
    box = folder / FOLDER
    box.mkdir(parents=True, exist_ok=True)
    box.chmod(0o700)
    path = box / ORDERS
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    path.chmod(0o600)
    return box


def parse(assignments: tuple[str, ...]) -> dict[str, float]:
    """`("lr=1e-3",)` as numbers. Raises UserError N9-TRN-010 for an unknown name or a value that cannot be."""
    values: dict[str, float] = {}
    for text in assignments:
        name, equals, given = text.partition("=")
        if name not in SETTABLE or not equals:
            what = f"{text!r}: no setting of a live run" if equals else f"{text!r}: write name=value"
            raise UserError("N9-TRN-010", what, "n9 train set", f"what can be set: {', '.join(SETTABLE)}")
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        least, most = SETTABLE[name]
        if not least <= value <= most or (name == "checkpoint_every" and value != int(value)):
            what = f"{name} = {given!r}: a number from {least:g} to {most:g}"
            raise UserError("N9-TRN-010", what, "n9 train set", f"n9 train set {name}=NUMBER RUN")
        values[name] = value
    if not values:
        raise UserError("N9-TRN-010", "nothing to set", "n9 train set", f"name=value, of {', '.join(SETTABLE)}")
    return values


def give(box: Path, verb: Literal["set", "pause", "resume"], values: dict[str, float] | None = None) -> None:
    """Appends an order. Raises UserError N9-TRN-011 where the file is another person's."""
    path = box / ORDERS
    if not path.exists() or path.stat().st_uid != os.geteuid():
        what = "it takes no orders" if not path.exists() else "it belongs to another user"
        raise UserError("N9-TRN-011", f"this run cannot be told anything: {what}", str(path), "only the run's owner can")
    append_line(path, {"verb": verb, "values": values or {}, "time": time.time()})


class Orders:
    """Read by one process, between steps."""

    def __init__(self, box: Path) -> None:
        self.box, self._size, self._lines = box, -1, list[Order]()
        self.refused = ""  # why the file is not listened to
        self._taken = {line["order"]: int(line["step"]) for line in read_lines(box / TAKEN)}

    def due(self, done: int, step: int) -> list[Due]:
        """Orders after the first `done` that hold from `step` at the latest; new ones are noted to hold from `step`."""
        self._read()
        found: list[Due] = []
        for order in self._lines[done:]:
            if order.number not in self._taken:
                append_line(self.box / TAKEN, {"order": order.number, "step": step})
                self._taken[order.number] = step
            if self._taken[order.number] > step:
                break
            found.append(Due(order, self._taken[order.number]))
        return found

    def _read(self) -> None:
        try:
            status = (self.box / ORDERS).stat()
        except OSError:
            return
        if status.st_size == self._size:
            return
        self._size = status.st_size
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            self.refused = "orders.jsonl can be written by others than the run's owner"
            return
        self._lines = [_order(number, line) for number, line in enumerate(read_lines(self.box / ORDERS))]


def _order(number: int, line: dict[str, object]) -> Order:
    """A line that is no order holds nothing: whoever wrote it went around `n9 train set`."""
    try:
        order = msgspec.convert({**line, "number": number}, Order)
        parse(tuple(f"{name}={value!r}" for name, value in order.values.items())) if order.verb == "set" else None
        return order
    except (msgspec.ValidationError, UserError):
        return Order(number=number, verb="set")


def encode(due: list[Due]) -> bytes:
    """As every rank is told."""
    return msgspec.msgpack.encode(due)


def decode(raw: bytes) -> list[Due]:
    """Back from `encode`."""
    return msgspec.msgpack.decode(raw, type=list[Due])
