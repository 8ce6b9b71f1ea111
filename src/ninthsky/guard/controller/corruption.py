"""What is done about numbers that are wrong: state taken again where a replica has it, cards replaced and older state trusted
where they computed wrongly for some time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from ninthsky.guard.controller.ladder import Remedy
from ninthsky.guard.faults import Fault
from ninthsky.guard.judges import Verdict
from ninthsky.guard.judges.corrupt import Sign, judge_corrupt
from ninthsky.guard.probe.messages import Corrupt, Decide
from ninthsky.guard.spec import Watch

Key = tuple[int, int, int]  # generation, step, attempt


class Corruption:
    """What ranks told of wrong numbers, and what was answered; for the life of a controller."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.answers: dict[Key, Decide] = {}
        self.faults: dict[Key, Fault] = {}
        self._flips: Counter[str] = Counter()  # by card: state that changed at rest
        self._suspected: Counter[str] = Counter()  # by card: replays in which it was one of those that might be wrong

    def judge(self, told: Corrupt, cards: Sequence[str], climb: Callable[[Verdict], Remedy]) -> tuple[Verdict, Remedy]:
        """Verdict and rung. `cards`: of each rank. `climb` knows what there is to act with."""
        sign = Sign(told.kind, told.step, tuple(told.ranks), tuple(told.suspects), told.trusted, tuple(told.figures))
        verdict = judge_corrupt(sign)
        if told.kind == "rest":
            return verdict, self._at_rest(told, verdict, cards, climb)
        if not verdict.ranks:
            self._suspected.update(cards[rank] for rank in told.suspects)
            again = tuple(rank for rank in told.suspects if self._suspected[cards[rank]] > 1)
            if again:
                text = f"again among those of whom one computes wrongly: all {len(again)} are replaced"
                verdict = replace(verdict, ranks=again, text=text)
        return verdict, self._older(climb(verdict), told)

    def _at_rest(self, told: Corrupt, verdict: Verdict, cards: Sequence[str], climb: Callable[[Verdict], Remedy]) -> Remedy:
        self._flips.update(cards[rank] for rank in told.ranks)
        often = tuple(rank for rank in told.ranks if self._flips[cards[rank]] >= self._watch.card_failures)
        if often:
            return self._older(climb(replace(verdict, ranks=often)), told)
        if told.reload:
            return Remedy("restore", "state taken from the rank's own replica, step redone")
        return self._older(climb(replace(verdict, ranks=())), told)

    def _older(self, remedy: Remedy, told: Corrupt) -> Remedy:
        """The same rung, back to the state that can be trusted."""
        if remedy.rung not in {"regroup", "shrink", "rebuild", "restart", "rollback"}:
            return remedy
        done = {
            "regroup": f"regrouped, another card takes the place of rank {', '.join(map(str, remedy.evict))}",
            "rebuild": "groups rebuilt with the same cards",
        }.get(remedy.rung, remedy.text)
        state = f"the state after step {told.trusted}" if told.trusted >= 0 else "the first state"
        verified = told.trusted if remedy.verified is None else min(told.trusted, remedy.verified)
        return replace(remedy, text=f"{done}; back to {state}, the newest that is known to be right", verified=verified)

    def decided(self, told: Corrupt, generation: int, action: Literal["restore", "apply"]) -> None:
        """What all ranks are told."""
        self.answers[generation, told.step, told.attempt] = Decide(told.step, told.attempt, action)
