"""Bad steps: what their attempts have shown, over all generations, and what was answered to the ranks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ninthsky.guard.faults import Fault
from ninthsky.guard.judges import Verdict
from ninthsky.guard.judges.nonfinite import BAD, Finding, Vote, judge_nonfinite
from ninthsky.guard.probe.messages import Bad, Decide


@dataclass
class BadStep:
    """One step. `evicted_rank`: whose card was replaced because of this step."""

    step: int
    votes: list[Vote] = field(default_factory=list)
    answers: dict[tuple[int, int], Decide] = field(default_factory=dict)  # by (generation, attempt)
    fault: Fault | None = None
    evicted_rank: int | None = None
    world: int = 0  # of the votes

    def judge(self, generation: int, bad: Bad, world: int) -> tuple[Finding, Verdict]:
        """Takes a vote in, and says what all of them show."""
        if world != self.world:  # ranks have other numbers now: what was said of them means nothing any more
            self.world, self.votes, self.evicted_rank = world, [], None
        ranks = tuple(sorted(bad.ranks))
        before = self.answers.get((generation, bad.attempt - 1))
        rotated = before is not None and before.action == "rotate"
        self.votes.append(Vote(bad.attempt, ranks, rotated, tuple(bad.figures), tuple(bad.shares)))
        finding, verdict = judge_nonfinite(self.step, self.votes, world, bad.what)
        if self.evicted_rank is None or self.evicted_rank not in ranks:
            return finding, verdict
        text = f"gradient {BAD[bad.what]} on another card too: the data"
        return "data", replace(
            verdict, ranks=(), text=text, ruled_out=("the card: it was replaced, and the new one found the same",)
        )

    @property
    def first_rank(self) -> int:
        """Who was bad first."""
        return next((vote.ranks[0] for vote in self.votes if vote.ranks), 0)

    def decided(self, generation: int, attempt: int, action: str) -> None:
        self.answers[generation, attempt] = Decide(self.step, attempt, action)  # type: ignore[arg-type]

    def card_replaced(self) -> None:
        """The votes begin again, with another card in the rank's place."""
        self.evicted_rank, self.votes = self.first_rank, []
