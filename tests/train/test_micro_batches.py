from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ninthsky.errors import UserError
from ninthsky.train.cut.pipeline import micro_batches
from ninthsky.train.step.loop import Gate, Recipe, Trainer, fit
from ninthsky.train.step.loss import IGNORED, masked_token_loss, next_token_loss
from tests.train.small import SHAPE, cursor, model

SGD = Recipe(lr=0.5, optimizer="sgd", weight_decay=0.0, schedule="constant", warmup=0.0, clip=0.0)


class Pair(NamedTuple):
    tokens: Tensor
    targets: Tensor


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_a_batch_is_cut_into_rows_of_all_its_tensors(number: int) -> None:
    one, two = torch.arange(14).view(7, 2), torch.arange(7)
    cut: list[Any] = micro_batches({"both": Pair(one, two), "list": [two], "tuple": (one,)}, number)
    assert len(cut) == number and {len(part["list"][0]) for part in cut} <= {7 // number, 7 // number + 1}
    assert all(isinstance(part["both"], Pair) for part in cut)
    assert torch.equal(torch.cat([part["both"].tokens for part in cut]), one)
    assert torch.equal(torch.cat([part["tuple"][0] for part in cut]), one)
    assert torch.equal(torch.cat([part["both"].targets for part in cut]), two)


def test_too_few_rows_and_other_things_are_refused() -> None:
    with pytest.raises(UserError, match="3 sequences") as told:
        micro_batches(torch.zeros(3, 2), 4)
    assert told.value.code == "N9-CFG-013"
    with pytest.raises(TypeError, match="str"):
        micro_batches(("text", torch.zeros(4)), 2)


@pytest.mark.parametrize("number", [2, 5])
def test_accumulated_gradients_are_the_whole_batch_s(number: int) -> None:
    whole, parts = (Trainer(model(), next_token_loss, replace(SGD, micro_batches=n), 10) for n in (1, number))
    for step in range(3):
        for trainer in (whole, parts):
            trainer.local_gradients(cursor().read(step))
        one, other = whole.gate_values(), parts.gate_values()
        assert one.count == other.count and other.loss == pytest.approx(one.loss, rel=1e-6)
        assert other.square_norm == pytest.approx(one.square_norm, rel=1e-5)
        assert other.own_norm == pytest.approx(one.own_norm, rel=1e-5), "each sum is looked at once"
        for trainer, gate in ((whole, one), (parts, other)):
            trainer.apply(Gate.total([gate]))
    wanted = whole.whole_state()
    assert all(float((tensor - wanted[name]).abs().max()) <= 1e-6 for name, tensor in parts.whole_state().items())
    assert parts.load() == whole.load(), "each choice is counted once"
    assert sum(map(sum, (counts for _, counts in parts.load()))) == 2 * 12 * 16 * SHAPE.experts_per_token


def test_uneven_answers_weigh_by_their_number() -> None:
    """A micro-batch with one answer counts for one, not for a share: sums, never means of means."""

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        batch = cursor().read(step)
        targets = batch[:, 1:].clone()
        targets[:6] = IGNORED
        targets[:6, -1] = batch[:6, -1]
        return batch[:, :-1], targets

    histories = [fit(model(), batch_at, masked_token_loss, replace(SGD, micro_batches=n), 4) for n in (1, 2, 4)]
    for history in histories[1:]:
        for figures, wanted in zip(history.steps, histories[0].steps, strict=True):
            assert figures.tokens == wanted.tokens == 6 + 6 * 16
            assert figures.loss == pytest.approx(wanted.loss, rel=1e-6) and figures.norm == pytest.approx(wanted.norm, rel=1e-5)
