"""When a foreign command is started again: it goes on from its own checkpoint, on the same cards, and only so often.

What no start mends is never started again: errors of the program, full disks, permissions, versions, ranks that disagree.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ninthsky.guard.controller.known import Known
from ninthsky.guard.controller.ladder import Remedy
from ninthsky.guard.judges import Verdict


@dataclass
class Restarts:
    """`allowed` starts beyond the first. `errors` counts the script's own exceptions, by what and where."""

    allowed: int
    possible: bool = True  # not where somebody else started the ranks
    done: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    bad_steps: Counter[int] = field(default_factory=Counter)

    def remedy(self, verdict: Verdict, known: Known | None = None, error: str = "", step: int = -1) -> Remedy:
        """`known`: what the ranks' last words say; `error`: the exception that a rank ended with; `step`: of a bad gradient."""
        if verdict.cause == "mismatch":
            return Remedy("stop", "not started again: ranks of one program disagree about a collective, an error of it")
        if known is not None and not known.ladder:
            return Remedy("stop", f"not started again: {known.title}, which no other card mends. {known.person}")
        if verdict.cause == "host":
            return Remedy("stop", "not started again: its host cannot be reached; start it without that host, or later")
        if verdict.cause == "slow":
            return Remedy("bear", "kept on: a new start would have the same card; drain it, or find what else runs there")
        if error:
            self.errors[error] += 1
            if self.errors[error] > 1:
                return Remedy("stop", "not started again: the program ended with the same exception at the same line before")
        if step >= 0:
            self.bad_steps[step] += 1
            if self.bad_steps[step] > 1:
                text = f"not started again: the gradient of step {step} was not finite before either"
                return Remedy("stop", f"{text}; if its newest checkpoint is spoilt, put an older one in its place")
        if not self.possible:
            return Remedy("stop", "nothing can be started again from here: somebody else started these ranks")
        if self.done >= self.allowed:
            return Remedy("stop", f"not started again: {self.done} of {self.allowed} restarts are used up (--restarts)")
        return Remedy("restart", "the command is ended and started again; it goes on from its own checkpoint", verdict.ranks)
