"""The 24 made pages: original articles inside spam shells, with the true article kept beside each (see made/README.md).

Pieces are picked by a hash of the page's name, so that every machine and version builds the same bytes.
"""

from __future__ import annotations

import functools
import html
import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import xxhash

from ninthsky.data.formats import Raw
from ninthsky.data.sources import Entry, Source


@dataclass(frozen=True)
class MadePage:
    """A made page. `article` is its true text, one line per paragraph, headline first; empty where the page is all shell."""

    name: str
    language: str
    article: str
    encoding: str
    html: bytes


class Shell:
    """Picks pieces of a language for one page, in an order that its name fixes."""

    def __init__(self, name: str, pieces: dict[str, Any]) -> None:
        self.name, self.pieces, self.turn = name, pieces, 0

    def pick(self, kind: str, count: int) -> list[str]:
        """`count` different pieces of a kind (all, if it has fewer), each filled in."""
        self.turn += 1
        order = sorted(
            self.pieces[kind], key=lambda piece: xxhash.xxh3_64_intdigest(f"{self.name}/{self.turn}/{piece}".encode())
        )
        return [self.fill(piece) for piece in order[:count]]

    def fill(self, piece: str) -> str:
        for mark, kind in (("{n}", "numbers"), ("{s}", "services"), ("{p}", "places")):
            while mark in piece:
                piece = piece.replace(mark, self.pick(kind, 1)[0], 1)
        return piece.replace("{w}", self.stem) if "{w}" in piece else piece

    @functools.cached_property
    def stem(self) -> str:
        return self.pick("stems", 1)[0]

    def places(self, count: int) -> str:
        return str(self.pieces["separator"]).join(self.pick("places", count))

    def one(self, kind: str) -> str:
        return self.fill(self.pieces[kind])

    def before(self) -> list[str]:
        """Lines that come before the article: hotlines, lures, place lists."""
        lines = [*self.pick("hotlines", 2), *self.pick("lures", 3), *self.pick("hotlines", 2)]
        return [*lines, *(self.places(4 + (self.turn * 3 + i * 5) % 9) for i in range(5)), self.pick("lures", 1)[0]]

    def after(self) -> list[str]:
        """Lines that come after it."""
        return [
            self.pieces["related_title"],
            *self.pick("related", 5),
            *self.pick("hotlines", 2),
            self.places(6),
            *self.pieces["foot"],
        ]


def _tags(tag: str, lines: list[str], attributes: str = "") -> str:
    return "\n".join(f"<{tag}{attributes}>{html.escape(line, quote=False)}</{tag}>" for line in lines)


def _links(lines: list[str]) -> str:
    return "".join(
        f'<li><a href="/x/{index}.html">{html.escape(line, quote=False)}</a></li>' for index, line in enumerate(lines)
    )


def _paragraphs(shell: Shell, article: list[str]) -> str:
    """Everything a <p>: nothing in the tags tells the article from its shell."""
    return _tags("p", [*shell.before(), *article, *shell.after()])


def _soup(shell: Shell, article: list[str]) -> str:
    """Nested divs without meaning, a column of links, the headline no heading."""
    middle = "".join(f"<div><div>{_tags('div', [line])}</div></div>" for line in article)
    return (
        f"<div><div><ul>{_links(shell.pick('navigation', 10))}</ul></div><div>{_tags('div', shell.before())}</div>"
        f"<div><ul>{_links(shell.pick('related', 8))}</ul></div><div>{middle}</div>"
        f"<div>{_tags('div', shell.after())}</div></div>"
    )


def _lines(shell: Shell, article: list[str]) -> str:
    """One cell of text cut by <br> alone."""
    lines = [html.escape(line, quote=False) for line in [*shell.before(), *article, *shell.after()]]
    return f"<div class='c'>{'<br><br>'.join(lines)}</div>"


