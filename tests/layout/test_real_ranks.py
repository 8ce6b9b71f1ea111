"""Memory and traffic in closed form against real ranks: FSDP2 x expert parallel on gloo, one step, every collective counted."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ninthsky.layout.cluster import CHIPS, Cluster
from ninthsky.layout.cut import Cut, Cuts
from ninthsky.layout.memory import held
from ninthsky.layout.shape import Sizes, Work
from ninthsky.layout.traffic import collectives, egress

SIZES = Sizes(
    layers=3, dim=32, heads=4, kv_heads=2, head_dim=8, vocab=64, experts=4, experts_per_token=2, expert_dim=16,
    shared_experts=1, dense_layers=1, dense_dim=64,
)  # fmt: skip
SHAPE = {key: value for key, value in asdict(SIZES).items() if key not in ("head_dim", "gated", "tied")}
SEQUENCE, BATCH = 16, 8
CUTS = (Cut(dp_shard=4), Cut(dp_shard=4, ep=2), Cut(dp_shard=4, ep=4), Cut(dp_replicate=2, dp_shard=2, ep=2))


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """Per cut, what each of four real ranks held and handed over."""
    arguments = [json.dumps([cut.mesh() for cut in CUTS]), json.dumps(SHAPE), str(SEQUENCE), str(BATCH // 4)]
    store = str(tmp_path_factory.mktemp("ranks") / "store")
    program = str(Path(__file__).with_name("rank_counts.py"))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", program, str(rank), "4", store, *arguments], stdout=subprocess.PIPE, text=True
        )
        for rank in range(4)
    ]
    try:
        outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * 4
    return [[json.loads(output.splitlines()[index]) for output in outputs] for index in range(len(CUTS))]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(CUTS)), ids=lambda index: CUTS[index].mesh_name)
def test_what_a_rank_holds_and_sends_is_as_predicted(index: int, counted: list[list[dict[str, Any]]]) -> None:
    real, mesh = counted[index], CUTS[index]
    cuts = Cuts.of(replace(mesh, micro_batch=BATCH // (mesh.dp_replicate * mesh.dp_shard), reshard=0))
    work, cluster = Work(SEQUENCE, BATCH, compute_bytes=4, gather_bytes=4, copies=True), Cluster(2, 2, CHIPS["cpu"], 2.0)
    predicted = held(cuts, SIZES, work).shard[0]
    assert [rank["held"] for rank in real] == [predicted] * 4
    found = {name: float(c.payload[0]) for name, c in collectives(cuts, SIZES, work, cluster).items()}
    gathered = found["gather weights"] + found["gather experts"]
    reduced = found["reduce gradients"] + found["reduce expert gradients"]
    replicas = found["reduce over replicas"] + found["reduce experts over replicas"]
    assert [rank.get("gather", 0) for rank in real] == [gathered] * 4
    assert [rank.get("scatter", 0) for rank in real] == [reduced] * 4
    assert [rank.get("reduce", 0) for rank in real] == [replicas] * 4
    # The router decides where tokens go: exact is the sum over ranks, with the counts that go ahead (8 bytes each).
    counts = SIZES.sparse_layers * SIZES.experts * 8 if mesh.ep > 1 else 0
    assert sum(rank.get("exchange", 0) for rank in real) == 4 * (found["tokens to experts"] + counts)
    # A peer's copy is the shard, which also has the step's number and the routers' biases: small beside it.
    copies = egress(cuts, SIZES, work, cluster)["copies of state"][0] / 2
    assert copies == 12 * predicted
    assert 0 <= real[0]["shard_bytes"] - copies <= 0.02 * copies + 1024
