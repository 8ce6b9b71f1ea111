"""What two settings made of the same pages: counts by reason, pages with another verdict, other texts, with examples."""

from __future__ import annotations

import difflib
import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xxhash

from ninthsky.errors import UserError
from ninthsky.run.folder import RunFolder, read_json
from ninthsky.run.report import Section, write_page

_STAGES = ("data.pages", "data.corpus")
_LINE = 160  # characters of a line that are shown


@dataclass(frozen=True)
class _State:
    """What became of a page: `reason` is `kept`, or stage and rule; `text` a hash of what was kept."""

    reason: str
    text: bytes = b""


def diff(a: RunFolder, b: RunFolder, examples: int = 3) -> dict[str, Any]:
    """Everything that differs between two corpora, as plain values. About 200 bytes a page are held.

    Raises UserError N9-DATA-003 where a run has no corpus, N9-DATA-005 where both are the same run.
    """
    if a.path.resolve() == b.path.resolve():
        raise UserError("N9-DATA-005", "both are the same run", str(a.path), "n9 data diff RUN_A RUN_B, of two run folders")
    funnels = [_funnel(run) for run in (a, b)]
    states = [_states(run) for run in (a, b)]
    moved: Counter[tuple[str, str]] = Counter()
    chosen: dict[tuple[str, str], list[str]] = {}
    for id in states[0].keys() & states[1].keys():
        one, other = states[0][id], states[1][id]
        if one == other:
            continue
        move = (one.reason, other.reason)
        moved[move] += 1
        # The smallest ids: they are hashes, so that the choice is as good as drawn, and the same every time.
        chosen[move] = heapq.nsmallest(examples, [*chosen.get(move, ()), id])
    alone = [sorted(states[side].keys() - states[1 - side].keys()) for side in (0, 1)]
    wanted = {id for ids in chosen.values() for id in ids} | {id for ids in alone for id in ids[:examples]}
    rows = [_rows(run, wanted) for run in (a, b)]
    texts = moved.pop(("kept", "kept"), 0)
    return {
        "a": a.path.name,
        "b": b.path.name,
        "settings": _settings(a, b),
        "counts": {name: [funnel[name] for funnel in funnels] for name in ("pages", "documents", "words")},
        "languages": _both(*(funnel["languages"] for funnel in funnels)),
        "reasons": _both(*({_reason(s["step"], r): n for s in f["steps"] for r, n in s["by_rule"].items()} for f in funnels)),
        "moves": [
            {"a": one, "b": other, "pages": count, "examples": [_pair(id, rows) for id in chosen[one, other]]}
            for (one, other), count in sorted(moved.items(), key=lambda move: (-move[1], move[0]))
        ],
        "texts_changed": {"documents": texts, "examples": [_pair(id, rows) for id in chosen.get(("kept", "kept"), ())]},
        "only": {
            side: {"pages": len(ids), "examples": [_shown(row) for id in ids[:examples] if (row := rows[number].get(id))]}
            for number, (side, ids) in enumerate(zip("ab", alone, strict=True))
        },
    }


def _funnel(run: RunFolder) -> dict[str, Any]:
    funnel = read_json(run.stage("data.corpus") / "funnel.json")
    if funnel is None:
        raise UserError("N9-DATA-003", "this run has no corpus yet", str(run.path), "n9 run FILE --only data")
    return dict(funnel)


def _reason(stage: str, rule: str) -> str:
    return f"{stage}: {rule}"


def _states(run: RunFolder) -> dict[str, _State]:
    found: dict[str, _State] = {}
    for batch in _batches(run, "documents", ["id", "text"]):
        for row in batch:
            found[row["id"]] = _State("kept", xxhash.xxh3_64_digest(row["text"].encode()))
    known: dict[str, _State] = {}  # one object for all pages with one reason
    for batch in _batches(run, "dropped", ["id", "stage", "rule"]):
        for row in batch:
            reason = _reason(row["stage"], row["rule"])
            found[row["id"]] = known.setdefault(reason, _State(reason))
    return found


