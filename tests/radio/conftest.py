"""Counters of one station in a file and in the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ninthsky.radio.store import Counters, encode
from tests.radio.rows import FIRST, rows_of

COLUMNS = ("ts", "station", "cell", "load")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as a CSV or Parquet file and gives its path."""

    def make(
        rows: list[tuple[Any, ...]], name: str = "counters.csv", columns: tuple[str, ...] = ("ts", "station", "cell", "load")
    ) -> Path:
        table = pl.DataFrame(rows, schema=list(columns), orient="row")
        path = tmp_path / name
        if path.suffix == ".parquet":
            table.write_parquet(path)
        else:
            table.write_csv(path, datetime_format="%Y-%m-%d %H:%M")
        return path

    return make


@pytest.fixture
def steady() -> Counters:
    """21 days of one station with three cells of the known shape."""
    loads = np.array([load for *_, load in rows_of()], dtype=np.float32).reshape(3, -1)
    codes, scale = encode(loads)
    return Counters(FIRST.date(), ["S"] * 3, list("ABC"), np.array([True, False, False]), scale, codes, True, "share")
