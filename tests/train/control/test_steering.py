"""Small real trainings with one trouble each: the right thing is done, and done again in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from ninthsky.errors import UserError
from ninthsky.evidence import Evidence
from ninthsky.train.control.limits import Limits
from ninthsky.train.control.program import Program, Undone
from ninthsky.train.control.records import explain, recorder, records
from ninthsky.train.control.steering import Control
from ninthsky.train.step.loop import History, Recipe, fit
from ninthsky.train.step.loss import next_token_loss
from ninthsky.train.step.trainer import Trainer
from tests.train.small import cursor, model

STEPS, AT, EVERY = 60, 40, 10
RECIPE = Recipe(lr=1e-2)
Read = Callable[[int], torch.Tensor]


class Disturbed(Control):
    """`disturb(trainer)` before every step."""

    disturb: Callable[[Control, Trainer], object] = staticmethod(lambda control, trainer: None)

    def begin(self, trainer: Trainer) -> bool:
        self.disturb(self, trainer)
        return super().begin(trainer)


def run(
    folder: Path | None = None,
    read: Read | None = None,
    mode: Any = "act",
    loss: Any = next_token_loss,
    disturb: Any = None,
    replay: Program | None = None,
    progress: Any = None,
    validation: tuple[int, torch.Tensor] | None = None,
    **limits: Any,
) -> tuple[History, Control, list[Evidence]]:
    fired: list[Evidence] = []
    control = Disturbed(Limits(mode=mode, **limits), RECIPE, replay=replay, tell=fired.append)
    if disturb:
        control.disturb = disturb
    history = fit(
        model(), read or cursor().read, loss, RECIPE, STEPS, progress, folder,
        checkpoint_every=EVERY, control=control, validation=validation,
    )  # fmt: skip
    return history, control, fired


def with_noise(step: int) -> torch.Tensor:
    batch = cursor().read(step)
    return torch.randint(6, 97, batch.shape, generator=torch.Generator().manual_seed(1)) if step == AT else batch


@pytest.fixture(scope="module")
def clean() -> History:
    """No trouble, and no rules."""
    return fit(model(), cursor().read, next_token_loss, RECIPE, STEPS)


class Killed(Exception):
    pass


class Killer:
    """A progress bar that ends the run after so many steps."""

    def __init__(self, at: int) -> None:
        self.at, self.done = at, 0.0

    def advance(self, count: float = 1, **_: Any) -> None:
        self.done += count
        if self.done >= self.at:
            raise Killed

    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


def test_rules_that_see_nothing_change_nothing(clean: History) -> None:
    history, control, fired = run()
    assert history.digest == clean.digest and control.program.empty and fired == []


def test_bad_data_is_skipped_and_only_told_where_rules_advise(clean: History) -> None:
    history, control, fired = run(read=with_noise)
    (record,) = fired
    assert record.id == f"C-{AT:06d}-spike" and record.where["cause"] == "data" and record.remedy == "step skipped"
    assert control.program == Program(skipped=[AT])
    assert [figures.step for figures in history.steps] == [step for step in range(STEPS) if step != AT]
    advised, control, told = run(read=with_noise, mode="advise")
    plain, _, _ = run(read=with_noise, mode="off")
    assert told[0].remedy == "advised only: step skipped" and control.program.empty
    assert advised.digest == plain.digest != history.digest


@pytest.mark.slow
def test_a_rate_too_high_is_rolled_back_and_a_kill_and_a_twin_end_in_the_same_bits(tmp_path: Path) -> None:
    def raised(control: Control, trainer: Trainer) -> None:
        if trainer.step == AT and control.replay is None:
            control.inflict(AT, 50.0)

    whole, control, fired = run(tmp_path / "whole", disturb=raised)
    assert fired[0].where["cause"] == "state" and fired[0].remedy.startswith("rolled back")
    (undone, *_) = control.program.undone
    assert undone.first == AT and AT < undone.last < AT + 15
    assert control.program.recipe_at(RECIPE, STEPS).lr <= RECIPE.lr / 2
    for at in (EVERY + 5, undone.last + 3):  # before the trouble, and after it
        folder = tmp_path / f"killed-{at}"
        with pytest.raises(Killed):
            run(folder, disturb=raised, progress=Killer(at))
        again, other, _ = run(folder, disturb=raised)
        assert again.resumed_from == at // EVERY * EVERY
        assert again.digest == whole.digest and other.state == control.state and again.steps == whole.steps
    twin, _, told = run(replay=control.program)
    assert twin.digest == whole.digest and told == []
    in_memory, _, _ = run(disturb=raised)
    assert in_memory.digest == whole.digest


def test_a_card_that_was_wrong_once_costs_a_redo_and_changes_nothing(clean: History) -> None:
    seen: list[int] = []

    def once(made: Any, batch: torch.Tensor) -> tuple[torch.Tensor, float]:
        total, count = next_token_loss(made, batch)
        seen.append(1)
        return total * (8.0 if len(seen) == AT + 1 else 1.0), count

    history, control, fired = run(loss=once)
    assert [record.where["cause"] for record in fired] == ["gone"] and control.program.empty
    assert history.digest == clean.digest


def test_a_card_that_answers_otherwise_each_time_stops_a_run_that_has_no_other() -> None:
    seen: list[int] = []

    def never(made: Any, batch: torch.Tensor) -> tuple[torch.Tensor, float]:
        total, count = next_token_loss(made, batch)
        seen.append(1)
        return total * (1.0 if len(seen) <= AT else 4.0 + len(seen)), count

    with pytest.raises(UserError, match=rf"N9-TRN-012.*step {AT}.*the card"):
        run(loss=never)


def test_data_that_stays_bad_is_skipped_a_few_times_and_then_a_person_must_look() -> None:
    def all_noise(step: int) -> torch.Tensor:
        return with_noise(AT) if step >= AT else cursor().read(step)

    with pytest.raises(UserError, match=rf"N9-TRN-012.*step {AT + 4}.*the data"):
        run(read=all_noise)


def test_a_loss_that_is_not_finite_is_the_data_too() -> None:
    def broken(made: Any, batch: torch.Tensor) -> tuple[torch.Tensor, float]:
        total, count = next_token_loss(made, batch)
        return total * (float("nan") if torch.equal(batch, cursor().read(AT)) else 1.0), count

    _, control, fired = run(loss=broken)
    assert control.program.skipped == [AT] and "not finite" in fired[0].verdict


def test_a_dead_expert_is_lifted_until_it_gets_tokens() -> None:
    def starve(_: Control, trainer: Trainer) -> None:
        if trainer.step == 5:
            next(iter(trainer.routers.values())).e_score_correction_bias[2] -= 0.6

    _, control, fired = run(disturb=starve, dead_steps=12, lift=0.1)
    (record,) = fired
    assert record.decided_by == "rule dead" and "expert 2 of router 1" in record.verdict
    lifts = control.program.lifts
    assert {(lift.layer, lift.expert) for lift in lifts} == {(1, 2)} and 2 <= len(lifts) <= 10
    assert control.state.lifting is None, "it gets tokens again"


def test_validation_that_climbs_lowers_the_rate() -> None:
    other = torch.randint(6, 97, (12, 17), generator=torch.Generator().manual_seed(3))  # of another language
    _, control, fired = run(validation=(5, other))
    assert [record.decided_by for record in fired][:1] == ["rule drift"]
    assert control.program.changes[0].value == RECIPE.lr / 2 and not control.program.undone


def test_records_are_kept_once_and_answered(tmp_path: Path) -> None:
    _, _, fired = run(read=with_noise)
    tell = recorder(tmp_path, tmp_path / "events.jsonl")
    for record in (*fired, *fired):
        tell(record)
    assert records(tmp_path) == fired and explain(tmp_path, fired[0].id) == fired[0]
    assert "ruled out" in fired[0].render()


def test_a_state_that_was_given_up_is_never_gone_back_to() -> None:
    assert not Program(undone=[Undone(10, 20)]).abandoned(10) and Program(undone=[Undone(10, 20)]).abandoned(20)


def test_into_how_many_parts_a_batch_is_cut_is_not_for_control_to_say() -> None:
    """With fewer ranks there are more of them than the run's own recipe has."""
    trainer = Trainer(model(), next_token_loss, replace(RECIPE, micro_batches=3, lr=1.0), STEPS)
    Control(Limits(mode="off"), RECIPE).begin(trainer)
    assert (trainer.recipe.micro_batches, trainer.recipe.lr) == (3, RECIPE.lr)
