"""Gradients that are not finite, found by the vote before they reach anybody else: which rank, and is it data or card?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ninthsky.evidence import Fact
from ninthsky.guard.judges.verdict import Verdict

Finding = Literal["once", "again", "card", "data", "gone", "everywhere"]


@dataclass(frozen=True)
class Vote:
    """One attempt of a step. `rotated`: the data was moved on by one rank, so that another card got each rank's samples."""

    attempt: int
    ranks: tuple[int, ...]  # whose gradients were not finite
    rotated: bool = False


def judge_nonfinite(step: int, votes: list[Vote], world: int) -> tuple[Finding, Verdict]:
    """What the attempts of one step say so far, oldest first.

    once, again: to be tried again. card, data: the rotation told them apart. gone: it did not come back when rotated.
    everywhere: most ranks at once, or only the sum, which is neither a card nor one rank's samples.
    """
    first, last = votes[0], votes[-1]
    facts = tuple(
        Fact(
            "ranks whose gradients are not finite",
            ", ".join(map(str, vote.ranks)) or "none",
            source=f"vote of step {step}, attempt {vote.attempt}{', data moved on by one rank' if vote.rotated else ''}",
        )
        for vote in votes
    )
    before = "the reduce: the vote is taken on each rank's own gradients, before they are added up"
    if len(first.ranks) > max(1, world // 2) and len(last.ranks) > max(1, world // 2):
        return "everywhere", Verdict(
            "nonfinite",
            (),
            f"gradients not finite on {len(last.ranks)} of {world} ranks: the model diverged",
            facts,
            (before, "one card: most ranks are concerned"),
            0.8,
        )
    if not first.ranks and not last.ranks:
        text = "the sum of gradients is not finite though every rank's own are: an overflow"
        return "everywhere", Verdict(
            "nonfinite", (), text, facts, ("a card or its samples: no rank's own gradients are concerned",), 0.7
        )
    if not last.rotated:
        finding: Finding = "once" if len(votes) == 1 else "again"
        text = "gradient not finite" + (", again after the step was redone" if len(votes) > 1 else "")
        return finding, Verdict("nonfinite", first.ranks, text, facts, (before,), 1.0)
    if last.ranks and set(last.ranks) == set(first.ranks):
        return "card", Verdict(
            "nonfinite",
            first.ranks,
            "gradient not finite with other data too: the card",
            facts,
            (before, "the data: other samples gave the same on this rank"),
            0.95,
        )
    moved = {(rank + shift) % world for rank in first.ranks for shift in (1, world - 1)}
    if last.ranks and set(last.ranks) <= moved:
        return "data", Verdict(
            "nonfinite",
            (),
            "gradient not finite wherever these samples go: the data",
            facts,
            (before, f"the card of rank {first.ranks[0]}: it is finite with other samples"),
            0.95,
        )
    return "gone", Verdict(
        "nonfinite", first.ranks, "gradient not finite, not seen again when the data was moved", facts, (before,), 0.5
    )
