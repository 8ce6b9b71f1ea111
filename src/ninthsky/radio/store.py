"""The compact store: one row per cell, a month of hours in 672 bytes; decoding long tables is what costs at country scale.

A code c in 0..254 stands for the load (c / 254)^2 x scale, 255 for an hour that nobody knows. The square root spends the
codes where loads differ by decades between night and day: at a hundredth of the cell's highest hour one step is 8 % of
the value, where equal steps would be 39 %.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ninthsky.errors import UserError

MISSING = 255
TOP = 254
SHARD_STATIONS = 4096
FORMAT = 1

Codes = NDArray[np.uint8]  # [cells, hours]
Loads = NDArray[np.float32]  # [cells, hours], share of one carrier's capacity, NaN where unknown


@dataclass(frozen=True)
class Counters:
    """Hourly load of some stations' cells, the cells of a station side by side.

    `first_day` is the local date of column 0, whose hour is 00:00-01:00: hours are named by their start from here on.
    `made` marks loads that no network measured. `unit` says what a load of 1 is.
    """

    first_day: datetime.date
    station: list[str]  # per cell
    cell: list[str]  # per cell
    coverage: NDArray[np.bool_]  # per cell: it keeps the area covered and never sleeps
    scale: NDArray[np.float32]  # per cell
    codes: Codes
    made: bool
    unit: str

    @property
    def days(self) -> int:
        return self.codes.shape[1] // 24

    @property
    def starts(self) -> NDArray[np.int64]:
        """Row of each station's first cell, and the number of rows as the last entry."""
        names = self.station
        first = [row for row in range(len(names)) if row == 0 or names[row] != names[row - 1]]
        return np.array([*first, len(names)], dtype=np.int64)

    def loads(self) -> Loads:
        """Decoded loads [cells, hours], NaN where unknown."""
        table = np.append((np.arange(MISSING, dtype=np.float32) / TOP) ** 2, np.float32(np.nan)).astype(np.float32)
        return table[self.codes] * self.scale[:, None]


def encode(loads: Loads) -> tuple[Codes, NDArray[np.float32]]:
    """Codes and scale of loads [cells, hours]; NaN becomes MISSING. A load of zero stays exactly zero."""
    known = np.isfinite(loads)
    scale = np.where(known, loads, 0).max(axis=1, initial=0.0).astype(np.float32)
    scale[scale <= 0] = 1.0
    root = np.sqrt(np.where(known, loads, 0) / scale[:, None])
    return np.where(known, np.rint(root * TOP), MISSING).astype(np.uint8), scale


def write(counters: Counters, file: IO[bytes] | Any) -> None:
    """One shard as Parquet with a `hours` column of fixed-size binary."""
    hours = counters.codes.shape[1]
    values = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(hours), len(counters.codes), [None, pa.py_buffer(np.ascontiguousarray(counters.codes))]
    )
    table = pa.table(
        {
            "station": pa.array(counters.station, pa.string()),
            "cell": pa.array(counters.cell, pa.string()),
            "coverage": pa.array(counters.coverage),
            "scale": pa.array(counters.scale),
            "hours": values,
        }
    )
    about = {"format": FORMAT, "first_day": counters.first_day.isoformat(), "made": counters.made, "unit": counters.unit}
    table = table.replace_schema_metadata({"ninthsky.radio": json.dumps(about, sort_keys=True)})
    # The codes are near random to a byte compressor: names shrink by dictionary, and the rest is written as it is.
    pq.write_table(table, file, compression="zstd", use_dictionary=["station"], write_statistics=False, row_group_size=1 << 20)


def read(path: Path) -> Counters:
    """Raises UserError N9-RAD-001 when the file is no such shard."""
    try:
        table = pq.read_table(path, use_threads=False, memory_map=False)
        about = json.loads((table.schema.metadata or {})[b"ninthsky.radio"])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise UserError(
            "N9-RAD-001", f"not a counter store: {error}", str(path), "run the stage radio.stations again"
        ) from error
    table = table.combine_chunks()
    column = table.column("hours").chunk(0) if table.num_rows else pa.array([], pa.binary(24))
    width = column.type.byte_width
    codes = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * width :][: table.num_rows * width]
    return Counters(
        first_day=datetime.date.fromisoformat(about["first_day"]),
        station=table.column("station").to_pylist(),
        cell=table.column("cell").to_pylist(),
        coverage=table.column("coverage").to_numpy(),
        scale=table.column("scale").to_numpy(),
        codes=codes.reshape(table.num_rows, width),
        made=about["made"],
        unit=about["unit"],
    )


def shards(folder: Path) -> list[Path]:
    """The shards of a `radio.stations` folder, in order."""
    return sorted((folder / "counters").glob("part-*.parquet"))


def split(counters: Counters, stations: int = SHARD_STATIONS) -> Iterator[Counters]:
    """Shards of whole stations."""
    starts = counters.starts
    for begin in range(0, len(starts) - 1, stations):
        end = min(begin + stations, len(starts) - 1)
        yield pick(counters, np.arange(starts[begin], starts[end]))


def pick(counters: Counters, rows: NDArray[np.int64]) -> Counters:
    """Some rows, in the order given."""
    return Counters(
        counters.first_day,
        [counters.station[row] for row in rows],
        [counters.cell[row] for row in rows],
        counters.coverage[rows],
        counters.scale[rows],
        counters.codes[rows],
        counters.made,
        counters.unit,
    )


def join(parts: list[Counters]) -> Counters:
    """Shards of one store put together again."""
    return Counters(
        parts[0].first_day,
        [name for part in parts for name in part.station],
        [name for part in parts for name in part.cell],
        np.concatenate([part.coverage for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.codes for part in parts]),
        parts[0].made,
        parts[0].unit,
    )


def renamed(counters: Counters, station: list[str], cell: list[str]) -> Counters:
    """The same loads under other names."""
    return replace(counters, station=station, cell=cell)
