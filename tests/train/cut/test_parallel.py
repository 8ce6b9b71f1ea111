from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.parity import LAYER, Case, judge
from benchmarks.parity import on_ranks as parity_on_ranks
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.state import checkpoint
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss
from tests.train.ranks import on_ranks
from tests.train.small import cursor, model

pytestmark = pytest.mark.slow


def trained(
    mesh: Mesh | None, steps: range, recipe: Recipe, trainer: Trainer | None = None
) -> tuple[Trainer, list[float], list[float]]:
    """Trainer, losses and gradient norms after some steps, on this process's rank of `mesh`."""
    trainer = trainer or Trainer(model(), next_token_loss, recipe, 20, mesh)
    rank, world = (mesh.data_rank(dist.get_rank()), mesh.data_ranks) if mesh else (0, 1)
    losses, norms = [], []
    for step in steps:
        trainer.local_gradients(cursor().read(step, rank, world))
        figures = trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
        losses.append(figures.loss)
        norms.append(figures.norm)
    return trainer, losses, norms


@pytest.mark.parametrize(
    ("world", "cases"),
    [
        (4, [
            Case(Mesh(dp_replicate=2, dp_shard=2, ep=4), unit=LAYER),
            Case(Mesh(dp_shard=2, tp=2), 2, unit=LAYER),
            Case(Mesh(cp=2, tp=2, ep=4), recompute=True),
            Case(Mesh(pp=2, cp=2, schedule="zero-bubble"), 2),
        ]),
        (8, [Case(Mesh(pp=2, dp_shard=2, ep=2, tp=2), 4)]),
    ],
)  # fmt: skip
def test_every_cut_equals_one_process_under_sgd(world: int, cases: list[Case]) -> None:
    """A sample of benchmarks/parity.py: weights drawn, losses, gradients, weights, what is held, what is sent."""
    for answers in zip(*parity_on_ranks(world, cases), strict=True):
        row = judge(answers)
        assert row["drawn"] and row["agree"], row
        assert row["worst"] <= 1e-5 and row["norm"] <= 1e-5, row
        assert row["held_equal"] and row["sent_equal"], (row["case"], [(a["sent"], a["sent_formula"]) for a in answers])


def poisoned(rank: int, mesh: Mesh, culprit: int) -> tuple[list[bool], str, str]:
    """A gradient made NaN on one rank before it is reduced: who was told bad; the step again without; and the twin."""

    def poison(gradients: Sequence[Tensor]) -> None:
        gradients[0].view(-1)[7] = math.nan

    trainer, _, _ = trained(mesh, range(2), Recipe())
    if rank == culprit:
        trainer.before_reduce.append(poison)
    trainer.local_gradients(cursor().read(2, mesh.data_rank(rank), mesh.data_ranks))
    gates = trainer.gather(trainer.gate_values())
    trainer.drop_gradients()
    trainer.before_reduce.clear()
    trained(mesh, range(2, 4), Recipe(), trainer)
    return [gate.finite for gate in gates], trainer.digest(), trained(mesh, range(4), Recipe())[0].digest()


def handed_over(rank: int, mesh: Mesh, folder: Path) -> tuple[str, str, bool, str]:
    """State handed as plain tensors to a rank built anew, as to a spare: both digests, whether an export equals it, and the
    digest of another mesh that reads its checkpoint."""
    trainer, _, _ = trained(mesh, range(3), Recipe())
    shard = {name: tensor.clone() for name, tensor in trainer.state_shard().items()}
    trained(mesh, range(3, 6), Recipe(), trainer)
    fresh = Trainer(model(seed=9), next_token_loss, Recipe(), 20, mesh)
    fresh.load_shard(shard)
    trained(mesh, range(3, 6), Recipe(), fresh)
    exported, whole = fresh.full_model().state_dict(), fresh.whole_state()
    assert not checkpoint.save(fresh, folder).problem
    other = Trainer(model(seed=5), next_token_loss, Recipe(), 20, Mesh(dp_replicate=2, dp_shard=2, ep=2))
    checkpoint.restore(other, folder)
    equal = all(torch.equal(exported[name], tensor) for name, tensor in whole.items())
    return trainer.digest(), fresh.digest(), equal, other.digest()


CULPRIT = 2
POISONED = [Mesh(dp_shard=4, ep=2), Mesh(dp_replicate=4, ep=4), Mesh(dp_shard=2, tp=2)]
HANDED = [Mesh(dp_replicate=2, dp_shard=2, ep=4), Mesh(dp_shard=2, tp=2, ep=2)]


def states(rank: int, folder: Path) -> tuple[list[tuple[list[bool], str, str]], list[tuple[str, str, bool, str]]]:
    handed = [handed_over(rank, mesh, folder / str(number)) for number, mesh in enumerate(HANDED)]
    return [poisoned(rank, mesh, CULPRIT) for mesh in POISONED], handed


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("four")
    return on_ranks(4, states, folder, folder=folder)


def test_nan_points_at_its_rank_and_the_redone_step_equals_the_twin(four: list[Any]) -> None:
    for rows, _ in four:
        for mesh, (finite, redone, twin) in zip(POISONED, rows, strict=True):
            assert finite == [rank != CULPRIT for rank in range(4)], mesh
            assert redone == twin, mesh


def test_shards_and_checkpoints_carry_the_whole_state(four: list[Any]) -> None:
    for _, rows in four:
        for mesh, (continued, restored, exported, elsewhere) in zip(HANDED, rows, strict=True):
            assert continued == restored == elsewhere and exported, mesh


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
    assert answers[0][0] == "" and "may no longer" in answers[0][1] and answers[0][2].startswith("rank 1: state is not finite")
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["step-1"]
    assert not list((tmp_path / "run" / "no").iterdir())
