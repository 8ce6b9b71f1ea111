from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

from benchmarks import journey  # noqa: E402
from benchmarks.journey import SGD, SHAPE, STEPS, Leg  # noqa: E402
from ninthsky.model import Decoder  # noqa: E402
from ninthsky.train.cut.mesh import Mesh  # noqa: E402
from ninthsky.train.state import checkpoint  # noqa: E402
from ninthsky.train.step.loop import Recipe  # noqa: E402
from tests.train.ranks import on_ranks  # noqa: E402

pytestmark = pytest.mark.slow

ROAD = [
    Leg(Mesh(dp_shard=4, ep=2), range(0, 6)),
    Leg(Mesh(dp_shard=2, ep=2), range(6, 11)),
    Leg(Mesh(dp_shard=3, ep=3), range(11, 16)),
    Leg(Mesh(dp_replicate=2, dp_shard=2, ep=2), range(16, 20)),
]
SAME = [Leg(Mesh(dp_shard=4, ep=2), range(0, 7)), Leg(Mesh(dp_shard=4, ep=2), range(7, 20))]
WHOLE = [Leg(Mesh(dp_shard=4, ep=2), range(0, 20))]


def all_journeys(rank: int, folder: Path, choices: Any) -> list[journey.Trace]:
    dist.destroy_process_group()
    found = []
    for number, (legs, recipe) in enumerate([(ROAD, SGD), (SAME, Recipe()), (WHOLE, Recipe())]):
        path = folder / str(number)
        path.mkdir(exist_ok=True)
        found.append(journey.travel(rank, path, legs, recipe, choices))
    return found


def test_resumed_on_4_2_3_and_4_real_ranks(tmp_path: Path) -> None:
    alone, choices = journey.alone(SGD)
    answers = on_ranks(4, all_journeys, tmp_path, choices, folder=tmp_path)
    moved, resumed, whole = ([answer[number] for answer in answers] for number in range(3))
    assert moved[0].begun == [0, 6, 11, 16]
    # Every global batch is that of one process: none lost, none read twice, whoever reads it.
    assert journey.batches(moved) == journey.batches([alone]) and len(journey.batches(moved)) == STEPS
    weights, loss = journey.furthest(moved[0], alone)
    assert weights <= 1e-6 and loss <= 1e-6
    assert len({trace.digest for trace in moved}) == 1
    # At the same mesh, with AdamW: the same bits.
    assert {trace.digest for trace in resumed} == {trace.digest for trace in whole}
    assert resumed[0].losses == whole[0].losses and resumed[0].begun == [0, 7]
    uncut = Decoder(SHAPE, seed=5)
    assert checkpoint.load_weights(uncut, tmp_path / "0" / "checkpoint" / "step-20") == 20
    assert all(tensor.numpy().tobytes() == moved[0].weights[name].tobytes() for name, tensor in uncut.state_dict().items())
