"""A page with its kept and dropped parts in colour, and the card of a corpus."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
from rich.text import Text

from ninthsky.config.schema import Data
from ninthsky.data.blocks import decode, parse
from ninthsky.data.extract import Extractor
from ninthsky.data.formats import Raw
from ninthsky.data.pages import raw_of
from ninthsky.data.personal import mask
from ninthsky.data.score import choose
from ninthsky.errors import UserError
from ninthsky.run.folder import RunFolder


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


def as_decided(view: dict[str, Any], row: dict[str, Any], data: Data) -> dict[str, Any]:
    """The view with what the run decided afterwards: blocks taken out, each with `why`; why the page went, if it did."""
    cut = {block["text"]: block["why"] for block in row["cut"] or ()}
    for block in view["blocks"]:
        if block["kept"] and (why := cut.get(mask(block["text"], data.mask)[0])) is not None:
            block.update(kept=False, why=why)
    if "stage" in row:
        view["decision"] = f"dropped at {row['stage']} by {row['rule']} = {row['figure']:g}: {row['detail']}"
    return view


def painted(view: dict[str, Any]) -> Text:
    """The page for a terminal: kept blocks green behind a bar, dropped ones dim, those taken out later yellow; with scores."""
    text = Text()
    for block in view["blocks"]:
        mark, style = ("┃", "green") if block["kept"] else ("╎", "yellow") if "why" in block else (" ", "dim red")
        text.append(f"{block['score']:+6.2f} {mark} ", "dim")
        text.append(f"{block['text']}\n", style)
        if "why" in block:
            text.append(f"{'':7}╎ taken out: {block['why']}\n", "dim yellow")
    return text
