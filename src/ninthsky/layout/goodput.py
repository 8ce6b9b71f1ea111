"""Share of a long run's time that trains: what each interruption costs, by how fast it is found and mended."""

from __future__ import annotations

from dataclasses import dataclass

# Llama 3 (arXiv 2407.21783, table 5): 419 unexpected interruptions in 54 days on 16,384 cards.
FAILURES_PER_CARD_SECOND = 419 / (54 * 86_400 * 16_384)


@dataclass(frozen=True)
class Goodput:
    """Of `cards` cards that together fail every `mean_seconds_between`."""

    cards: int
    mean_seconds_between: float
    detect_seconds: float
    recover_seconds: float
    effective: float  # share of time that trains


def goodput(
    cards: int,
    detect: float,
    recover: float,
    checkpoint_every: float = 60.0,
    checkpoint_stall: float = 0.2,
    rate: float = FAILURES_PER_CARD_SECOND,
) -> Goodput:
    """(1 - stall) x M / (M + detect + recover + half a checkpoint interval), in seconds, with M = 1 / (rate x cards).

    First order, after Young (1974): failures are independent and much rarer than checkpoints. A test holds it against a
    simulation.
    """
    between = 1.0 / (rate * cards)
    stall = checkpoint_stall / (checkpoint_every + checkpoint_stall)
    effective = (1 - stall) * between / (between + detect + recover + checkpoint_every / 2)
    return Goodput(cards, between, detect, recover, effective)
