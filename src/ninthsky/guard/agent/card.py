"""What an agent knows of the process in a card slot, beyond the process itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from ninthsky.guard.probe import messages as m


@dataclass
class Card:
    """Of one process. `rank`: -1 until it was assigned."""

    ready: bool = False
    generation: int = 0
    rank: int = -1
    fenced: bool = False
    waiting: list[m.ToRank] | None = None  # messages that came while its state is still brought: they follow Assign
    last: dict[type, m.ToAgent] = field(default_factory=dict)
