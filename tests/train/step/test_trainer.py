from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ninthsky.model import Decoder
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import IGNORED, masked_token_loss, next_token_loss
from tests.train.small import SHAPE, cursor, model

SGD = Recipe(lr=0.5, optimizer="sgd", weight_decay=0.0, schedule="constant", warmup=0.0, clip=0.0, balance=0.0)


def one_step(trainer: Trainer, batch: object) -> None:
    trainer.local_gradients(batch)
    trainer.apply(Gate.total([trainer.gate_values()]))


def test_a_step_is_the_textbook_s() -> None:
    ours, plain, batch = model(), model(), cursor().read(0)
    trainer = Trainer(ours, next_token_loss, SGD, 10)
    loss = F.cross_entropy(plain.logits(plain(batch[:, :-1])).flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in plain.parameters() if p.grad is not None))
    trainer.local_gradients(batch)
    gate = trainer.gate_values()
    figures = trainer.apply(Gate.total([gate]))
    assert figures.loss == pytest.approx(loss.item(), rel=1e-6) and figures.norm == pytest.approx(norm, rel=1e-5)
    assert gate.finite and gate.count == 12 * 16 and gate.own_norm == pytest.approx(norm * gate.count, rel=1e-5)
    with torch.no_grad():
        for parameter, other in zip(ours.parameters(), plain.parameters(), strict=True):
            assert other.grad is not None
            torch.testing.assert_close(parameter, other - 0.5 * other.grad, atol=1e-6, rtol=1e-5)


def test_clipping_bounds_the_step() -> None:
    ours, before = model(), model()
    one_step(Trainer(ours, next_token_loss, Recipe(lr=1.0, optimizer="sgd", weight_decay=0.0, schedule="constant", warmup=0.0,
                                                   clip=0.01, balance=0.0), 10), cursor().read(0))  # fmt: skip
    moved = sum(float((a - b).detach().square().sum()) for a, b in zip(ours.parameters(), before.parameters(), strict=True))
    assert math.sqrt(moved) == pytest.approx(0.01, rel=1e-3)


def test_adamw_equals_torch_s_own() -> None:
    ours, plain = model(), model()
    recipe = Recipe(lr=1e-2, clip=0.0, balance=0.0, schedule="constant", warmup=0.0)
    trainer = Trainer(ours, next_token_loss, recipe, 10)
    groups = [{"params": [p for p in plain.parameters() if p.dim() > 1], "weight_decay": 0.1},
              {"params": [p for p in plain.parameters() if p.dim() == 1], "weight_decay": 0.0}]  # fmt: skip
    other = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), foreach=False)
    for step in range(3):
        batch = cursor().read(step)
        one_step(trainer, batch)
        other.zero_grad()
        F.cross_entropy(plain.logits(plain(batch[:, :-1])).flatten(0, 1), batch[:, 1:].flatten()).backward()
        other.step()
    # Adam divides by a gradient's size: where that is near 0, rounding shows.
    for parameter, wanted in zip(ours.parameters(), plain.parameters(), strict=True):
        assert float((parameter - wanted).detach().abs().mean()) < 1e-5


def test_a_dropped_step_leaves_no_trace() -> None:
    clean, disturbed = (Trainer(model(), next_token_loss, Recipe(), 10) for _ in range(2))
    for step in range(3):
        disturbed.local_gradients(cursor().read(step + 50))
        disturbed.drop_gradients()
        for trainer in (clean, disturbed):
            one_step(trainer, cursor().read(step))
    assert clean.digest() == disturbed.digest()
    assert clean.step == disturbed.step == 3


def test_a_gradient_made_nan_shows_in_the_gate_and_can_be_redone() -> None:
    trainer, clean = (Trainer(model(), next_token_loss, Recipe(), 10) for _ in range(2))

    def poison(gradients: Sequence[Tensor]) -> None:
        gradients[3].view(-1)[1] = math.nan

    trainer.before_reduce.append(poison)
    trainer.local_gradients(cursor().read(0))
    bad = trainer.gate_values()
    assert not bad.finite and not Gate.total([bad, bad]).finite and math.isfinite(bad.loss)
    trainer.drop_gradients()
    trainer.before_reduce.clear()
    for each in (trainer, clean):
        one_step(each, cursor().read(0))
    assert trainer.digest() == clean.digest()


@pytest.mark.parametrize("value", [math.inf, 1e38])
def test_infinite_and_absurd_gradients_count_as_bad(value: float) -> None:
    trainer = Trainer(model(), next_token_loss, Recipe(), 10)

    def spoil(gradients: Sequence[Tensor]) -> None:
        gradients[0].view(-1)[0] = value

    trainer.before_reduce.append(spoil)
    trainer.local_gradients(cursor().read(0))
    assert not trainer.gate_values().finite


