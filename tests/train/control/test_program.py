from __future__ import annotations

import msgspec
import pytest

pytest.importorskip("torch")

from ninthsky.train.control.limits import Limits
from ninthsky.train.control.orders import Due, Order, decode, encode
from ninthsky.train.control.program import Change, Program, Undone
from ninthsky.train.control.steering import Control
from ninthsky.train.step.recipe import Recipe

RECIPE = Recipe(lr=1e-2, clip=1.0)


def test_the_last_change_that_holds_counts() -> None:
    changes = [Change(10, "lr", 5e-3, "person"), Change(20, "clip", 0.5, "person"), Change(20, "lr", 1e-3, "rule")]
    program = Program([*changes, Change(5, "checkpoint_every", 7, "person")])
    assert program.recipe_at(RECIPE, 9) == RECIPE
    assert program.recipe_at(RECIPE, 10).lr == 5e-3
    assert (program.recipe_at(RECIPE, 20).lr, program.recipe_at(RECIPE, 20).clip) == (1e-3, 0.5)
    assert [program.checkpoint_every(50, step) for step in (4, 5)] == [50, 7]


def test_steps_that_left_no_trace_and_states_that_were_given_up() -> None:
    program = Program(skipped=[3], undone=[Undone(10, 14)])
    assert [step for step in range(20) if program.leaves_no_trace(step)] == [3, 10, 11, 12, 13, 14]
    # 10 finished steps is what was taken up again; 15 is counted after it.
    assert [count for count in range(20) if program.abandoned(count)] == [11, 12, 13, 14]


def test_a_roll_back_takes_the_rate_of_then_lowered_and_never_a_higher_one_of_now() -> None:
    control = Control(Limits(mode="act"), RECIPE)
    control.inflict(10, 40.0)
    assert control.program.recipe_at(RECIPE, 10).lr == pytest.approx(0.4)
    control.rolled_back(10, 12)
    assert control.program.recipe_at(RECIPE, 13).lr == pytest.approx(5e-3)
    control.rolled_back(None, 20)
    assert control.program.recipe_at(RECIPE, 21).lr == pytest.approx(2.5e-3) and control.program.skipped == [20]


def test_state_comes_back_from_what_a_shard_or_checkpoint_carries() -> None:
    control = Control(Limits(mode="act"), RECIPE)
    control.state.starved = {1: [0, 3], 2: [1, 0]}
    control.state.lifting = (1, 1)
    control.take([Due(Order(number=0, verb="set", values={"lr": 1e-3}), 5), Due(Order(number=1, verb="pause"), 6)])
    for carry in (msgspec.msgpack, msgspec.json):
        other = Control(Limits(mode="act"), RECIPE)
        other.load(carry.decode(carry.encode(control.dump())))
        assert other.state == control.state and other.state.paused and other.state.orders == 2


def test_a_twin_keeps_to_its_program() -> None:
    twin = Control(Limits(mode="off"), RECIPE, replay=Program([Change(3, "lr", 1.0, "rule")]))
    twin.load(Control(Limits(), RECIPE).dump())
    assert twin.program.recipe_at(RECIPE, 3).lr == 1.0 and not twin.watches


def test_orders_travel_as_bytes() -> None:
    due = [Due(Order(number=4, verb="set", values={"clip": 0.25}, time=1.5), 17), Due(Order(number=5, verb="resume"), 18)]
    assert decode(encode(due)) == due
