from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ninthsky.model.decoder import Decoder  # noqa: E402
from ninthsky.train.cut.mesh import Mesh  # noqa: E402
from ninthsky.train.inject import Fault, WrongProduct, flip_bit  # noqa: E402
from ninthsky.train.rank.replay import Replay, block, disagreements, owner_of, shifts  # noqa: E402
from ninthsky.train.rank.trace import Tracing  # noqa: E402
from ninthsky.train.step.loss import next_token_loss  # noqa: E402
from ninthsky.train.step.produced import Produced  # noqa: E402
from ninthsky.train.step.recipe import Recipe  # noqa: E402
from ninthsky.train.step.trainer import Gate, Trainer  # noqa: E402
from tests.train.ranks import on_ranks  # noqa: E402
from tests.train.small import SHAPE  # noqa: E402

HOSTS = ["a", "a", "b", "b"]
MESHES = (
    Mesh(dp_shard=4, ep=2),
    Mesh(dp_replicate=2, dp_shard=2, ep=2),
    Mesh(dp_shard=2, tp=2),
    Mesh(pp=2, dp_shard=2),
)
WRONG = 2


def test_a_block_is_what_shares_sequences_and_experts() -> None:
    assert block(Mesh(dp_shard=4, ep=2), 3) == [2, 3]
    assert block(Mesh(pp=2, dp_shard=2, tp=2, ep=2), 5) == [0, 1, 4, 5]
    assert block(Mesh(dp_shard=4, ep=4), 1) == [0, 1, 2, 3]
    assert shifts(Mesh(dp_shard=4, ep=4), HOSTS) == [], (
        "whoever shares experts with all has no second block to be compared with"
    )


def test_work_goes_to_other_hosts_and_to_all_of_them_in_turn() -> None:
    mesh = Mesh(dp_shard=6)
    assert shifts(mesh, ["a", "a", "b", "b", "c", "c"]) == [2, 3, 4]
    assert shifts(mesh, ["a"] * 6) == [1, 2, 3, 4, 5]
    assert {owner_of(mesh, 0, shift) for shift in shifts(mesh, ["a", "a", "b", "b", "c", "c"])} == {2, 3, 4}
    assert [owner_of(Mesh(pp=2, dp_shard=2, tp=2), rank, 1) for rank in range(8)] == [2, 3, 0, 1, 6, 7, 4, 5]


def test_who_differs_is_told_as_a_pair() -> None:
    mesh = Mesh(dp_shard=4)
    own, again = [1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 1.0, 2.0]
    assert disagreements(mesh, 2, own, again) == []
    again[0] = 9.0
    assert disagreements(mesh, 2, own, again) == [(2, 0)]


def _batch(share: int) -> Any:
    return torch.randint(6, SHAPE.vocab, (2, 17), generator=torch.Generator().manual_seed(share))


def _flip(flips: list[Fault], gradients: Sequence[Any]) -> None:
    if flips:
        flip_bit(gradients, flips.pop())


def replays(rank: int, mesh: Mesh) -> dict[str, Any]:
    """Three honest steps, and a fourth with a rank whose products are a little wrong."""
    recipe = Recipe(micro_batches=2 if mesh.pp > 1 else 1)
    trainer = Trainer(Decoder(SHAPE, seed=1, held=False), next_token_loss, recipe, 10, mesh)
    replay = Replay(1, 10)
    replay.begin(trainer, rank, HOSTS)
    produced = Produced()
    trainer.own_gradients.append(produced.see)
    seen: dict[str, Any] = {"honest": [], "shifts": replay.shifts, "changed": [], "flipped": []}

    def step(number: int) -> tuple[list[float], list[float], list[tuple[int, int]]]:
        again = replay.digest(trainer, _batch(replay.share(replay.shift(number))))
        produced.begin()
        own = replay.listen(lambda: trainer.local_gradients(_batch(replay.share(0))))
        rows = replay._gather([own, again])
        seen["changed"].append((produced.compared, produced.changed()))
        owns, agains = [row[0] for row in rows], [row[1] for row in rows]
        return owns, agains, replay.disagree(number, owns, agains)

    for number in range(3):
        owns, _, pairs = step(number)
        seen["honest"].append(pairs)
        trainer.apply(Gate.total(trainer.gather(trainer.gate_values())))
    seen["different"] = len(set(owns))
    for bit in (0, 15, 23, 29, 31):
        flips = [Fault(bit, "flip_gradient", rank, 0, bit=bit)] * (rank == WRONG)
        trainer.before_reduce.append(partial(_flip, flips))
        produced.begin()
        trainer.local_gradients(_batch(rank))
        seen["flipped"].append(produced.changed())
        trainer.drop_gradients()
        trainer.before_reduce.clear()
    with WrongProduct(Fault(4, "wrong_matmul", WRONG, 0, error=1e-5)) if rank == WRONG else nullcontext():
        owns, agains, pairs = step(3)
        trainer.drop_gradients()
        seen["pairs"] = pairs
        seen["findings"] = replay.investigate(trainer, 3, _batch, pairs, owns, agains)
    return seen


@pytest.mark.slow
def test_on_every_cut_honest_ranks_agree_to_the_bit_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    def all_meshes(rank: int) -> list[dict[str, Any]]:
        return [replays(rank, mesh) for mesh in MESHES]

    for mesh, answers in zip(MESHES, zip(*on_ranks(4, all_meshes, folder=tmp_path), strict=True), strict=True):
        assert [seen["flipped"] for seen in answers] == [[int(rank == WRONG)] * 5 for rank in range(4)], mesh
        for seen in answers:
            assert seen["shifts"] and seen["honest"] == [[], [], []], mesh
            assert all(compared >= 1 and not changed for compared, changed in seen["changed"]), (mesh, seen["changed"])
            assert seen["different"] > 1, "ranks with other samples must not have the same digest"
            assert seen["pairs"] and seen["findings"].ranks == (WRONG,), (mesh, seen)
            assert any("first operation that differs: " in figure for figure in seen["findings"].figures)


def test_an_operation_can_be_done_by_itself_to_the_same_bits() -> None:
    trainer = Trainer(Decoder(SHAPE, seed=1), next_token_loss, Recipe(), 10)
    with (first := Tracing(trainer.model)):
        trainer.local_gradients(_batch(0))
    trainer.drop_gradients()
    assert len(first.trace.keys) > 200
    for number in range(0, len(first.trace.keys) - 2, 61):
        with (again := Tracing(trainer.model, number)):
            trainer.local_gradients(_batch(0))
        trainer.drop_gradients()
        assert again.trace.differs(first.trace.tensor()) == -1
        assert again.captured is not None and again.captured.run(torch.device("cpu")) == again.trace.outs[number]
