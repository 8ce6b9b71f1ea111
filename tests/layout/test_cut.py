from __future__ import annotations

from dataclasses import fields

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ninthsky.config.schema import Mesh
from ninthsky.layout.cut import Cut, Cuts

small = st.integers(1, 4)
cuts = st.builds(Cut, pp=small, dp_replicate=small, dp_shard=small, ep=small, cp=small, tp=small, micro_batch=small)


@given(st.lists(cuts, min_size=1, max_size=5))
def test_arrays_and_values_are_the_same_cuts(some: list[Cut]) -> None:
    assert [Cuts.of(*some)[i] for i in range(len(some))] == some


@given(cuts, cuts)
def test_two_cuts_share_a_name_only_when_equal(one: Cut, other: Cut) -> None:
    assert (one.name == other.name) == (one == other)


def test_the_block_is_one_that_settings_take() -> None:
    cut = Cut(dp_shard=4, ep=2)
    assert Mesh.model_validate(cut.mesh()).model_dump(exclude_unset=True) == cut.mesh()
    assert cut.block().splitlines()[0] == "[mesh]"
    assert cut.name == "dp_shard4.ep2" and cut.ranks == 4


@given(cuts)
def test_experts_parts_fill_the_data_ranks(cut: Cut) -> None:
    """ep x shards x replicas of experts are the data ranks wherever ep can be laid over them at all."""
    arrays = Cuts.of(cut)
    shards = cut.dp_shard * cut.cp
    if shards % cut.ep and (cut.ep % shards or (cut.dp_replicate * shards) % cut.ep):
        return
    assert cut.ep * int(arrays.expert_shards[0]) * int(arrays.expert_replicas[0]) == cut.dp_replicate * shards


def test_every_field_is_an_array() -> None:
    arrays = Cuts.of(Cut(), Cut(pp=2))
    assert all(getattr(arrays, field.name).dtype == np.int64 for field in fields(Cuts)) and len(arrays) == 2