def _blog(shell: Shell, article: list[str]) -> str:
    """A blog's template with an advertisement in the middle of the article, comments below, a cookie banner above."""
    middle = (len(article) + 1) // 2
    head = f"<h1>{html.escape(article[0])}</h1>" if article else f"<h1>{html.escape(shell.stem)}</h1>"
    return (
        f'<div class="cookie-banner">{_tags("p", [shell.one("cookie")])}</div>'
        f"<nav><ul>{_links(shell.pick('navigation', 10))}</ul></nav>"
        f"<section>{_tags('p', shell.before())}</section><article>{head}{_tags('p', article[1:middle])}"
        f"{_tags('p', [shell.one('inside'), shell.places(7)])}{_tags('p', article[middle:])}</article>"
        f'<ul class="share">{_links(shell.pieces["share"])}</ul>'
        f'<div class="comments">{_tags("p", shell.pick("comments", 4))}</div>'
        f"<footer>{_tags('p', shell.after())}</footer>"
    )


def _table(shell: Shell, article: list[str]) -> str:
    """A layout of tables, as pages had before style sheets; the article in one cell among seven."""
    cells = "".join(
        f"<td><a href='/{index}'>{html.escape(name)}</a></td>" for index, name in enumerate(shell.pieces["navigation"])
    )
    return (
        f"<table><tr>{cells}</tr></table><table><tr><td width=120><ul>{_links(shell.pick('related', 8))}</ul></td>"
        f"<td><font size=3>{_tags('p', shell.before())}{_tags('p', article)}</font></td>"
        f"<td>{_tags('p', [shell.places(9), *shell.pick('lures', 3)])}</td></tr></table>"
        f"<table><tr><td>{_tags('p', shell.after())}</td></tr></table>"
    )


def _scripts(shell: Shell, article: list[str]) -> str:
    """Scripts with text in them, a hidden block stuffed with keywords, a banner, and headings that are lures."""
    stuffed = json.dumps({"hot": shell.pick("lures", 4), "html": f"<p>{shell.one('hidden')}</p>"}, ensure_ascii=False)
    return (
        f"<script>var state = {stuffed}; document.write('<div>' + state.hot[0] + '<\\/div>');</script>"
        f'<div style="display:none">{shell.one("hidden")} {shell.one("hidden")} {shell.one("hidden")}</div>'
        f"<noscript>{_tags('p', shell.pick('hotlines', 2))}</noscript>"
        f"{_tags('h2', shell.pick('lures', 3))}{_tags('div', shell.before())}<div id='w1'>{_tags('p', article)}</div>"
        f"<div id='w2'><h3>{shell.pieces['related_title']}</h3><ul>{_links(shell.pick('related', 8))}</ul></div>"
        f'<div id="consent">{_tags("p", [shell.one("cookie")])}</div>{_tags("div", shell.after())}'
    )


_TEMPLATES: dict[str, Callable[[Shell, list[str]], str]] = {
    "paragraphs": _paragraphs, "soup": _soup, "lines": _lines, "blog": _blog, "table": _table, "scripts": _scripts,
}  # fmt: skip


@functools.cache
def made_pages() -> tuple[MadePage, ...]:
    """All made pages, in the order of made/pages.toml."""
    folder = resources.files("ninthsky.data") / "made"
    shells = tomllib.loads((folder / "shells.toml").read_text("utf-8"))
    pages = []
    for block in tomllib.loads((folder / "pages.toml").read_text("utf-8"))["page"]:
        name, language = block["name"], block["language"]
        article = (folder / "articles" / f"{block['article']}.txt").read_text("utf-8").strip() if "article" in block else ""
        shell = Shell(name, shells[language])
        body = _TEMPLATES[block["template"]](shell, article.splitlines())
        encoding = block["encoding"]
        page = (
            f'<!DOCTYPE html>\n<html lang="{language}"><head><meta charset="{encoding}">'
            f"<title>{html.escape(shell.stem)}</title>"
            f'<meta name="generator" content="made for Ninthsky\'s demo"></head><body>\n{body}\n</body></html>\n'
        )
        pages.append(MadePage(name, language, article, encoding, page.encode(encoding, "xmlcharrefreplace")))
    return tuple(pages)


def source() -> Source:
    """The made pages as a source named `made`; paths are NAME.html."""
    by_path = {f"{page.name}.html": page.html for page in made_pages()}

    def read(chosen: list[str]) -> Iterator[Raw]:
        return (Raw(path, by_path[path]) for path in chosen)

    return Source("made", tuple(Entry(path, path) for path in by_path), read, made=True)


def true_article(path: str) -> str | None:
    """The true article of a made page, empty for a shell; None when no made page has this path."""
    return next((page.article for page in made_pages() if f"{page.name}.html" == path), None)