def _batches(run: RunFolder, folder: str, columns: list[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    for path in sorted((run.stage("data.corpus") / folder).glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1_024, columns=columns):
            yield batch.to_pylist()


def _rows(run: RunFolder, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Whole rows of a few pages, kept or dropped."""
    found: dict[str, dict[str, Any]] = {}
    for folder in ("documents", "dropped"):
        for path in sorted((run.stage("data.corpus") / folder).glob("*.parquet")):
            for row in pq.read_table(path, filters=[("id", "in", sorted(wanted))]).to_pylist() if wanted else ():
                found[row["id"]] = row
    return found


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A page with its verdict: figure against threshold, or length of what was kept."""
    where = {"id": row["id"], "source": row["source"], "path": row["path"], "language": row["language"]}
    if "rule" in row:
        return where | {key: row[key] for key in ("stage", "rule", "figure", "threshold", "detail")}
    return where | {"characters": len(row["text"])}


def _pair(id: str, rows: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    one, other = rows[0][id], rows[1][id]
    pair: dict[str, Any] = {"id": id, "source": one["source"], "path": one["path"], "a": _shown(one), "b": _shown(other)}
    for side, row, rival in (("a", one, other), ("b", other, one)):
        if "rule" not in row and "rule" in rival:  # what the rule that decided in the other run came to in this one
            pair[side]["rival_figure"] = dict(row["figures"]).get(rival["rule"])
    if "text" in one and "text" in other:
        pair["lines"] = [
            line[:_LINE]
            for line in difflib.unified_diff(one["text"].split("\n"), other["text"].split("\n"), lineterm="", n=0)
            if line[:1] in "+-" and line[:3] not in ("+++", "---")
        ][:8]
    return pair


def _both(one: dict[str, int], other: dict[str, int]) -> dict[str, list[int]]:
    return {name: [one.get(name, 0), other.get(name, 0)] for name in sorted({*one, *other})}


def _settings(a: RunFolder, b: RunFolder) -> dict[str, list[Any]]:
    """Dotted settings of the data stages that differ, [a, b]."""
    flat: list[dict[str, Any]] = [{}, {}]
    for side, run in enumerate((a, b)):
        for stage in _STAGES:
            _flatten((read_json(run.stage(stage) / "started.json") or {}).get("settings", {}), "", flat[side])
    keys = sorted({*flat[0], *flat[1]})
    return {key: [flat[0].get(key), flat[1].get(key)] for key in keys if flat[0].get(key) != flat[1].get(key)}


def _flatten(tree: dict[str, Any], before: str, into: dict[str, Any]) -> None:
    for key, value in tree.items():
        if isinstance(value, dict):
            _flatten(value, f"{before}{key}.", into)
        else:
            into[before + key] = value


def diff_lines(found: dict[str, Any]) -> list[str]:
    """The difference as a person reads it."""
    lines = [f"{found['a']} -> {found['b']}"]
    lines += [f"  setting    {key}: {one!r} -> {other!r}" for key, (one, other) in found["settings"].items()]
    lines += [f"  {name:10s} {one:>9,} -> {other:>9,}  ({other - one:+,})" for name, (one, other) in found["counts"].items()]
    lines += [f"  dropped    {one:>9,} -> {other:>9,}  ({other - one:+,})  {reason}"
              for reason, (one, other) in found["reasons"].items() if one != other]  # fmt: skip
    for move in found["moves"]:
        lines.append(f"  {move['pages']:,} pages: {move['a']} -> {move['b']}")
        for pair in move["examples"]:
            lines.append(f"    {pair['id']}  {pair['source']} {pair['path']}")
            lines += [f"      {side}: {_verdict(pair[side])}" for side in "ab"]
    changed = found["texts_changed"]
    if changed["documents"]:
        lines.append(f"  {changed['documents']:,} documents kept by both have another text")
        for pair in changed["examples"]:
            lines.append(f"    {pair['id']}  {pair['source']} {pair['path']}")
            lines += [f"      {line}" for line in pair["lines"]]
    for side in "ab":
        if count := found["only"][side]["pages"]:
            lines.append(f"  {count:,} pages are in {found[side]} only")
    if not (found["settings"] or found["moves"] or changed["documents"] or any(found["only"][s]["pages"] for s in "ab")):
        lines.append("  nothing differs")
    return lines


def _verdict(row: dict[str, Any]) -> str:
    if "rule" in row:
        bound = "" if row["threshold"] is None else f" against {row['threshold']:.4g}"
        return f"dropped, {row['rule']} {row['figure']:.4g}{bound}: {row['detail']}"
    rival = row.get("rival_figure")
    return f"kept, {row['characters']:,} characters" + ("" if rival is None else f"; that rule's figure here: {rival:.4g}")


def diff_page(found: dict[str, Any], path: Path) -> None:
    """The difference as one offline page in the style of a run's report."""
    reasons = {name: pair for name, pair in found["reasons"].items() if pair[0] != pair[1]}
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": found[side],
            "y": list(reasons),
            "x": [pair[n] for pair in reasons.values()],
        }
        for n, side in enumerate("ab")
    ]
    figures: list[dict[str, Any]] = [
        _table("settings", "Settings that differ", ["setting", found["a"], found["b"]],
               [[key, *map(str, pair)] for key, pair in found["settings"].items()]),
        _table("counts", "Counts", ["what", found["a"], found["b"], "change"],
               [[name, *pair, pair[1] - pair[0]] for name, pair in found["counts"].items()]),
        {"kind": "plot", "id": "reasons", "title": "Dropped, by reason (reasons that differ)", "traces": traces, "note": "",
         "layout": {"barmode": "group", "xaxis": {"title": {"text": "pages"}}, "yaxis": {"autorange": "reversed"}}},
        _table("moves", "Pages with another verdict", [found["a"], found["b"], "pages"],
               [[move["a"], move["b"], move["pages"]] for move in found["moves"]]),
        _table("examples", "Examples", ["page", found["a"], found["b"]],
               [[f"{p['id']} {p['path']}", _verdict(p["a"]), _verdict(p["b"])] for m in found["moves"] for p in m["examples"]]),
        _table("texts", f"Another text: {found['texts_changed']['documents']:,} documents kept by both", ["page", "lines"],
               [[f"{p['id']} {p['path']}", " ⏎ ".join(p["lines"])] for p in found["texts_changed"]["examples"]]),
        _table("only", "Pages of one run only", ["run", "pages"], [[found[s], found["only"][s]["pages"]] for s in "ab"]),
    ]  # fmt: skip
    write_page(path, f"{found['a']} and {found['b']}", [Section("diff", "What changed between two corpora", figures=figures)])


def _table(id: str, title: str, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    return {"kind": "table", "id": id, "title": title, "columns": columns, "rows": rows, "note": ""}
