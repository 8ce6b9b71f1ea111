from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape
from ninthsky.model.router import pinned, recorded
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import document_loss
from tests.train.ranks import on_ranks

pytestmark = pytest.mark.slow

SHAPE = Shape(97, 2, 32, 4, 2, 8, 2, 24, dense_layers=0, expert_dims=(24, 24, 8, 8, 8, 8, 8, 8))
SGD = Recipe(lr=1.0, optimizer="sgd", weight_decay=0.0, warmup=0.0, schedule="constant", clip=0.0)
ROWS, LENGTH = 4, 24


def batches() -> list[torch.Tensor]:
    drawn = torch.randint(1, 97, (4, ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(3))
    return list(torch.where(drawn % 11 == 0, 1, drawn))


def trained(mesh: Mesh | None, recipe: Recipe) -> Trainer:
    rank, world = (dist.get_rank() % mesh.data_ranks, mesh.data_ranks) if mesh else (0, 1)
    trainer = Trainer(Decoder(SHAPE), document_loss, recipe, 10, mesh)
    for batch in batches():
        trainer.local_gradients(batch.chunk(world)[rank])
        trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
    return trainer


def ranks_of_unequal_experts(rank: int) -> dict[str, Any]:
    alone = trained(None, SGD).whole_state()
    penalised = trained(None, replace(SGD, z_loss=1e-2)).whole_state()
    spread = trained(Mesh(dp_shard=2, ep=2), SGD)
    again = trained(Mesh(dp_shard=2, ep=2), replace(SGD, recompute="layer"))
    others = [
        (trained(Mesh(pp=2), replace(SGD, micro_batches=2, z_loss=1e-2, recompute="layer")), penalised),
        (trained(Mesh(cp=2), replace(SGD, z_loss=1e-2)), penalised),
        (trained(Mesh(tp=2), SGD), alone),
        (spread, alone),
    ]
    states = [(trainer.whole_state(), wanted) for trainer, wanted in others]
    uneven = Shape(97, 2, 32, 4, 2, 7, 2, 24, dense_layers=0, expert_dims=(24, 8, 8, 8, 8, 8, 8))
    with pytest.raises(UserError, match="N9-CFG-013"):
        Trainer(Decoder(uneven), document_loss, SGD, 10, Mesh(dp_shard=2, ep=2))
    return {
        "differences": [max(float((state[n] - wanted[n]).abs().max()) for n in wanted) for state, wanted in states],
        "penalty": max(float((penalised[name] - alone[name]).abs().max()) for name in alone),
        "held": sorted({tuple(piece.local.shape) for piece in spread.pieces if ".of_size." in piece.name}),
        "digests": (spread.digest(), again.digest()),
    }


def test_unequal_experts_documents_penalty_and_recomputation_under_every_cut(tmp_path: Path) -> None:
    """With ep each rank has one of the two large experts and three of the six small ones; recomputation changes no bit."""
    first, second = on_ranks(2, ranks_of_unequal_experts, folder=tmp_path)
    assert max(first["differences"]) <= 1e-5 and first["penalty"] > 1e-4
    assert first["held"] == second["held"] == [(1, 24, 32), (1, 32, 48), (3, 8, 32), (3, 32, 16)]
    assert len({*first["digests"], *second["digests"]}) == 1


def test_choices_pinned_over_other_portions_hold_two_runs_together() -> None:
    """One rank's micro-batches take the choices of the whole batch, though its router would choose otherwise."""
    batch = batches()[0]
    model = Decoder(SHAPE)
    other: Any = Decoder(SHAPE)
    with recorded(model) as choices:
        wanted, _ = document_loss(model, batch)
    numbers = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)
    for layer in other.layers:
        layer.mlp.router.e_score_correction_bias[:2] += 9.0
    free = sum(float(document_loss(other, part)[0].detach()) for part in batch.split(1))
    with pinned(other, choices.dealt(list(numbers.split(1)))):
        held = sum(float(document_loss(other, part)[0].detach()) for part in batch.split(1))
    assert held == pytest.approx(float(wanted.detach()), rel=1e-6) and abs(free - held) > 1e-3
