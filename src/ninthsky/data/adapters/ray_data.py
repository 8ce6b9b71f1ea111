"""A callable for Ray Data: pages in, one row per page out, kept or dropped.

rows = ray.data.read_parquet("pages/").map_batches(Ninthsky, batch_format="pyarrow", batch_size=64, concurrency=8)
kept = rows.filter(expr="decision == 'kept'")
"""

from __future__ import annotations

import pyarrow as pa

from ninthsky.config.schema import Data
from ninthsky.data.adapters import Records
from ninthsky.data.formats import row_of

SCHEMA = pa.schema([
    *((name, pa.string()) for name in ("id", "language", "text", "encoding", "licence", "robots", "decision", "stage", "rule")),
    ("figure", pa.float64()), ("threshold", pa.float64()), ("detail", pa.string()),
    ("figures", pa.map_(pa.string(), pa.float64())),
])  # fmt: skip


class Ninthsky:
    """Tables with `id` (or `url`) and `html` (or `text`) to tables by SCHEMA, a row for each row in the same order.

    `settings` are those of `[data]`: `fn_constructor_args=(Data(languages=("en",)),)`.
    """

    def __init__(self, settings: Data | None = None) -> None:
        self._records = Records(settings or Data())

    def __call__(self, batch: pa.Table) -> pa.Table:
        pages = [row_of(row, str(number)) for number, row in enumerate(batch.to_pylist())]
        empty = {"stage": None, "rule": None, "figure": None, "threshold": None, "detail": None}
        rows = [
            {**record, **(record["reason"] or empty), "figures": list(record["figures"].items())}
            for record in self._records(pages)
        ]
        return pa.Table.from_pylist(rows, SCHEMA)
