from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ninthsky.errors import UserError
from ninthsky.radio import store
from ninthsky.radio.made import make, make_shard


@given(hnp.arrays(np.float32, (3, 48), elements=st.floats(0, 1e6, width=32) | st.just(float("nan"))))
def test_codes_keep_loads_to_half_a_step(loads: np.ndarray) -> None:
    codes, scale = store.encode(loads)
    counters = store.Counters(datetime.date(2026, 1, 5), ["S"] * 3, list("ABC"), np.ones(3, bool), scale, codes, True, "")
    back = counters.loads()
    assert (np.isnan(back) == np.isnan(loads)).all()
    known = ~np.isnan(loads)
    step = np.abs(np.sqrt(back / scale[:, None]) - np.sqrt(loads / scale[:, None]))
    assert (step[known] <= 0.5 / store.TOP + 1e-6).all()
    assert (back[known & (loads == 0)] == 0).all()


def test_a_shard_comes_back_as_it_was_written(tmp_path: Path) -> None:
    counters = make_shard(0, 5, 3, 14, seed=3)
    with (tmp_path / "part.parquet").open("wb") as file:
        store.write(counters, file)
    back = store.read(tmp_path / "part.parquet")
    assert (back.codes == counters.codes).all()
    assert (back.scale == counters.scale).all()
    assert (back.station, back.cell, back.first_day, back.made, back.unit) == (
        counters.station, counters.cell, counters.first_day, True, counters.unit,
    )  # fmt: skip
    assert back.starts.tolist() == [0, 3, 6, 9, 12, 15]


def test_a_file_that_is_no_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="N9-RAD-001"):
        store.read(tmp_path / "part.parquet")


def test_split_and_join_are_each_others_undoing() -> None:
    counters = make_shard(0, 7, 3, 14, seed=3)
    parts = list(store.split(counters, stations=3))
    assert [len(part.starts) - 1 for part in parts] == [3, 3, 1]
    assert (store.join(parts).codes == counters.codes).all()


def test_made_stations_follow_from_the_seed_and_the_shard_alone() -> None:
    many = list(make(store.SHARD_STATIONS + 2, 2, 7, seed=5))
    assert [len(part.codes) for part in many] == [2 * store.SHARD_STATIONS, 4]
    again = make_shard(1, 2, 2, 7, seed=5)
    assert (again.codes == many[1].codes).all()
    assert not (make_shard(1, 2, 2, 7, seed=6).codes == again.codes).all()
    assert all(part.made for part in many)
    assert len({name for part in many for name in part.cell}) == 2 * store.SHARD_STATIONS + 4


def test_made_stations_hold_gaps_and_dead_counters() -> None:
    codes = make_shard(0, 1000, 3, 28, seed=7).codes
    missing = (codes == store.MISSING).mean(axis=1)
    assert 0 < missing.mean() < 0.05
    assert (missing > 0.05).any()
