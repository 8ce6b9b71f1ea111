from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ninthsky.train import checkpoint, parallel
from ninthsky.train.loop import Gate, Recipe, Trainer
from ninthsky.train.loss import next_token_loss
from ninthsky.train.mesh import Mesh
from tests.train.ranks import on_ranks
from tests.train.small import cursor, model

pytestmark = pytest.mark.slow

# Plain SGD with a large rate and no clipping: a gradient of the wrong size shows at once. Adam would hide it.
SGD = Recipe(lr=1.0, optimizer="sgd", weight_decay=0.0, warmup=0.0, schedule="constant", clip=0.0, balance=1e-3)
MESHES = [
    Mesh(dp_shard=4),
    Mesh(dp_shard=4, ep=2),
    Mesh(dp_shard=4, ep=4),
    Mesh(dp_replicate=2, dp_shard=2),
    Mesh(dp_replicate=2, dp_shard=2, ep=2),
    Mesh(dp_replicate=2, dp_shard=2, ep=4),
    Mesh(dp_replicate=4),
    Mesh(dp_replicate=4, ep=2),
    Mesh(dp_replicate=4, ep=4),
]
UNITS = [parallel.UNIT_BYTES, 20_000]  # bytes gathered together: the whole model at once, a layer at a time


def trained(
    mesh: Mesh | None, steps: range, recipe: Recipe, trainer: Trainer | None = None
) -> tuple[Trainer, list[float], list[float]]:
    """Trainer, losses and gradient norms after some steps, on this process's rank of `mesh`."""
    trainer = trainer or Trainer(model(), next_token_loss, recipe, 20, mesh)
    rank, world = (dist.get_rank(), mesh.ranks) if mesh else (0, 1)
    losses, norms = [], []
    for step in steps:
        trainer.local_gradients(cursor().read(step, rank, world))
        figures = trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
        losses.append(figures.loss)
        norms.append(figures.norm)
    return trainer, losses, norms


def parity(rank: int) -> list[dict[str, Any]]:
    alone, wanted_losses, wanted_norms = trained(None, range(6), SGD)
    wanted, rows = alone.whole_state(), []
    for mesh, unit_bytes in itertools.product(MESHES, UNITS):
        parallel.UNIT_BYTES = unit_bytes
        trainer, losses, norms = trained(mesh, range(6), SGD)
        state = trainer.whole_state()
        assert state.keys() == wanted.keys()
        rows.append({
            "mesh": mesh,
            "loss": max(abs(a - b) for a, b in zip(losses, wanted_losses, strict=True)),
            "norm": max(abs(a - b) / b for a, b in zip(norms, wanted_norms, strict=True)),
            "weights": max(float((state[name] - wanted[name]).abs().max()) for name in wanted if "bias" not in name),
            "bias": max(float((state[name] - wanted[name]).abs().max()) for name in wanted if "bias" in name),
            "held": sum(piece.local.numel() for piece in trainer.pieces),
            "digest": trainer.digest(),
        })  # fmt: skip
    return rows


def test_every_cut_equals_one_process_under_sgd(tmp_path: Path) -> None:
    answers = on_ranks(4, parity, folder=tmp_path)
    total = sum(p.numel() for p in model().parameters())
    for number, (mesh, _) in enumerate(itertools.product(MESHES, UNITS)):
        row = answers[0][number]
        assert row["loss"] <= 1e-5 and row["norm"] <= 1e-4 and row["weights"] <= 1e-5, row
        assert row["bias"] <= 1e-7, row
        assert len({answer[number]["digest"] for answer in answers}) == 1
        # Over all ranks each weight is held as often as it is repeated: nothing is missing, nothing is held twice.
        held = sum(answer[number]["held"] for answer in answers)
        experts = total - _dense_count()
        assert held == _dense_count() * mesh.dp_replicate + experts * mesh.expert_cut()[0], mesh


def _dense_count() -> int:
    return sum(p.numel() for name, p in model().named_parameters() if ".experts." not in name)


def elastic(rank: int, folder: Path, mesh: Mesh, steps: range, seed: int) -> tuple[str, int, dict[str, Any]]:
    trainer = Trainer(model(seed), next_token_loss, SGD, 20, mesh)
    checkpoint.restore(trainer, folder)
    at = trainer.step
    trained(mesh, steps, SGD, trainer)
    assert not checkpoint.save(trainer, folder).problem
    return trainer.digest(), at, {name: tensor.detach().numpy() for name, tensor in trainer.whole_state().items()}


