from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ninthsky.guard.job import HostSpec
from ninthsky.model import Decoder
from ninthsky.model.files import load
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.inject import Fault
from ninthsky.train.job import TrainJob
from ninthsky.train.state import checkpoint
from ninthsky.train.step.loop import Gate, Recipe, Trainer
from ninthsky.train.step.loss import next_token_loss
from ninthsky.train.text.cursor import Cursor, TokenFile
from tests.train.nano import SHAPE as NANO
from tests.train.nano import make_job, run_guarded, write_tokens
from tests.train.ranks import on_ranks
from tests.train.small import SHAPE, cursor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DEEP = replace(SHAPE, layers=4)
SGD = Recipe(lr=1.0, optimizer="sgd", weight_decay=0.0, warmup=0.0, schedule="constant", clip=0.0, balance=1e-3)


class Case(NamedTuple):
    mesh: Mesh
    micros: int
    recompute: str = "none"


CASES = [
    Case(Mesh(pp=4), 4),
    Case(Mesh(pp=4), 1),
    Case(Mesh(pp=4, schedule="zero-bubble"), 4),
    Case(Mesh(pp=2, dp_shard=2, schedule="interleaved", parts=2), 2),
    Case(Mesh(pp=2, dp_shard=2, ep=2, schedule="zero-bubble", parts=2), 4),
    Case(Mesh(pp=2, dp_shard=2, schedule="zero-bubble"), 3, "layer"),
    Case(Mesh(pp=2, dp_shard=2), 3),
    Case(Mesh(pp=2, dp_replicate=2, ep=2), 3, "layer"),
    Case(Mesh(pp=2, cp=2, schedule="zero-bubble"), 2),
    Case(Mesh(pp=2, tp=2, schedule="interleaved", parts=2), 2),
    Case(Mesh(dp_shard=4, ep=2), 3),
]


def trainer_of(case: Case | None, recipe: Recipe = SGD, seed: int = 0) -> Trainer:
    if case is not None:
        recipe = replace(recipe, micro_batches=case.micros, recompute=case.recompute)  # type: ignore[arg-type]
    return Trainer(Decoder(DEEP, seed), next_token_loss, recipe, 20, case.mesh if case else None)


def own(trainer: Trainer, step: int) -> Tensor:
    mesh = trainer.mesh
    return cursor().read(step, *((mesh.data_rank(dist.get_rank()), mesh.data_ranks) if mesh else ()))


def train(trainer: Trainer, steps: int) -> list[tuple[float, float]]:
    """Losses and gradient norms."""
    found = []
    for _ in range(steps):
        trainer.local_gradients(own(trainer, trainer.step))
        figures = trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
        found.append((figures.loss, figures.norm))
    return found


def scored(trainer: Trainer, step: int) -> float:
    """Mean loss of a batch over all ranks, without a step."""
    told = torch.tensor(trainer.evaluate(own(trainer, step)), dtype=torch.float64)
    if trainer.distributed:
        dist.all_reduce(told)
    return float(told[0] / told[1])


def parity() -> list[dict[str, Any]]:
    alone = trainer_of(None)
    before, figures, rows = scored(alone, 9), train(alone, 3), []
    wanted, loads = alone.whole_state(), alone.load()
    for case in CASES:
        trainer = trainer_of(case)
        first, found = scored(trainer, 9), train(trainer, 3)
        state = trainer.whole_state()
        assert list(state) == sorted(wanted)
        rows.append({
            "loss": max(abs(a - b) for (a, _), (b, _) in zip(found, figures, strict=True)),
            "norm": max(abs(a - b) / b for (_, a), (_, b) in zip(found, figures, strict=True)),
            "weights": max(float((state[name] - wanted[name]).abs().max()) for name in wanted),
            "scored": abs(first - before),
            "load": max(abs(a - b) for (_, mine), (_, other) in zip(trainer.load(), loads, strict=True)
                        for a, b in zip(mine, other, strict=True)),
            "counted": [sum(counts) for _, counts in trainer.load()],
            "digest": trainer.digest(),
            "exported": all(torch.equal(tensor, state[name]) for name, tensor in trainer.full_model().state_dict().items()),
            "held": sum(piece.local.numel() / piece.replicas for piece in trainer.pieces),
        })  # fmt: skip
    return rows


def faultless(job: TrainJob) -> str:
    """Digest of the weights that a job comes to, by a bare trainer."""
    trainer = Trainer(Decoder(job.shape, job.seed), next_token_loss, job.recipe, job.steps, job.mesh)
    reader = Cursor(TokenFile.open(Path(job.tokens), "train").tokens, job.sequence, job.batch, job.seed)
    for step in range(job.steps):
        trainer.local_gradients(reader.read(step, job.mesh.data_rank(dist.get_rank()), job.mesh.data_ranks))
        trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
    return trainer.digest()


