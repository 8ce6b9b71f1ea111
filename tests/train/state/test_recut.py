"""State put together from the shards of another number of ranks. Every rank is built in this process, on a group that answers
at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from ninthsky.model import Decoder, Shape
from ninthsky.train.cut.fewer import fewer, micro_batches_at
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.cut.piece import Region
from ninthsky.train.state import shards
from ninthsky.train.state.recut import likeliest, recut
from ninthsky.train.step.loss import next_token_loss
from ninthsky.train.step.recipe import Recipe
from ninthsky.train.step.trainer import Trainer

SHAPE = Shape(97, 4, 48, 4, 2, 4, 2, 24, dense_layers=1, dense_dim=48)
STEP = 7


@contextmanager
def built(mesh: Mesh, rank: int, optimizer: str) -> Iterator[Trainer]:
    if mesh.ranks > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=mesh.ranks)
    recipe = Recipe(micro_batches=mesh.pp, optimizer=optimizer)  # type: ignore[arg-type]
    try:
        yield Trainer(Decoder(SHAPE, seed=None, held=False), next_token_loss, recipe, 20, mesh, torch.device("cpu"))
    finally:
        if mesh.ranks > 1:
            dist.destroy_process_group()


def whole(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What the whole tensor of that name is to be, whoever holds which part of it."""
    if name == "step":
        return torch.tensor(STEP)
    chance = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(name.encode()) >> 1)
    return torch.rand(shape, generator=chance).to(dtype)


def wanted(trainer: Trainer) -> dict[str, Tensor]:
    """This rank's parts of them."""
    regions, found = trainer.regions(), {}
    for name, tensor in trainer.state_shard().items():
        region = regions.get(name, Region((0,) * tensor.dim(), tuple(tensor.shape)))
        cut = tuple(slice(start, start + length) for start, length in zip(region.start, tensor.shape, strict=True))
        found[name] = whole(name, region.whole, tensor.dtype)[cut]
    return found


def write_all(folder: Path, mesh: Mesh, optimizer: str) -> None:
    for rank in range(mesh.ranks):
        with built(mesh, rank, optimizer) as trainer:
            shards.write(folder, rank, STEP, wanted(trainer), {"control": {"said": 5}}, trainer.regions())


@pytest.mark.parametrize(
    ("before", "after", "optimizer"),
    [
        (Mesh(dp_shard=4, ep=2), Mesh(dp_shard=3), "adamw"),
        (Mesh(dp_shard=4, ep=2), Mesh(), "muon"),
        (Mesh(dp_shard=3), Mesh(dp_shard=4, ep=4), "adamw"),
        (Mesh(dp_replicate=2, dp_shard=2, ep=2), Mesh(dp_shard=2, ep=2), "muon"),
        (Mesh(pp=2, dp_shard=3, tp=2, ep=2), Mesh(pp=2, dp_shard=2, tp=2, ep=2), "adamw"),
        (Mesh(pp=2, dp_shard=2), Mesh(dp_shard=2, cp=2), "sgd"),
    ],
)
def test_every_part_comes_from_whoever_held_it(tmp_path: Path, before: Mesh, after: Mesh, optimizer: str) -> None:
    write_all(tmp_path, before, optimizer)
    for rank in range(after.ranks):
        with built(after, rank, optimizer) as trainer:
            extra = recut(trainer, before, rank, lambda other: shards.ShardFile(tmp_path, other, STEP))
            assert extra == {"control": {"said": 5}} and trainer.step == STEP
            own = trainer.state_shard()
            for name, tensor in wanted(trainer).items():
                assert torch.equal(own[name], tensor), (rank, name)


def test_a_replica_is_not_read_where_one_has_it_all(tmp_path: Path) -> None:
    before, after = Mesh(dp_replicate=2, dp_shard=2), Mesh(dp_shard=2)
    write_all(tmp_path, before, "adamw")
    for rank in range(2):
        asked: list[int] = []

        def bring(other: int, asked: list[int] = asked) -> shards.ShardFile:
            asked.append(other)
            return shards.ShardFile(tmp_path, other, STEP)

        with built(after, rank, "adamw") as trainer:
            recut(trainer, before, rank, bring)
        assert asked == [rank]
    assert list(likeliest(Mesh(pp=2, dp_shard=2), Mesh(pp=2), 1)) == [2, 3, 0, 1]


def test_a_part_that_nobody_held_is_an_error(tmp_path: Path) -> None:
    mesh = Mesh(dp_shard=2)
    with built(mesh, 0, "adamw") as trainer:
        state = wanted(trainer)
        state.pop("weight/norm.weight")
        shards.write(tmp_path, 0, STEP, state, {}, trainer.regions())
        shards.write(tmp_path, 1, STEP, {}, {})
    with (
        built(Mesh(), 0, "adamw") as trainer,
        pytest.raises(shards.ShardError, match="lack parts of"),
    ):
        recut(trainer, mesh, 0, lambda other: shards.ShardFile(tmp_path, other, STEP))


def test_the_meshes_that_a_job_can_shrink_to() -> None:
    found = fewer(Mesh(dp_replicate=2, dp_shard=4, ep=2), SHAPE, 16, 16, 1, 2)
    assert [mesh.ranks for mesh in found] == [6, 4, 3, 2]
    assert found[1] == Mesh(dp_replicate=1, dp_shard=4, ep=2), "as many shards as there can be: the least memory"
    assert found[2].ep == 1 and found[3].ep == 2, "experts stay dealt out where that goes"
    assert fewer(Mesh(dp_shard=4, ep=2), SHAPE, 16, 8, 1, 4) == []
    for mesh in fewer(Mesh(pp=2, dp_shard=3, tp=2), SHAPE, 16, 12, 2, 1):
        assert (mesh.pp, mesh.tp) == (2, 2), "stages and tp stay"
    assert micro_batches_at(Mesh(dp_shard=3), Mesh(dp_shard=4), 2) == 3
