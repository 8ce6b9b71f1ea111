"""Articles inside spam shells: how much of the article is kept, and how much of what is kept is the article.

    python -m benchmarks.wrapped [PAGES.parquet] [--pages 50]

Real articles stand inside shells cut from the non-article blocks of other real pages, with no tag that tells them apart. The
pages are those that the weights were not fitted on, sites are kept apart (no shell comes from the article's own site, no two
pages share an article), half Chinese as far as there are Chinese pages. Nothing was chosen by these figures. The real
spam-wrapped page stands beside it, and its shell alone.
"""

from __future__ import annotations

import argparse
import html
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.pages import DEFAULT, pages_file
from benchmarks.report import publish
from ninthsky.config.schema import Data
from ninthsky.data.blocks import Page, decode, parse
from ninthsky.data.extract import Document, Extractor
from ninthsky.data.fit import fitted_on, labels
from ninthsky.data.formats import Raw
from ninthsky.data.measure import token_f1

_CANONICAL = re.compile(
    r"<(?:link|meta)[^>]{0,200}(?:canonical|og:url)[^>]{0,200}?(?:href|content)=[\"']?https?://([^/\"'\s>]+)", re.I
)
_LEAST = 400  # characters of an article (a third of them in Chinese)
_STYLES = ("<p>{}</p>", "<div>{}</div>", "{}<br>")


def site_of(text: str, fallback: str) -> str:
    """The host that a page says it is of; where it says none, the page is a site of its own."""
    found = _CANONICAL.search(text[:200_000])
    return ".".join(found[1].lower().split(".")[-2:]) if found else fallback


def cut(page: Page, truth: str) -> tuple[list[str], list[str]]:
    """(blocks of the article, blocks of the shell), in reading order."""
    own = labels(page, truth)
    texts = page.texts(0, len(page))
    return (
        [text for text, label in zip(texts, own, strict=True) if label],
        [text for text, label in zip(texts, own, strict=True) if not label],
    )


def wrapped(article: list[str], shells: list[list[str]], rng: random.Random) -> bytes:
    """A page: a run of one shell, the article, a run of another; one kind of element for all."""
    before, behind = (
        shell[start : start + rng.randint(10, 40)] for shell in shells for start in [rng.randrange(max(len(shell) - 10, 1))]
    )
    style = rng.choice(_STYLES)
    body = "".join(style.format(html.escape(text)) for text in [*before, *article, *behind])
    title = html.escape(rng.choice([article[0], before[0] if before else article[0]])[:80])
    return f"<html><head><meta charset=utf-8><title>{title}</title></head><body>{body}</body></html>".encode()


def cases(rows: list[dict[str, Any]], count: int, seed: int = 5) -> list[tuple[str, bytes, str]]:
    """(language, page, true article) of `count` pages."""
    rng = random.Random(seed)
    cuts: dict[str, list[tuple[str, list[str], list[str]]]] = {"en": [], "zh": []}
    for row in rows:
        text = decode(row["html"])[0]
        cuts[row["language"]].append((site_of(text, row["id"]), *cut(parse(text), row["main_text"])))
    out: list[tuple[str, bytes, str]] = []
    for language, share in (("zh", count // 2), ("en", count - count // 2)):
        pool = sorted(cuts[language], key=lambda entry: entry[0])
        rng.shuffle(pool)
        least = _LEAST // 3 if language == "zh" else _LEAST
        whole = [entry for entry in pool if sum(map(len, entry[1])) >= least]
        if not whole:
            continue
        for number in range(share):
            site, article, _ = whole[number % len(whole)]  # articles come again only where there are fewer than pages
            others = [shell for other, _, shell in pool if other != site and len(shell) >= 8]
            shells = rng.sample(others, 2)
            out.append((language, wrapped(article, shells, rng), "\n".join(article)))
    return out


def judged(extractor: Extractor, data: bytes) -> Document:
    document = extractor(Raw("page", data))
    extractor.judge([document])
    return document


def real_one(text: str) -> tuple[str, str]:
    """(the page, its article) of shared/data/web/spam_wrapped_article.txt."""
    return text, text[text.index("大国工匠丨") : text.index("相关推荐")]


def measure(source: Path, count: int = 50, seed: int = 5) -> tuple[list[list[Any]], dict[str, Any]]:
    """Rows of the table and figures."""
    rows = [row for row in pq.read_table(source).to_pylist() if not fitted_on(row["id"])]
    extractor = Extractor(Data())
    table: list[list[Any]] = []
    figures: dict[str, Any] = {}
    found: dict[str, list[tuple[float, float, float]]] = {"zh": [], "en": []}
    for language, wrapped, article in cases(rows, count, seed):
        found[language].append(token_f1(extractor(Raw("page", wrapped)).text, article))
    everything = [*found["zh"], *found["en"]]
    for name, scores in (("all", everything), *found.items()):
        if scores:
            precision, recall, f1 = (float(np.mean([score[part] for score in scores])) for part in range(3))
            table.append([f"{len(scores)} wrapped articles, {name}", precision, recall, f1])
            figures |= {
                f"wrapped_{name}_precision": precision,
                f"wrapped_{name}_recall": recall,
                f"wrapped_{name}_pages": len(scores),
            }
    real = source.parent / "spam_wrapped_article.txt"
    if real.exists():
        page, article = real_one(real.read_text("utf-8"))
        for tag in ("p", "div"):
            lines = [line for line in page.splitlines() if line.strip()]
            kept = extractor(Raw("page", "".join(f"<{tag}>{html.escape(line)}</{tag}>" for line in lines).encode()))
            score = token_f1(kept.text, article)
            table.append([f"the real spam-wrapped page, <{tag}>", *score])
            figures |= {f"spam_page_{tag}_precision": score[0], f"spam_page_{tag}_recall": score[1]}
        shell = page.replace(article, "").splitlines()
        dropped = judged(extractor, "".join(f"<p>{html.escape(line)}</p>" for line in shell if line.strip()).encode()).drop
        figures["spam_shell_dropped"] = dropped is not None
        table.append(["its shell alone", f"dropped: {dropped.rule}" if dropped else "kept", ""])
    return table, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages_file", nargs="?", type=pages_file, default=str(DEFAULT))
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    publish("wrapped", *measure(given.pages_file, given.pages, given.seed), columns=("what", "precision", "recall", "F1"))


if __name__ == "__main__":
    main()
