"""Gradients that are not finite, or far from their peers', found by the vote before they reach anybody else: which rank, and
is it data or card?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ninthsky.evidence import Fact
from ninthsky.guard.judges.verdict import Cause, Verdict

What = Literal["nonfinite", "outlier", "range"]
Finding = Literal["once", "again", "card", "data", "gone", "everywhere"]


@dataclass(frozen=True)
class Vote:
    """One attempt of a step. `rotated`: the data was moved on by one rank, so that another card got each rank's samples.

    `shares`: which share of the batch each rank has where nothing is moved; by the ranks' own numbers where it is empty.
    """

    attempt: int
    ranks: tuple[int, ...]  # whose gradients were bad
    rotated: bool = False
    figures: tuple[str, ...] = ()
    shares: tuple[int, ...] = ()


BAD: dict[What, str] = {
    "nonfinite": "not finite",
    "outlier": "far from its peers'",
    "range": "changed since its backward, or far beyond its range",
}
FINE: dict[What, str] = {"nonfinite": "finite", "outlier": "ordinary", "range": "as it was put down, within its range"}


def judge_nonfinite(step: int, votes: list[Vote], world: int, what: What = "nonfinite") -> tuple[Finding, Verdict]:
    """What the attempts of one step say so far, oldest first.

    once, again: to be tried again. card, data: the rotation told them apart. gone: it did not come back when rotated.
    everywhere: most ranks at once, or only the sum, which is neither a card nor one rank's samples.
    """
    first, last, bad = votes[0], votes[-1], BAD[what]
    cause: Cause = "corrupt" if what == "range" else what
    facts = tuple(
        Fact(
            f"ranks whose gradient is {bad}",
            ", ".join(map(str, vote.ranks)) or "none",
            source=f"vote of step {step}, attempt {vote.attempt}{', data moved on by one rank' if vote.rotated else ''}",
        )
        for vote in votes
    ) + tuple(Fact("gate", figure, source=f"attempt {vote.attempt}") for vote in votes for figure in vote.figures)
    before = "the reduce: the vote is taken on each rank's own gradients, before they are added up"
    if len(first.ranks) > max(1, world // 2) and len(last.ranks) > max(1, world // 2):
        return "everywhere", Verdict(
            cause,
            (),
            f"gradients {bad} on {len(last.ranks)} of {world} ranks: the model diverged",
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
        text = f"gradient {bad}" + (", again after the step was redone" if len(votes) > 1 else "")
        return finding, Verdict(cause, first.ranks, text, facts, (before,), 1.0)
    if last.ranks and set(last.ranks) == set(first.ranks):
        return "card", Verdict(
            cause,
            first.ranks,
            f"gradient {bad} with other data too: the card",
            facts,
            (before, "the data: other samples gave the same on this rank"),
            0.95,
        )
    shares = last.shares or tuple(range(world))
    bad_shares = {shares[rank] for rank in first.ranks}
    if last.ranks and {(shares[rank] + 1) % (max(shares) + 1) for rank in last.ranks} <= bad_shares:
        return "data", Verdict(
            cause,
            (),
            f"gradient {bad} wherever these samples go: the data",
            facts,
            (before, f"the card of rank {first.ranks[0]}: it is {FINE[what]} with other samples"),
            0.95,
        )
    return "gone", Verdict(cause, first.ranks, f"gradient {bad}, not seen again when the data was moved", facts, (before,), 0.5)