def test_gate_travels_as_numbers_and_totals() -> None:
    one, two = Gate(True, 4.0, 10.0, 5.0, 2.0), Gate(True, 5.0, 20.0, 7.0, 3.0)
    assert Gate.of(one.values()) == one
    assert Gate.total([one, two]) == Gate(True, 9.0, 30.0, 12.0, 3.0)
    bad = Gate.total([one, Gate(False, math.nan, 1.0, 1.0, math.nan)])
    assert not bad.finite and math.isnan(bad.square_norm)


def test_router_bias_moves_against_the_load() -> None:
    trainer = Trainer(model(), next_token_loss, Recipe(balance=0.01), 10)
    trainer.local_gradients(cursor().read(0))
    loads = {name: router.load.clone() for name, router in trainer.routers.items()}
    trainer.apply(Gate.total([trainer.gate_values()]))
    assert loads and all(int(load.sum()) == 12 * 16 * SHAPE.experts_per_token for load in loads.values())
    for name, router in trainer.routers.items():
        bias = router.e_score_correction_bias
        assert int(bias.argmin()) in torch.nonzero(loads[name] > loads[name].double().mean()).flatten().tolist()
        assert abs(float(bias.mean())) < 1e-7 and not router.load.any()


class Reader(nn.Module):
    """As the signal room does: something else than tokens in front of the same decoder."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.project = nn.Linear(8, SHAPE.dim)
        self.decoder = decoder

    def forward(self, patches: Tensor) -> Tensor:
        return self.decoder(embeddings=self.project(patches), prefix=patches.shape[1])


def test_modules_around_the_decoder_are_trained_and_its_routers_balanced() -> None:
    reader = Reader(model())
    patches, labels = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)

    def loss(module: Reader, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
        logits = module.decoder.logits(module(batch[0])[:, -1])
        return F.cross_entropy(logits, batch[1], reduction="sum"), float(len(batch[1]))

    torch.manual_seed(0)
    nn.init.normal_(reader.project.weight)
    before = reader.project.weight.detach().clone()
    trainer = Trainer(reader, loss, Recipe(), 40)
    assert len(trainer.routers) == 2
    for _ in range(40):
        trainer.local_gradients((patches, labels))
        figures = trainer.apply(Gate.total([trainer.gate_values()]))
    assert figures.loss < 1.0 and not torch.equal(before, reader.project.weight)
    assert any(router.e_score_correction_bias.any() for router in trainer.routers.values())
    with pytest.raises(TypeError):
        trainer.full_model()


def test_a_shard_holds_all_that_the_next_step_depends_on() -> None:
    here = Trainer(model(), next_token_loss, Recipe(), 10)
    for step in range(3):
        one_step(here, cursor().read(step))
    shard = {name: tensor.clone() for name, tensor in here.state_shard().items()}
    there = Trainer(model(seed=9), next_token_loss, Recipe(), 10)
    there.load_shard(shard)
    assert there.step == 3 and there.digest() == here.digest()
    for step in range(3, 6):
        one_step(here, cursor().read(step))
        one_step(there, cursor().read(step))
    assert there.digest() == here.digest()
    assert all(torch.equal(tensor, there.state_shard()[name]) for name, tensor in here.state_shard().items())
    del shard["step"]
    with pytest.raises(ValueError, match="step"):
        there.load_shard(shard)


def test_digest_is_that_of_the_weights_alone() -> None:
    trainer = Trainer(model(), next_token_loss, Recipe(), 10)
    assert (
        trainer.digest()
        == Trainer(model(), next_token_loss, SGD, 3).digest()
        != Trainer(model(1), next_token_loss, SGD, 3).digest()
    )
    trainer.full_model()
    next(iter(trainer.routers.values())).e_score_correction_bias[0] += 1e-7
    assert trainer.digest() != Trainer(model(), next_token_loss, Recipe(), 10).digest()


def test_masked_loss_counts_answers_only() -> None:
    made, batch = model(), cursor().read(0)
    inputs, targets = batch[:, :-1], batch[:, 1:].clone()
    targets[:, :10] = IGNORED
    total, count = masked_token_loss(made, (inputs, targets))
    each = F.cross_entropy(made.logits(made(inputs)).transpose(1, 2), batch[:, 1:], reduction="none")
    assert count == 12 * 6 and float(total.detach()) == pytest.approx(float(each[:, 10:].sum()), rel=1e-5)
    whole, everything = next_token_loss(made, batch)
    assert everything == 12 * 16 and float(whole.detach()) == pytest.approx(float(each.sum()), rel=1e-5)