def all_of_it(rank: int, folder: Path, job: TrainJob) -> tuple[list[dict[str, Any]], list[tuple[str, str]], str]:
    return parity(), moved(folder), faultless(job)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def job(folder: Path) -> TrainJob:
    """One whose rank 2, on the second stage, is killed on the way."""
    return make_job(
        write_tokens(folder / "tokens"), folder / "job", 20, [Fault(0, "kill", 2, 8)],
        shape=replace(NANO, layers=4), recipe=Recipe(micro_batches=2),
        mesh=Mesh(pp=2, dp_shard=2, ep=2, schedule="zero-bubble"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def ran(folder: Path, job: TrainJob) -> list[Any]:
    """What four ranks found, each of which ran all that is asked here."""
    return on_ranks(4, all_of_it, folder / "run", job, folder=folder)


def test_every_schedule_and_cut_equals_one_process_under_sgd(ran: list[Any]) -> None:
    answers = [parities for parities, _, _ in ran]
    total = sum(p.numel() for p in Decoder(DEEP, None).parameters())
    for number, case in enumerate(CASES):
        row = answers[0][number]
        assert row["loss"] <= 1e-5 and row["norm"] <= 1e-4 and row["weights"] <= 1e-5 and row["scored"] <= 1e-5, (case, row)
        # One ulp may send a token elsewhere; a micro-batch that counts twice, or not at all, would show in hundreds.
        assert row["load"] <= 2 and set(row["counted"]) == {12 * 16 * SHAPE.experts_per_token}, (case, row)
        assert len({answer[number]["digest"] for answer in answers}) == 1
        assert all(answer[number]["exported"] for answer in answers)
        assert sum(answer[number]["held"] for answer in answers) == pytest.approx(total), case
    digests = {case: answers[0][number]["digest"] for number, case in enumerate(CASES)}
    for cut, micros, again in ((Mesh(pp=4), 4, "none"), (Mesh(pp=2, dp_shard=2), 3, "layer")):
        other = digests[Case(replace(cut, schedule="zero-bubble"), micros, again)]
        assert digests[Case(cut, micros)] == other, "schedules, and recomputation, differ in when, not in what"


def moved(folder: Path) -> list[tuple[str, str]]:
    """State handed to a fresh rank as a shard; saved by one cut and loaded by another; a bad gradient and the step again."""
    pipelined = Case(Mesh(pp=2, dp_shard=2, ep=2, schedule="zero-bubble"), 3)
    rows = []
    trainer = trainer_of(pipelined, Recipe())
    train(trainer, 2)
    shard = {name: tensor.clone() for name, tensor in trainer.state_shard().items()}
    assert checkpoint.save(trainer, folder).problem == ""
    for other in (Case(Mesh(dp_shard=4, ep=4), 1), Case(Mesh(pp=4), 2), pipelined):
        there = trainer_of(other, Recipe(), seed=5)
        assert checkpoint.restore(there, folder).step == 2
        rows.append((there.digest(), trainer.digest()))
    fresh = trainer_of(pipelined, Recipe(), seed=7)
    fresh.load_shard(shard)
    for each in (trainer, fresh, there):
        train(each, 2)
    rows += [(fresh.digest(), trainer.digest()), (there.digest(), trainer.digest())]

    def poison(gradients: Sequence[Tensor]) -> None:
        gradients[0].view(-1)[0] = math.nan

    if dist.get_rank() == 3:
        fresh.before_reduce.append(poison)
    fresh.local_gradients(own(fresh, fresh.step))
    gates = fresh.gather(fresh.gate_values())
    assert [gate.finite for gate in gates] == [True, True, True, False]
    fresh.drop_gradients()
    fresh.before_reduce.clear()
    for each in (trainer, fresh):
        train(each, 1)
    return [*rows, (fresh.digest(), trainer.digest())]


def test_state_of_stages_is_carried_and_moved_to_other_cuts(ran: list[Any], folder: Path) -> None:
    for _, rows, _ in ran:
        assert len(rows) == 6 and all(one == other for one, other in rows), rows
    uncut = Decoder(DEEP, 3)
    assert checkpoint.load_weights(uncut, folder / "run" / "step-2") == 2


def test_a_killed_stage_comes_back_and_ends_in_the_same_weights(ran: list[Any], job: TrainJob) -> None:
    hosts = [HostSpec(name="host-0", slots=2, spares=0), HostSpec(name="host-1", slots=2, spares=1)]
    result = run_guarded(job, hosts=hosts)
    assert [(f.cause, f.rank, f.state, f.committed_steps_lost) for f in result.faults] == [("exit", 2, "repaired", 0)]
    assert {said["digest"] for said in result.results.values()} == {digest for _, _, digest in ran}
    exported = load(Path(job.folder) / "export").state_dict()
    uncut = Decoder(job.shape, None)
    assert checkpoint.load_weights(uncut, Path(job.folder) / "checkpoint" / f"step-{job.steps}") == job.steps
    assert all(torch.equal(tensor, exported[name]) for name, tensor in uncut.state_dict().items())
