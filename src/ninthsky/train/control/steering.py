"""Control of one run, the same on every rank: window, program, and what the rules and a person decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import msgspec

from ninthsky.evidence import Evidence, Fact
from ninthsky.train.control.limits import Limits
from ninthsky.train.control.orders import Due
from ninthsky.train.control.program import Change, Lift, Program, Undone
from ninthsky.train.control.rules import ACTIONS, Action, Finding, Reading
from ninthsky.train.control.trial import Trial
from ninthsky.train.control.window import Step, Validation, Window, median
from ninthsky.train.step.recipe import Recipe
from ninthsky.train.step.trainer import Trainer

RECOVERED = 5.0  # times the share below which an expert counts as dead
SIGNALS = 5  # numbers that `signals` adds to a rank's gate


class State(msgspec.Struct):
    """All that the next decision depends on: kept with every shard and every checkpoint."""

    window: Window
    program: Program = msgspec.field(default_factory=Program)
    silent: dict[str, int] = {}  # rule -> first step at which it may speak again
    starved: dict[int, list[int]] = {}  # layer -> steps in a row that each expert was dead
    lifting: tuple[int, int] | None = None  # (layer, expert)
    lifted: int = 0  # steps in a row
    lowered: int = 0  # times
    orders: int = 0  # taken so far
    paused: bool = False


class Control:
    """`replay`: a finished run's program, followed to the letter by a twin; no rule speaks then.

    `tell` hears of every firing, where this process is the one that keeps records.
    """

    def __init__(
        self,
        limits: Limits,
        recipe: Recipe,
        *,
        replay: Program | None = None,
        tell: Callable[[Evidence], None] | None = None,
    ) -> None:
        self.limits, self.recipe, self.replay, self._tell = limits, recipe, replay, tell
        self.state = State(
            Window(limits.window), msgspec.convert(msgspec.to_builtins(replay), Program) if replay else Program()
        )
        self._validation = (0.0, 0.0)  # this rank's sum and count, on their way through the next gate

    @property
    def window(self) -> Window:
        return self.state.window

    @property
    def program(self) -> Program:
        return self.state.program

    @property
    def watches(self) -> bool:
        return self.limits.mode != "off" and self.replay is None

    def silent(self, step: int) -> frozenset[str]:
        """Rules that are cooling down."""
        return frozenset(rule for rule, until in self.state.silent.items() if step < until)

    # -- a step -------------------------------------------------------------------------------------------------------

    def begin(self, trainer: Trainer) -> bool:
        """Sets what holds for the trainer's next step. True: that step left no trace, and was passed over."""
        if self.program.leaves_no_trace(trainer.step):
            trainer.step += 1
            return True
        recipe = self.program.recipe_at(self.recipe, trainer.step)
        recipe = replace(recipe, micro_batches=trainer.recipe.micro_batches)  # with fewer ranks there are more
        if recipe != trainer.recipe:
            trainer.retune(recipe)
        return False

    def trial(self, step: int, guarded: bool = False) -> Trial:
        """`guarded`: there is a guard that can move samples to other ranks and replace a card."""
        return Trial(self, step, guarded)

    def validated(self, total: float, count: float) -> None:
        """This rank's part of a validation pass, taken before the step whose gate carries it."""
        self._validation = (total, count)

    def signals(self, orders: int = 0) -> list[float]:
        """What this rank adds to its gate: validation, an expert to lift, and how many bytes of orders it has to tell."""
        layer, expert = self.state.lifting or (-1, -1)
        if layer not in self.state.starved:  # another pipeline stage's: it tells itself
            layer, expert = -1, -1
        row, self._validation = [*self._validation, float(layer), float(expert), float(orders)], (0.0, 0.0)
        return row

    def hear(self, step: int, rows: Sequence[Sequence[float]]) -> int:
        """The signals of all ranks at the first gate of `step`. -> bytes of orders that rank 0 has to tell."""
        total, count = (sum(row[place] for row in rows) for place in (0, 1))
        if count:
            recent = self.window.losses[-self.limits.block :]
            if recent:
                self.window.add_validation(Validation(step - 1, total / count, median(recent)))
        self.state.lifting = next(((int(row[2]), int(row[3])) for row in rows if row[2] >= 0), None)
        return int(rows[0][4])

    def committed(self, trainer: Trainer, reading: Reading) -> None:
        """After `apply`: the step enters the window; an expert that is being lifted gets its next lift."""
        if self.replay is not None:
            for lift in self.replay.lifts:
                if lift.step == reading.step:
                    trainer.lift_expert(lift.layer, lift.expert, lift.size)
            return
        if not self.watches:
            return
        self.window.add(Step(reading.step, reading.loss, reading.norm, reading.spread, reading.worst))
        if self.state.lifting is not None:
            layer, expert = self.state.lifting
            self.program.lifts.append(Lift(reading.step, layer, expert, self.limits.lift))
            trainer.lift_expert(layer, expert, self.limits.lift)
        self._count_starved(trainer.load(), reading.step)

    def skipped(self, step: int) -> None:
        """The step was left out."""
        self.program.skipped.append(step)

    def rolled_back(self, first: int | None, last: int) -> None:
        """The state of `first` finished steps was taken up again in place of step `last`; None: there was none, and `last`
        was skipped. The peak rate from then on is the lower of now and then, lowered."""
        now = self.program.recipe_at(self.recipe, last + 1).lr
        then = now if first is None else self.program.recipe_at(self.recipe, max(first - 1, 0)).lr
        self.program.changes.append(Change(last + 1, "lr", min(now, then) * self.limits.lower, "rule"))
        if first is None:
            self.program.skipped.append(last)
            return
        self.program.undone.append(Undone(first, last))
        self.window.back_to(first)
        self.state.starved.clear()

    # -- decisions ----------------------------------------------------------------------------------------------------

    def conclude(
        self, finding: Finding, cause: str, step: int, facts: list[Fact], ruled_out: list[str]
    ) -> tuple[Literal["apply", "skip", "roll back", "stop"], str]:
        """A rule spoke and the cause is known: what is done, told as a record."""
        action: Action = ACTIONS[finding.rule, cause]
        if action == "skip" and self._skipped_lately(step) + 1 > self.limits.most_skipped:
            action = "stop"
        if action in {"roll back", "lower the rate"}:
            if self.state.lowered >= self.limits.most_lowered:
                action = "stop"
            elif self.limits.mode == "act":
                self.state.lowered += 1
        remedy = _REMEDIES[action].format(lower=self.limits.lower, next=step + 1)
        if self.limits.mode != "act" and action != "redo":
            remedy = f"advised only: {remedy}"
        self._cool(finding, step)
        self._record(finding, cause, step, facts, ruled_out, remedy)
        if self.limits.mode != "act" or action == "redo":
            return "apply", ""
        if action == "lower the rate":
            lower = self.program.recipe_at(self.recipe, step).lr * self.limits.lower
            self.program.changes.append(Change(step + 1, "lr", lower, "rule"))
            return "apply", ""
        if action == "stop":
            return "stop", f"step {step}: {finding.text}, {CAUSES[cause]}"
        return ("skip" if action == "skip" else "roll back"), ""

    def take(self, due: list[Due]) -> None:
        """A person's orders, as every rank is told them."""
        for given in due:
            self.state.orders = given.order.number + 1
            if given.order.verb == "set":
                for name, value in given.order.values.items():
                    self.program.changes.append(Change(given.step, name, value, "person"))
            else:
                self.state.paused = given.order.verb == "pause"

    def inflict(self, step: int, factor: float) -> None:
        """An injection: from `step` on the learning rate is so many times what it was."""
        rate = self.program.recipe_at(self.recipe, step).lr * factor
        self.program.changes.append(Change(step, "lr", rate, "injected"))

    # -- state --------------------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """The state as plain values, for a shard's header or a checkpoint's notes."""
        tree = msgspec.to_builtins(self.state)
        assert isinstance(tree, dict)
        return tree

    def load(self, tree: dict[str, Any]) -> None:
        """Back from `dump`. A twin keeps to its program."""
        if self.replay is None:
            self.state = msgspec.convert(tree, State, strict=False)

    # -- within -------------------------------------------------------------------------------------------------------

    def _skipped_lately(self, step: int) -> int:
        return sum(step - self.limits.window < skipped for skipped in self.program.skipped)

    def _cool(self, finding: Finding, step: int) -> None:
        """A level or a best that was told is the new measure: the rule speaks again only if it gets worse."""
        if finding.rule in {"rise", "drift"}:
            for rule in ("rise", "drift"):
                self.state.silent[rule] = step + self.limits.cool_down
            self.window.validations = self.window.validations[-1:]
            if finding.rule == "rise":
                self.window.steps = self.window.steps[-self.limits.block :]

    def _count_starved(self, loads: Sequence[tuple[int, Sequence[int]]], step: int) -> None:
        """Steps in a row in which each expert got less than its least share; the first that is dead is lifted."""
        lifting, limits = self.state.lifting, self.limits
        for layer, counts in loads:
            fair = sum(counts) / max(len(counts), 1)
            before = self.state.starved.get(layer, [0] * len(counts))
            self.state.starved[layer] = [
                past + 1 if count < limits.dead_share * fair else 0 for past, count in zip(before, counts, strict=True)
            ]
            if lifting is not None and lifting[0] == layer:
                self.state.lifted += 1
                if counts[lifting[1]] >= RECOVERED * limits.dead_share * fair or self.state.lifted >= limits.most_lifts:
                    self.state.lifting, self.state.lifted = None, 0
                    self.state.silent["dead"] = step + limits.cool_down
        if self.state.lifting is not None or len(self.window.steps) < limits.least or "dead" in self.silent(step):
            return
        for layer, _ in loads:
            for expert, steps in enumerate(self.state.starved[layer]):
                if steps >= limits.dead_steps:
                    self._dead(layer, expert, steps, step)
                    return

    def _dead(self, layer: int, expert: int, steps: int, step: int) -> None:
        facts = [
            Fact("share of a fair load, below", self.limits.dead_share, None, "", f"router {layer}, expert {expert}"),
            Fact("steps in a row", steps, self.limits.dead_steps),
        ]
        ruled_out = ["one batch that does not need it: it lasted over many", "the balance of every step: it was too slow"]
        remedy = f"its routing bias is lifted by {self.limits.lift} a step until it gets tokens"
        if self.limits.mode == "act":
            self.state.lifting = (layer, expert)
        else:
            remedy = f"advised only: {remedy}"
        self.state.silent["dead"] = step + self.limits.cool_down
        text = f"expert {expert} of router {layer} gets no tokens"
        self._record(Finding("dead", text, (), step - steps + 1), "router", step, facts, ruled_out, remedy)

    def _record(self, finding: Finding, cause: str, step: int, facts: list[Fact], ruled_out: list[str], remedy: str) -> None:
        if self._tell is None:
            return
        self._tell(
            Evidence(
                id=f"C-{step:06d}-{finding.rule}",
                kind="control",
                subject=f"step {step}",
                verdict=f"{finding.text}: {CAUSES[cause]}",
                facts=tuple(facts),
                ruled_out=tuple(ruled_out),
                remedy=remedy,
                decided_by=f"rule {finding.rule}",
                where={"step": step, "onset": finding.onset, "cause": cause},
            )
        )


CAUSES = {
    "gone": "it did not come again, a card was wrong once",
    "data": "the data",
    "state": "the model's state, at this learning rate",
    "card": "the card, which gives another answer each time",
    "router": "the router never chooses it",
}
_REMEDIES: dict[Action, str] = {
    "redo": "step redone, its new figures applied",
    "skip": "step skipped",
    "roll back": "rolled back to a state of before it began, the learning rate times {lower}",
    "lower the rate": "the learning rate times {lower} from step {next} on",
    "stop": "stopped: a person must look",
    "lift": "",
    "nothing": "",
}
