"""One step on trial: a rule spoke at its gate, and the step is done again, or an earlier batch in its place, to find the cause.

    same step again, ordinary now            -> the card was wrong once: the new figures are applied
    same again, and an earlier batch as ever -> the data of this step
    same again, an earlier batch worse too   -> the state of the model: it is taken back, the rate lowered
    different every time, never ordinary     -> the card, and here is no other one
A few ranks that stand out are the guard's case: it has the samples moved on by a rank, and replaces a card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ninthsky.evidence import Fact
from ninthsky.train.control import rules
from ninthsky.train.control.rules import Finding, Reading
from ninthsky.train.control.window import Step, median, noise
from ninthsky.train.step.trainer import Gate

if TYPE_CHECKING:
    from ninthsky.train.control.steering import Control

Try = Literal["first", "redo", "probe", "guard", "final"]
PROBES = 16  # of so many last steps, the most ordinary one before the onset lends its batch


@dataclass(frozen=True)
class Decision:
    """What the caller does with the gradients it holds.

    apply them; drop them and do `Trial.batch` again; drop them and ask the guard about `ranks`; or drop them and leave the
    step behind: skip, roll back (to a state of at most `onset` finished steps), stop.
    """

    verb: Literal["apply", "again", "ask", "skip", "roll back", "stop"]
    reading: Reading
    ranks: tuple[int, ...] = ()
    onset: int = 0
    reason: str = ""
    record: str = ""  # id of the record that tells why


class Trial:
    """Of one step. `batch` is the step whose data the next attempt takes, `rotated` by how many ranks it is moved on."""

    def __init__(self, control: Control, step: int, guarded: bool) -> None:
        self._control, self._guarded = control, guarded
        self.step = self.batch = step
        self.rotated = 0
        self._try: Try = "first"
        self._first: Reading | None = None
        self._probed: Step | None = None
        self.finding: Finding | None = None
        self._facts: list[Fact] = []
        self._ruled_out: list[str] = []

    def judge(self, gates: Sequence[Gate]) -> Decision:
        """The next move, from the gates of all ranks; they are finite."""
        now = Reading.of(self.step, gates)
        if self._try == "first":
            return self._begin(now)
        if self._try == "redo":
            return self._redone(now)
        if self._try == "probe":
            return self._probe_read(now)
        if self._try == "guard":
            return self._guarded_attempt(now)
        return Decision("apply", now)

    def answered(self, action: str) -> None:
        """What the guard said to the last question: redo, rotate, or apply (it may only advise)."""
        self.rotated = int(action == "rotate")
        if self.finding is None:  # the question was of gradients that are not finite
            self._try = "first"
        else:
            self._try = "final" if action == "apply" else "guard"

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _begin(self, now: Reading) -> Decision:
        control = self._control
        if self.rotated:  # other samples: never applied
            return Decision("ask", now)
        if not control.watches:
            return Decision("apply", now)
        finding = rules.judge(control.window, now, control.limits, control.silent(self.step))
        if finding is None:
            return Decision("apply", now)
        self.finding, self._first, self._facts = finding, now, list(finding.facts)
        if finding.rule == "own" and self._guarded:
            self._try = "guard"
            return Decision("ask", now, finding.ranks)
        if finding.rule in rules.AT_ONCE:
            return self._again("redo", self.step, now)
        self._ruled_out.append("one bad batch, or one bad answer of a card: it lasted over many steps")
        if finding.rule == "drift":
            rising = any(fact.name.startswith("training loss") and float(fact.value) > 0 for fact in finding.facts)
            return self._conclude("state" if rising else "data", now, held=True)
        return self._probe(now)

    def _redone(self, now: Reading) -> Decision:
        assert self._first is not None
        control = self._control
        self._facts.append(Fact("loss of the step redone", now.loss, None, "nats", f"gradient norm {now.norm:.4g}"))
        again = rules.spike(control.window, now, control.limits) or rules.own(control.window, now, control.limits)
        if again is None:
            self._ruled_out.append("the data and the state of the model: the same samples gave ordinary figures when redone")
            return self._conclude("gone", now, held=True)
        if not now.same(self._first):
            self._ruled_out.append("the data and the state of the model: both were the same, the answers were not")
            return self._conclude("card", now)
        self._ruled_out.append("one wrong answer of a card: redone, the step gave the same figures")
        return self._probe(now)

    def _probe(self, now: Reading) -> Decision:
        """An earlier batch, of before the trouble, whose loss was ordinary: what does the model make of it now?"""
        assert self.finding is not None
        past = [step for step in self._control.window.steps if step.step < self.finding.onset][-PROBES:]
        if not past:
            return self._conclude("state", now)
        usual = median([step.loss for step in past])
        self._probed = min(past, key=lambda step: (abs(step.loss - usual), -step.step))
        return self._again("probe", self._probed.step, now)

    def _probe_read(self, now: Reading) -> Decision:
        """It was trained on since, so its loss should have fallen. It is compared with itself, which scatters less than batches
        among each other: a little worse, or a gradient much larger than then, is the model's doing."""
        assert self._probed is not None
        control, then = self._control, self._probed
        loss = then.loss + control.limits.probe_z * max(noise(control.window.losses), 0.01 * then.loss)
        norm = then.norm * control.limits.probe_norm
        self._facts.append(Fact(f"loss of the batch of step {then.step}, then {then.loss:.4g}", now.loss, loss, "nats", "now"))
        self._facts.append(Fact(f"its gradient norm, then {then.norm:.4g}", now.norm, norm, "", "now"))
        if now.loss <= loss and now.norm <= norm:
            self._ruled_out.append("the state of the model: an earlier batch is as good as it was")
            return self._conclude("data", now)
        self._ruled_out.append("the data of this step: an earlier batch, once ordinary, is worse now too")
        return self._conclude("state", now)

    def _guarded_attempt(self, now: Reading) -> Decision:
        """Redone or rotated as the guard asked; it hears which ranks stand out now, until it has an answer or it is gone."""
        control = self._control
        found = rules.own(control.window, now, control.limits)
        if found is None and not self.rotated:
            self._ruled_out.append("the data: the same samples gave ordinary gradients when redone")
            return self._conclude("gone", now, held=True)
        return Decision("ask", now, found.ranks if found is not None else ())

    def _again(self, which: Try, batch: int, now: Reading) -> Decision:
        self._try, self.batch = which, batch
        return Decision("again", now)

    # -- the end ------------------------------------------------------------------------------------------------------

    def told(self) -> list[str]:
        """The figures of the finding, as the guard shows them."""
        return [str(fact) for fact in self.finding.facts] if self.finding is not None else []

    def skipped_by_guard(self) -> Decision:
        """The guard moved the samples to another rank, and the trouble went with them."""
        if self.finding is None or self._first is None:  # not finite: there is no other way than to skip
            return Decision("skip", Reading(self.step, 0.0, 0.0, (), ()))
        self._ruled_out.append("the card: the trouble went with the samples when they were moved to another rank")
        self.rotated = 0
        return self._conclude("data", self._first)

    def _conclude(self, cause: str, now: Reading, *, held: bool = False) -> Decision:
        """`held`: the gradients at hand are this step's own, and may be applied where nothing else is to be done."""
        assert self.finding is not None
        verb, reason = self._control.conclude(self.finding, cause, self.step, self._facts, self._ruled_out)
        if verb == "apply" and not held:
            return self._again("final", self.step, now)
        record = f"C-{self.step:06d}-{self.finding.rule}"
        return Decision(verb, now, onset=self.finding.onset, reason=reason, record=record)
