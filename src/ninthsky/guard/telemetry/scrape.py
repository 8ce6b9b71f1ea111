"""Prometheus text -> samples, one parser for scrapes that lie in files and for those of a live exporter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{([^}]*)\})?\s+([-+]?(?:\d[\d.eE+-]*|NaN|Inf))")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
CARD_LABELS = ("gpu", "id", "npuID", "npu_id", "gpu_id", "device", "card")
HOST_LABELS = ("Hostname", "hostname", "node", "instance", "host")
BUS_LABELS = ("pci_bus_id", "pcie_bus_info", "pcie_bus_id")
_BUS = re.compile(r"\b(?:[0-9a-f]{4})?([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})", re.IGNORECASE)


class Sample(NamedTuple):
    """One value. `line` counts from 1."""

    name: str
    labels: dict[str, str]
    value: float
    line: int

    @property
    def card(self) -> str:
        return next((self.labels[name] for name in CARD_LABELS if name in self.labels), "")

    @property
    def host(self) -> str:
        return next((self.labels[name] for name in HOST_LABELS if name in self.labels), "")

    @property
    def bus(self) -> str:
        """The card's address on the bus as `bus_of` gives it, or nothing."""
        return bus_of(next((self.labels[name] for name in BUS_LABELS if name in self.labels), ""))


def samples(lines: Iterable[str], wanted: Iterable[str] | None = None) -> Iterator[Sample]:
    """Samples in order; of those metrics alone that are `wanted`, where that is given. What is no sample is passed over."""
    names = None if wanted is None else frozenset(wanted)
    for number, line in enumerate(lines, 1):
        found = SAMPLE.match(line)
        if found is None or (names is not None and found[1] not in names):
            continue
        try:
            value = float(found[3])
        except ValueError:
            continue
        yield Sample(found[1], dict(LABEL.findall(found[2] or "")), value, number)


def bus_of(text: str) -> str:
    """`0000:9b:00` out of `00000000:9B:00.0`, `PCI:0000:9b:00` or `amdgpu 0000:9b:00.0: ...`; empty where there is none."""
    found = _BUS.search(text)
    return ":".join(found.groups()).lower() if found else ""
