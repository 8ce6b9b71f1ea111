"""What an agent tells of its host, one finding a note: an exporter's figure over its limit, a line of the kernel's log."""

from __future__ import annotations

from typing import Literal

import msgspec

LONGEST = 300  # characters of a note's text
SURE = 0.5  # score from which the playbook's cause is told
HOST_WIDE = -1  # slot of what concerns the host, or a card that cannot be told


class Note(msgspec.Struct, frozen=True, array_like=True):
    """`weight`: `hard` is the card's fault by itself, `warning` advice to a person, `said` counts beside another verdict only.

    `cause` is of the playbook, empty where it knows none. `age` in seconds when it was sent, by the agent's clock; `uptime` in
    seconds since the host's boot, -1 where that is not known. `count`: how often it was said since it was last told.
    """

    source: Literal["exporter", "kernel"]
    weight: Literal["hard", "warning", "said"]
    cause: str
    slot: int
    text: str
    value: float = 0.0
    limit: float | None = None
    unit: str = ""
    age: float = 0.0
    uptime: float = -1.0
    count: int = 1
