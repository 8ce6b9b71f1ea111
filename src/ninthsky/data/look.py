"""A page with its kept and dropped parts in colour, and the card of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.text import Text

from ninthsky.config.schema import Data
from ninthsky.data.blocks import decode, parse
from ninthsky.data.extract import Extractor
from ninthsky.data.formats import Raw
from ninthsky.data.pages import raw_of
from ninthsky.data.score import choose
from ninthsky.errors import UserError
from ninthsky.run.folder import RunFolder, read_json


def find_page(folder: RunFolder, id: str) -> tuple[str, Raw]:
    """(source and path, page) of a page of a run. Raises UserError N9-WHY-001."""
    for path in sorted((folder.stage("data.pages") / "pages").glob("*.parquet")):
        rows = pq.read_table(path, filters=[("id", "=", id)]).to_pylist()
        if rows:
            return f"{rows[0]['source']} {rows[0]['path']}", raw_of(rows[0])
    raise UserError(
        "N9-WHY-001", f"no page has the id {id!r}", str(folder.path), "a file of HTML can be looked at too: n9 data look FILE"
    )


def page_view(raw: Raw, data: Data) -> dict[str, Any]:
    """What the extractor made of a page: its blocks with score and whether they were kept, and the decision on the whole."""
    extractor = Extractor(data)
    document = extractor(raw)
    extractor.judge([document])
    blocks: list[dict[str, Any]] = []
    if raw.kind == "text":
        blocks = [{"kept": True, "score": 0.0, "tag": "", "text": line} for line in document.text.split("\n")]
    elif (len(raw.data) <= data.page_bytes and document.drop is None) or document.figures:
        page = parse(decode(raw.data)[0])
        spans, scores = choose(page)
        kept = {index for first, last in spans for index in range(first, last)}
        blocks = [
            {"kept": index in kept, "score": float(score), "tag": block.tag, "text": block.text}
            for index, (block, score) in enumerate(zip(page.blocks, scores, strict=True))
        ]
    drop = document.drop
    decision = "kept"
    if drop is not None:
        decision = f"dropped at {drop.stage} by {drop.rule} = {drop.figure:g} (threshold {drop.threshold}): {drop.detail}"
    return {
        "language": document.language,
        "encoding": document.encoding,
        "figures": document.figures,
        "blocks": blocks,
        "decision": decision,
    }


def painted(view: dict[str, Any]) -> Text:
    """The page for a terminal: kept blocks green behind a bar, dropped ones dim, each with its score in front."""
    text = Text()
    for block in view["blocks"]:
        mark, style = ("┃", "green") if block["kept"] else (" ", "dim red")
        text.append(f"{block['score']:+6.2f} {mark} ", "dim")
        text.append(f"{block['text']}\n", style)
    return text


def card(folder: RunFolder) -> dict[str, Any]:
    """Sources, counts, languages, rules, tokens of a run's corpus. Raises UserError N9-DATA-003 where there is none."""
    funnel = read_json(folder.stage("data.corpus") / "funnel.json")
    pages = read_json(folder.stage("data.pages") / "summary.json")
    if funnel is None or pages is None:
        raise UserError("N9-DATA-003", "this run has no corpus yet", str(folder.path), "n9 run FILE --only data")
    settings = read_json(folder.stage("data.corpus") / "started.json") or {}
    return {
        "run": folder.path.name,
        "sources": {name: {"pages": count, "licence": _licence(name)} for name, count in pages["pages_by_source"].items()},
        "funnel": funnel,
        "settings": settings.get("settings", {}),
        "tokens": read_json(folder.stage("data.tokens") / "tokens" / "index.json"),
    }


def card_lines(content: dict[str, Any]) -> list[str]:
    """The card as a person reads it."""
    funnel, tokens, made = content["funnel"], content["tokens"], content["funnel"]["made"]
    counts = f"{funnel['documents']:,} documents, {funnel['words']:,} words of {funnel['pages']:,} pages"
    lines = [f"corpus of run {content['run']}: {counts}"]
    for name, source in content["sources"].items():
        lines.append(f"  source     {name}: {source['pages']:,} pages. {source['licence']}")
    for step in funnel["steps"]:
        rules = ", ".join(f"{rule} {count}" for rule, count in step["by_rule"].items())
        lines.append(f"  {step['step']:16s} {step['in']:>8,} -> {step['kept']:>8,}  {rules}")
    lines.append("  languages  " + ", ".join(f"{name} {count:,}" for name, count in funnel["languages"].items()))
    licences = ", ".join(f"{name} {count:,}" for name, count in funnel["licences"].items())
    masked = ", ".join(f"{name} {count:,}" for name, count in funnel["masked"].items())
    lines += [f"  licences   {licences}", f"  masked     {masked or 'nothing'}"]
    if made:
        lines.append(
            f"  made pages (synthetic): article F1 {made['f1']:.3f}, whole page {made['whole_page_f1']:.3f}; "
            f"precision {made['precision']:.3f}, recall {made['recall']:.3f}; "
            f"shells dropped {made['shells_dropped']} of {made['shells']}"
        )
    if tokens:
        train, held = tokens["splits"]["train"], tokens["splits"]["held_out"]
        lines.append(
            f"  tokens     {train['tokens']:,} training, {held['tokens']:,} held out; vocabulary {tokens['vocab']}, "
            f"{tokens['bytes_per_token']} bytes per token"
        )
    return lines


def _licence(source: str) -> str:
    known = {
        "made": "written for Ninthsky (Apache-2.0); synthetic spam shells around original articles",
        "debian-handbook": "GPL-2+ or CC BY-SA 3.0, Raphaël Hertzog, Roland Mas and translators",
    }
    return known.get(source, f"not known: pages of {Path(source).name}, given by the person who ran this")
