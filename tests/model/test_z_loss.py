from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ninthsky.model import Decoder, Shape
from ninthsky.model.fused import output_loss
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss

SHAPE = Shape(97, 2, 32, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48)


@pytest.mark.parametrize("rows", [7, 1024])
def test_gradient_is_that_of_the_penalised_loss_and_the_number_is_not(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 16, generator=generator, dtype=torch.float64) for size in (20, 50))
    targets = torch.randint(0, 50, (20,), generator=generator)
    targets[3] = -100
    inputs = [tensor.float().requires_grad_() for tensor in (hidden, weight)]
    loss = output_loss(inputs[0], inputs[1], targets, rows=rows, z_loss=0.3)
    logits = hidden.requires_grad_() @ weight.requires_grad_().T
    plain = F.cross_entropy(logits, targets, reduction="sum")
    whole = plain + 0.3 * logits.logsumexp(-1).square()[targets != -100].sum()
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    for got, wanted in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(whole, (hidden, weight)), strict=True):
        torch.testing.assert_close(got, wanted.float(), atol=1e-4, rtol=1e-4)


def test_it_holds_log_z_near_zero() -> None:
    batch = torch.randint(0, 97, (8, 33), generator=torch.Generator().manual_seed(1))

    def trained(z_loss: float) -> float:
        model = Decoder(SHAPE)
        with torch.no_grad():
            model.head.weight *= 40  # far off, as a long run can drift
        trainer = Trainer(model, next_token_loss, Recipe(lr=1e-3, z_loss=z_loss, warmup=0.0), 20)
        for _ in range(20):
            trainer.local_gradients(batch)
            trainer.apply(Gate.total([trainer.gate_values()]))
        with torch.no_grad():
            return float(model.logits(model(batch)).logsumexp(-1).abs().mean())

    assert trained(0.1) < 0.7 * trained(0.0)
