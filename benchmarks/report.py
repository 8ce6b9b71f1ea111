"""How every benchmark ends: a table for people, then one JSON line for programs, kept under benchmarks/results/."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ninthsky.run.environment import environment
from ninthsky.run.folder import write_json

RESULTS = Path(__file__).parent / "results"


def median_interval(samples: Sequence[float], name: str, level: float = 0.95, draws: int = 2000) -> dict[str, float]:
    """`{name, name_ci_low, name_ci_high, name_n}`: the median of samples and its bootstrap interval (percentile method)."""
    values = np.asarray(samples, dtype=float)
    rng = np.random.default_rng(0)
    medians = np.median(values[rng.integers(0, len(values), (draws, len(values)))], axis=1)
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return {
        name: float(np.median(values)),
        f"{name}_ci_low": float(low),
        f"{name}_ci_high": float(high),
        f"{name}_n": len(values),
    }


def publish(
    room: str, rows: Sequence[Sequence[Any]], figures: dict[str, Any], columns: Sequence[str] = ("what", "measured", "beside")
) -> None:
    """Prints `rows` as a table and `figures` as the last line, and keeps both with machine, versions and date."""
    table = Table(title=f"bench-{room}")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=120).print(table)
    write_json(
        RESULTS / f"{room}.json",
        {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "environment": environment(),
            "columns": list(columns),
            "rows": [list(row) for row in rows],
            "figures": figures,
        },
    )
    print(json.dumps(figures))