def test_a_checkpoint_moves_to_any_other_mesh(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    road = [
        (4, Mesh(dp_shard=4, ep=2), range(0, 3)),
        (2, Mesh(dp_shard=2, ep=2), range(3, 5)),
        (3, Mesh(dp_shard=3), range(5, 7)),
        (4, Mesh(dp_replicate=2, dp_shard=2, ep=4), range(7, 9)),
    ]
    for seed, (world, mesh, steps) in enumerate(road):
        answers = on_ranks(world, elastic, folder, mesh, steps, seed, folder=tmp_path)
        assert len({digest for digest, _, _ in answers}) == 1
        assert {at for _, at, _ in answers} == {steps.start}
    alone, _, _ = trained(None, range(9), SGD)
    wanted, state = alone.whole_state(), {name: torch.from_numpy(array) for name, array in answers[0][2].items()}
    assert max(float((state[name] - wanted[name]).abs().max()) for name in wanted) <= 1e-5
    uncut = model(seed=5)
    assert checkpoint.load_weights(uncut, folder / "step-9") == 9
    assert all(torch.equal(tensor, state[name]) for name, tensor in uncut.state_dict().items())


def poisoned(rank: int, culprit: int) -> list[tuple[Mesh, list[Gate], str, str]]:
    """For each mesh: a gradient made NaN on one rank before it is reduced; the step again without; and the twin."""
    rows = []

    def poison(gradients: Sequence[Tensor]) -> None:
        gradients[0].view(-1)[7] = math.nan

    for mesh in (Mesh(dp_shard=4), Mesh(dp_shard=4, ep=2), Mesh(dp_shard=4, ep=4), Mesh(dp_replicate=4)):
        trainer, _, _ = trained(mesh, range(2), Recipe())
        if rank == culprit:
            trainer.before_reduce.append(poison)
        trainer.local_gradients(cursor().read(2, rank, mesh.ranks))
        gates = trainer.gather(trainer.gate_values())
        trainer.drop_gradients()
        trainer.before_reduce.clear()
        trained(mesh, range(2, 4), Recipe(), trainer)
        rows.append((mesh, gates, trainer.digest(), trained(mesh, range(4), Recipe())[0].digest()))
    return rows


def test_nan_points_at_its_rank_and_the_redone_step_equals_the_twin(tmp_path: Path) -> None:
    for rows in on_ranks(4, poisoned, 2, folder=tmp_path):
        for mesh, gates, redone, twin in rows:
            assert [gate.finite for gate in gates] == [True, True, False, True], mesh
            assert redone == twin, mesh


def shards(rank: int) -> list[tuple[Mesh, str, str, bool]]:
    """State handed over as plain tensors to a freshly built rank, as a spare takes a lost rank's place."""
    rows = []
    for mesh in (Mesh(dp_shard=4, ep=2), Mesh(dp_replicate=2, dp_shard=2, ep=4)):
        trainer, _, _ = trained(mesh, range(3), Recipe())
        shard = {name: tensor.clone() for name, tensor in trainer.state_shard().items()}
        trained(mesh, range(3, 6), Recipe(), trainer)
        fresh = Trainer(model(seed=9), next_token_loss, Recipe(), 20, mesh)
        fresh.load_shard(shard)
        trained(mesh, range(3, 6), Recipe(), fresh)
        exported, whole = fresh.full_model().state_dict(), fresh.whole_state()
        rows.append((mesh, trainer.digest(), fresh.digest(), all(torch.equal(exported[n], t) for n, t in whole.items())))
    return rows


def test_shards_carry_the_whole_state(tmp_path: Path) -> None:
    for rows in on_ranks(4, shards, folder=tmp_path):
        for mesh, continued, restored, exported in rows:
            assert continued == restored and exported, mesh


def fenced(rank: int, folder: Path) -> list[str]:
    """A stale generation, a disk that fails on one rank, a state gone bad on one rank: none becomes visible."""
    trainer, _, _ = trained(Mesh(dp_shard=2), range(1), Recipe())
    told = [checkpoint.save(trainer, folder).problem, checkpoint.save(trainer, folder / "no", may_commit=lambda: False).problem]
    if rank == 1:
        trainer.pieces[2].local.view(-1)[0] = math.inf
    trainer.step = 2
    return [*told, checkpoint.save(trainer, folder).problem]


def test_ranks_agree_on_what_becomes_of_a_checkpoint(tmp_path: Path) -> None:
    answers = on_ranks(2, fenced, tmp_path / "run", folder=tmp_path)
    assert answers[0] == answers[1]
    assert answers[0][0] == "" and "may no longer" in answers[0][1] and answers[0][2] == "rank 1: state is not finite"
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["step-1"]
    assert not list((tmp_path / "run" / "no").iterdir())
