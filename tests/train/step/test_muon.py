from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.cut.piece import Piece
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss
from ninthsky.train.step.muon import Muon, orthogonal, takes
from ninthsky.train.step.optimizer import LocalOptimizer
from tests.train.ranks import on_ranks
from tests.train.small import cursor, model

MUON = Recipe(lr=0.02, optimizer="muon", warmup=0.0, schedule="constant", balance=1e-3)


def piece(name: str, weight: torch.Tensor) -> Piece:
    return Piece(name, torch.nn.Parameter(weight), weight, shape=tuple(weight.shape))


@pytest.mark.parametrize("size", [(3, 8, 20), (3, 20, 8), (1, 16, 16)])
def test_singular_values_come_near_one_and_directions_stay(size: tuple[int, int, int]) -> None:
    given = torch.randn(size, generator=torch.Generator().manual_seed(3))
    made = orthogonal(given)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6 and values.max() < 1.25
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    inside = u.mT @ made @ v.mT  # diagonal where directions are kept
    assert torch.allclose(inside, torch.diag_embed(inside.diagonal(dim1=1, dim2=2)), atol=1e-4)
    assert torch.equal(orthogonal(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6))
    assert torch.allclose(orthogonal(given * 1e-6), made, atol=0.1)  # whatever the gradient's size


def test_a_step_by_hand() -> None:
    weight = torch.eye(4, 6)
    inner = piece("layers.0.attention.q_proj.weight", weight.clone())
    muon = Muon([inner], momentum=0.95, dtype=torch.float32)
    moment, wanted = torch.zeros(4, 6), weight.clone()
    for seed in (0, 1):
        gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        inner.parameter.grad = gradient.clone()
        muon.step(lr=0.1, weight_decay=0.5, scale=0.25)
        moment = 0.95 * moment + 0.25 * gradient
        moved = orthogonal((0.25 * gradient + 0.95 * moment)[None])[0] * 0.2 * 6**0.5
        wanted = wanted * (1 - 0.1 * 0.5) - 0.1 * moved
    assert torch.allclose(inner.local, wanted, atol=1e-6)
    trainer = LocalOptimizer([inner], MUON)  # nothing for AdamW to move
    inner.parameter.grad = torch.ones(4, 6)
    trainer.step(lr=0.0, scale=1.0)
    assert inner.parameter.grad is None and set(trainer.state()) == {"momentum/" + inner.name}
    before = inner.local.clone()
    inner.parameter.grad = None
    muon.step(lr=0.1, weight_decay=0.5, scale=1.0)
    assert torch.equal(inner.local, before)


def test_halves_of_a_gate_up_and_experts_are_matrices_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    for name, size, axis in (("mlp.gate_up.weight", (2, 6, 6), 0), ("mlp.experts.gate_up", (2, 6, 12), 2)):
        gradient, inner = torch.randn(size, generator=generator), piece(name, torch.zeros(size))
        inner.parameter.grad = gradient.clone()
        Muon([inner], 0.0, torch.float32).step(1.0, 0.0, 1.0)
        for half, got in zip(gradient.chunk(2, axis), inner.local.chunk(2, axis), strict=True):
            alone = orthogonal(half.reshape(-1, *half.shape[-2:])).view(half.shape)
            assert torch.allclose(got, -alone * 0.2 * 6**0.5, atol=1e-5), name


def test_embedding_head_router_and_norms_are_left_to_adamw() -> None:
    names = {name for name, p in model().named_parameters() if takes(piece(name, p.data))}
    assert {n for n, p in model().named_parameters() if p.dim() > 1} - names == {
        "embedding.weight", "head.weight", "layers.1.mlp.router.weight", "layers.2.mlp.router.weight",
    }  # fmt: skip
    state = Trainer(model(), next_token_loss, MUON, 10).state_shard()
    assert {n.partition("/")[2] for n in state if n.startswith("momentum/")} == names
    assert not any(n.partition("/")[2] in names for n in state if n.startswith("exp_avg"))


def test_it_learns_faster_than_adamw_here_and_goes_on_to_the_bit() -> None:
    def losses(recipe: Recipe) -> tuple[list[float], Trainer]:
        trainer, found = Trainer(model(), next_token_loss, recipe, 40), []
        for step in range(40):
            trainer.local_gradients(cursor().read(step))
            found.append(trainer.apply(Gate.total([trainer.gate_values()])).loss)
            if step == 20:
                kept = {name: tensor.clone() for name, tensor in trainer.state_shard().items()}
        fresh = Trainer(model(9), next_token_loss, recipe, 40)
        fresh.load_shard(kept)
        for step in range(21, 40):
            fresh.local_gradients(cursor().read(step))
            fresh.apply(Gate.total([fresh.gate_values()]))
        assert fresh.digest() == trainer.digest()
        return found, trainer

    muon, adamw = losses(MUON)[0], losses(Recipe(lr=0.02, warmup=0.0, schedule="constant"))[0]
    assert muon[-1] < adamw[-1] < adamw[0]


MESHES = [
    Mesh(dp_shard=4),
    Mesh(dp_shard=4, ep=2),
    Mesh(dp_replicate=2, dp_shard=2, ep=2),
    Mesh(dp_replicate=4, ep=2),
    Mesh(dp_shard=2, tp=2, ep=2),
    Mesh(dp_shard=2, cp=2),
]


def parity(rank: int) -> list[dict[str, Any]]:
    def trained(mesh: Mesh | None) -> Trainer:
        trainer = Trainer(model(), next_token_loss, MUON, 20, mesh)
        share = (mesh.data_rank(rank), mesh.data_ranks) if mesh else (0, 1)
        for step in range(5):
            trainer.local_gradients(cursor().read(step, *share))
            trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
        return trainer

    alone, rows = trained(None).whole_state(), []
    for mesh in MESHES:
        trainer = trained(mesh)
        state = trainer.whole_state()
        moments = trainer.optimizer.muon
        assert moments is not None
        rows.append({
            "mesh": mesh,
            "apart": max(float((state[name] - alone[name]).abs().max()) for name in alone),
            "digest": trainer.digest(),
            "owned": sum(sum(unit.owner == team.place for unit in team.units) for team in moments.teams),
            "units": [(len(team.units), team.size) for team in moments.teams],
        })  # fmt: skip
    return rows


@pytest.mark.slow
def test_every_cut_equals_one_process_and_each_matrix_is_worked_on_once(tmp_path: Path) -> None:
    answers = on_ranks(4, parity, folder=tmp_path)
    matrices = 3 * 4 + 3 * 3 + 2 * 2 * 4  # attention, dense and shared feed-forward (gate and up apart), experts
    for rows in zip(*answers, strict=True):
        assert all(row["apart"] <= 1e-5 for row in rows), rows
        assert len({row["digest"] for row in rows}) == 1
        assert sum(row["owned"] for row in rows) == matrices, rows
    assert dist.is_initialized() is False
