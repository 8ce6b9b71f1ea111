"""What a corpus run tells: the funnel with counts, languages, rules, and how well the made pages' articles were found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ninthsky.data.blocks import decode, parse
from ninthsky.data.extract import STEPS
from ninthsky.data.made import true_article
from ninthsky.data.measure import token_f1
from ninthsky.data.rules.table import table
from ninthsky.run import StageContext

_SHOWN = 20  # blocks that were taken out most often
MASKED = "masked_"  # before a kind of personal data: the figure that counts how often it was masked


def report(ctx: StageContext, pages: int, counts: Counter[tuple[str, str]]) -> None:
    """Writes funnel.json, and the stage's tables, figures and headline."""
    steps: list[dict[str, Any]] = []
    left = pages
    for step in STEPS:
        rules = {rule: count for (stage, rule), count in sorted(counts.items()) if stage == step}
        gone = sum(rules.values())
        steps.append({"step": step, "in": left, "dropped": gone, "kept": left - gone, "by_rule": rules})
        left -= gone
    languages = Counter(_column(ctx, "documents", "language"))
    dropped_languages = Counter(_column(ctx, "dropped", "language"))
    words, masked = 0.0, Counter[str]()
    for row in _column(ctx, "documents", "figures"):
        for name, value in row:
            if name == "min_words":
                words += value
            elif name.startswith(MASKED):
                masked[name.removeprefix(MASKED)] += round(value)
    licences = Counter(_column(ctx, "documents", "licence"))
    robots = Counter(order for said in _column(ctx, "documents", "robots") for order in _orders(said))
    blocks = [row for folder in ("documents", "dropped") for row in _column(ctx, folder, "cut")]
    cut = Counter(block["text"] for row in blocks for block in row or ())
    made = measure_made(ctx)
    funnel = {
        "pages": pages,
        "documents": left,
        "words": round(words),
        "steps": steps,
        "languages": dict(sorted(languages.items())),
        "dropped_languages": dict(sorted(dropped_languages.items())),
        "masked": dict(sorted(masked.items())),
        "blocks_taken_out": cut.total(),
        "robots": dict(sorted(robots.items())),
        "licences": {name or "not stated": count for name, count in sorted(licences.items())},
        "made": made,
    }
    with ctx.open("funnel.json") as file:
        file.write(json.dumps(funnel, ensure_ascii=False, indent=1, sort_keys=True).encode() + b"\n")
    ctx.summary(
        pages=pages,
        documents=left,
        words=round(words),
        languages=dict(sorted(languages.items())),
        **({"made": made} if made else {}),
    )
    ctx.table(
        "funnel",
        "Funnel: from pages to documents",
        ["step", "in", "dropped", "kept", "by rule"],
        [
            [s["step"], s["in"], s["dropped"], s["kept"], ", ".join(f"{rule} {n}" for rule, n in s["by_rule"].items())]
            for s in steps
        ],
        note="n9 why doc-... tells for each page which rule, with which figure against which threshold.",
    )
    ctx.plot(
        "funnel-plot",
        "Pages left after each step",
        [{"type": "bar", "orientation": "h", "x": [pages, *(s["kept"] for s in steps)], "y": ["pages", *STEPS]}],
        {"yaxis": {"autorange": "reversed"}, "xaxis": {"title": {"text": "pages"}}},
    )
    names = sorted({*languages, *dropped_languages})
    by_language = [[name, languages[name], dropped_languages[name]] for name in names]
    ctx.table("languages", "Documents by language", ["language", "kept", "dropped"], by_language)
    ctx.table("masked", "Personal data masked", ["kind", "times"], [list(row) for row in sorted(masked.items())],
              note="Placeholders such as [e-mail] stand where it stood; run.toml: [data] mask.")  # fmt: skip
    shown = sorted(cut.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    ctx.table("cut", f"Blocks taken out: {cut.total()}, {len(cut)} different", ["pages", "block"],
              [[count, text[:120]] for text, count in shown],
              note="On many pages of a site, or in an evaluation set; `n9 data look doc-...` shows where.")  # fmt: skip
    quality = table(ctx.settings.data.quality)
    ctx.table("rules", "Quality rules", ["rule", "bound", "English", "Chinese", "source"],
              [[r.name, r.bound, r.english, r.chinese, r.source] for r in quality])  # fmt: skip
    if made:
        _made_report(ctx, made)
    ctx.limit("Quality rules are judged by what they drop, not yet by a model trained on the result (issue 5).")
    ctx.limit("Chinese thresholds are our own and were set on few pages.")


def _made_report(ctx: StageContext, made: dict[str, Any]) -> None:
    ctx.headline(
        "Articles saved from spam shells (F1)", f"{made['f1']:.3f}", "whole page kept", f"{made['whole_page_f1']:.3f}",
        "n9 data card", synthetic=True,
    )  # fmt: skip
    ctx.table(
        "made",
        f"Made pages: {made['articles']} articles in shells, {made['shells']} shells alone (synthetic)",
        ["what", "extracted", "whole page"],
        [
            ["precision", made["precision"], made["whole_page_precision"]],
            ["recall", made["recall"], 1.0],
            ["F1", made["f1"], made["whole_page_f1"]],
            ["articles in the corpus", f"{made['articles_kept']} of {made['articles']}", ""],
            ["shells dropped", f"{made['shells_dropped']} of {made['shells']}", f"0 of {made['shells']}"],
        ],
        note="Means over pages of token precision, recall, F1 against the true article. Nothing was fitted or chosen on them.",
    )
    ctx.limit("Made pages and the shells that weights were fitted with have one author: unread spam may look different.")


def measure_made(ctx: StageContext) -> dict[str, Any]:
    """Precision, recall and F1 of extraction on the made pages of this run, and of keeping the whole page; {} without any.

    A page whose article was dropped counts with recall 0.
    """
    texts = _texts(ctx)
    pages = ds.dataset(ctx.inputs["data.pages"] / "pages", format="parquet")
    rows = pages.to_table(columns=["id", "path", "html"], filter=ds.field("made")).to_pylist()
    ours, whole, kept, shells, shells_dropped = [], [], 0, 0, 0
    for row in rows:
        article = true_article(row["path"])
        if article is None:
            continue
        text = texts.get(row["id"], "")
        if not article:
            shells += 1
            shells_dropped += not text
            continue
        kept += bool(text)
        ours.append(token_f1(text, article))
        page = parse(decode(row["html"])[0])
        whole.append(token_f1("\n".join(page.texts(0, len(page))), article))
    if not ours:
        return {}

    def mean(of: list[tuple[float, float, float]], part: int) -> float:
        return round(sum(figure[part] for figure in of) / len(of), 4)

    return {
        "articles": len(ours), "articles_kept": kept, "shells": shells, "shells_dropped": shells_dropped,
        "precision": mean(ours, 0), "recall": mean(ours, 1), "f1": mean(ours, 2),
        "whole_page_precision": mean(whole, 0), "whole_page_f1": mean(whole, 2),
    }  # fmt: skip


def _texts(ctx: StageContext) -> dict[str, str]:
    """Text of each made page that is in the corpus."""
    table = ds.dataset(ctx.out / "documents", format="parquet").to_table(columns=["id", "text"], filter=ds.field("made"))
    return dict(zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True))


def _orders(said: str | None) -> set[str]:
    """What a page says to robots: `noindex`, `nofollow` of `NOINDEX, NoFollow`; without values (`max-snippet:-1`)."""
    return {order.partition(":")[0].strip().lower() for order in (said or "").split(",") if order.strip()}


def _column(ctx: StageContext, folder: str, name: str) -> Iterator[Any]:
    for path in sorted((ctx.out / folder).glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(columns=[name]):
            yield from batch.column(0).to_pylist()
