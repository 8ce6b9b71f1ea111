"""What a judge hands over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ninthsky.evidence import Fact

Cause = Literal[
    "exit",
    "frozen",
    "stuck",
    "host",
    "nonfinite",
    "outlier",
    "corrupt",
    "slow",
    "mismatch",
    "trouble",
    "warning",
    "data",
    "loss",
    "unknown",
]


BEHIND = "; behind it "  # between a verdict and its reason


@dataclass(frozen=True)
class Limits:
    """Thresholds of the judges: seconds, ratios and counts of steps."""

    hang_seconds: float = 2.5
    host_seconds: float = 4.0
    slow_ratio: float = 1.5
    slow_steps: int = 8


@dataclass(frozen=True)
class Verdict:
    """One thing that is wrong. `ranks` are those to be replaced; empty where nobody is blamed.

    `onset` is how many seconds before the verdict's window it began, where that can be told.
    """

    cause: Cause
    ranks: tuple[int, ...]
    text: str
    facts: tuple[Fact, ...]
    ruled_out: tuple[str, ...] = ()
    confidence: float | None = None
    host: str = ""  # for cause "host"; several that went together are separated by ", "
    onset: float = 0.0
    playbook: str = ""  # what lies behind it, where the host itself told
    hard: bool = False  # what the host told is a fault of the card, whatever the program did

    @property
    def judge(self) -> str:
        return f"judge {self.cause}"
