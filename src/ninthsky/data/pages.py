"""Stage `data.pages`: from the sources named in run.toml to shards of raw pages, capped the same way every time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ninthsky.data.formats import Raw
from ninthsky.data.sources import Entry, Source, open_source
from ninthsky.errors import UserError
from ninthsky.run import StageContext

PAGES_PER_SHARD = 128
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("html", pa.binary()),
        ("made", pa.bool_()),
        *((name, pa.string()) for name in ("kind", "licence", "robots", "trouble")),
    ]
)
WANTED_SHARE = 0.9


def document_id(source: str, path: str) -> str:
    """`doc-` and 16 hexadecimal digits of xxh3 over source and path: the same page has the same id in every run."""
    name = f"{source}\n{path}"
    return f"doc-{xxhash.xxh3_64_hexdigest(name.encode())}"


def choose(source: Source, limit: int, languages: tuple[str, ...]) -> list[Entry]:
    """At most `limit` entries, in path order.

    Where a source has more: nine tenths of the limit go to pages whose path names a wanted language or none, whole groups of
    translations together, groups in the order of a hash of their name; the rest goes to the other languages in the same order,
    so that the language rule has something to drop.
    """
    if len(source.entries) <= limit:
        return sorted(source.entries, key=lambda e: e.path)
    order = sorted(source.entries, key=lambda e: (xxhash.xxh3_64_intdigest(e.group.encode()), e.path))
    wanted = [e for e in order if not e.language or e.language in languages]
    others = [e for e in order if e.language and e.language not in languages]
    first = wanted[: max(limit - len(others), round(limit * WANTED_SHARE))]
    return sorted([*first, *others[: limit - len(first)]], key=lambda e: e.path)


def run(ctx: StageContext) -> None:
    """Writes pages/NNNNN.parquet, by SCHEMA; `html` is a text where `kind` says so. Raises UserError N9-DATA-001."""
    data = ctx.settings.data
    sources = [open_source(name, ctx) for name in dict.fromkeys(data.sources)]
    if not sources:
        raise UserError(
            "N9-DATA-001", "[data] sources is empty", "[data] sources", 'sources = ["made", "debian-handbook"], or a folder'
        )
    made = sum(len(source.entries) for source in sources if source.made)
    left = max((data.max_pages or 10**12) - made, 0)
    plan: list[tuple[Source, list[Entry]]] = []
    others = sorted((source for source in sources if not source.made), key=lambda source: len(source.entries))
    shares: dict[str, int] = {}
    for index, source in enumerate(others):  # the smallest first, so that what it does not use goes to the larger ones
        shares[source.name] = min(len(source.entries), left // (len(others) - index))
        left -= shares[source.name]
    for source in sources:
        limit = len(source.entries) if source.made else shares[source.name]
        plan.append((source, choose(source, limit, data.languages)))
    total = sum(len(chosen) for _, chosen in plan)
    counts: Counter[str] = Counter()
    size = 0
    with ctx.progress("pages", total=total, unit="pages") as bar:
        rows: list[dict[str, object]] = []
        shard = 0
        for source, chosen in plan:
            for raw in source.read([e.path for e in chosen]):
                rows.append(
                    {
                        "id": document_id(source.name, raw.path),
                        "source": source.name,
                        "path": raw.path,
                        "html": raw.data,
                        "made": source.made,
                        "kind": raw.kind,
                        "licence": raw.licence,
                        "robots": raw.robots,
                        "trouble": raw.trouble,
                    }
                )
                counts[source.name] += 1
                size += len(raw.data)
                bar.advance()
                if len(rows) == PAGES_PER_SHARD:
                    _write(ctx, shard, rows)
                    rows, shard = [], shard + 1
        if rows:
            _write(ctx, shard, rows)
    _report(ctx, sources, counts, size)


def raw_of(row: dict[str, Any]) -> Raw:
    """A row of pages/*.parquet."""
    return Raw(row["path"], row["html"] or b"", row["kind"], row["licence"], row["robots"], row["trouble"])


def _write(ctx: StageContext, shard: int, rows: list[dict[str, object]]) -> None:
    with ctx.open(f"pages/{shard:05d}.parquet", rows=len(rows)) as file:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file, compression="zstd")


def _report(ctx: StageContext, sources: list[Source], counts: Counter[str], size: int) -> None:
    ctx.summary(pages=counts.total(), bytes=size, pages_by_source=dict(sorted(counts.items())))
    kinds = {True: "made for this project, labelled so; not used for tuning", False: "real"}
    ctx.table(
        "sources",
        "Raw pages",
        ["source", "pages", "of", "kind"],
        [[source.name, counts[source.name], len(source.entries), kinds[source.made]] for source in sources],
        note=f"{size / 1e6:.1f} MB of HTML. Where a source has more pages than max_pages allows, wanted languages come first.",
    )
