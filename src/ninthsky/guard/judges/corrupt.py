"""Numbers that are wrong and look like any other: state that changed at rest, replicas that differ, work that no other repeats.

The ranks find it, since only they see the numbers (train/rank/integrity.py); gradients beyond their range go the way of those
that are not finite. Here it is told what was found, and what that rules out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ninthsky.evidence import Fact
from ninthsky.guard.judges.verdict import Verdict

Kind = Literal["rest", "replicas", "replay"]


@dataclass(frozen=True)
class Sign:
    """What all ranks found in a step. `suspects` where nobody can be named; `trusted`: newest step whose state is right."""

    kind: Kind
    step: int
    ranks: tuple[int, ...]
    suspects: tuple[int, ...]
    trusted: int
    figures: tuple[str, ...]


_TEXTS = {
    "rest": "its state changed in memory between two updates",
    "replicas": "its weights are not those of its replicas, though nothing changed them at rest",
    "replay": "it computes something else than other cards from the same numbers",
}
_RULED_OUT = {
    "rest": (
        "the work of this step: the digest was taken when the last update was done, and again before the next",
        "other ranks: each is compared with itself",
    ),
    "replicas": ("memory at rest: its own digests agree",),
    "replay": ("the samples: both cards had the same", "the state: it is the same, and was digested on each rank"),
}
_CONFIDENCE = {"rest": 1.0, "replicas": 0.95, "replay": 0.97}


def judge_corrupt(sign: Sign) -> Verdict:
    """Names `ranks`, or nobody where it is one of `suspects`."""
    source = {"rest": "digest of the state", "replicas": "digests of replicas", "replay": "replay of the step"}[sign.kind]
    facts = tuple(Fact("found", figure, source=f"{source}, step {sign.step}") for figure in sign.figures)
    facts += (Fact("newest state known to be right", sign.trusted if sign.trusted >= 0 else "the first", source="ranks"),)
    if sign.ranks:
        ruled_out = _RULED_OUT[sign.kind]
        others = _named(sign.suspects, besides=sign.ranks)
        if others:
            ruled_out += (f"{others}: the majority agrees with it",)
        return Verdict("corrupt", sign.ranks, _TEXTS[sign.kind], facts, ruled_out, _CONFIDENCE[sign.kind])
    text = f"one of {_named(sign.suspects)}, it cannot be told which: {_TEXTS[sign.kind]}"
    return Verdict("corrupt", (), text, facts, _RULED_OUT[sign.kind], 0.5)


def _named(ranks: Sequence[int], besides: Sequence[int] = ()) -> str:
    found = [f"rank {rank}" for rank in ranks if rank not in besides]
    return ", ".join(found)
