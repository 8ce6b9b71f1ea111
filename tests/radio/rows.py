"""Rows of counters with a known shape: quiet from 1 to 6, busy else, the same every day but for small noise."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np

FIRST = datetime.datetime(2026, 3, 2)  # a Monday
QUIET = range(1, 6)

Rows = list[tuple[datetime.datetime, str, str, float]]


def day_shape() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Load of one cell in each hour: 0.05 in the quiet hours, 0.5 else."""
    shape = np.full(24, 0.5)
    shape[list(QUIET)] = 0.05
    return shape


def rows_of(days: int = 21, cells: int = 3, shape: np.ndarray[Any, Any] | None = None, noise: float = 0.02) -> Rows:
    """Rows of one station S with cells A, B, C ..."""
    rng = np.random.default_rng(1)
    values = day_shape() if shape is None else shape
    return [
        (
            FIRST + datetime.timedelta(hours=hour),
            "S",
            "ABCDEF"[cell],
            float(values[hour % 24] * (1 + noise * rng.standard_normal())),
        )
        for cell in range(cells)
        for hour in range(days * 24)
    ]
