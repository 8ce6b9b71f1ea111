"""An HTML page as blocks: runs of text between block-level tags, each with what the tags around it say.

The tree is built by resiliparse and read back in its serialised form, which is well formed by construction: one kernel
(`data.markup`) then walks its bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from ninthsky.data.lookup import Table
from ninthsky.data.markup import ATTRIBUTE_TABLE, BLOCK_NAMES, END, START, TAG_BITS, TAG_TABLE, walk

Array = NDArray[Any]

_SPACE = re.compile(r"[\s\u00a0\u200b\ufeff]+")
# What browsers read under these names knows more characters than Python's codec of the name.
_SUPERSETS = {"gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs"}
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]+)", re.I)
# What class, id and role names say, by group; matched against whole words of the name (camelCase and hyphens split).
_HINTS = """
navigation: nav navbar navigation menu breadcrumb breadcrumbs pager pagination paging toolbar topbar docnav toc tabs
foot: footer foot copyright legal colophon bottom
side: sidebar side aside related recommend recommended recommendation recommendations more widget widgets rail trending popular
side: hot
chrome: cookie cookies consent gdpr popup modal overlay banner advert adverts advertisement ad ads sponsor sponsored promo
chrome: promotion newsletter subscribe subscription signup login signin cta paywall
share: share sharing social follow like likes tools print
comment: comment comments respond reply replies disqus discussion
head: header masthead logo top
meta: meta byline author date time timestamp published info tags tag tagged category categories label labels source editor
content: content article post entry story body main text detail details prose page para paragraph
title: title headline heading subtitle
list: list items item grid card cards carousel slider gallery thumb thumbnail teaser
"""
HINTS: dict[str, frozenset[str]] = {}
for _line in _HINTS.split("\n"):
    if _line:
        _group, _, _words = _line.partition(": ")
        HINTS[_group] = HINTS.get(_group, frozenset()) | frozenset(_words.split())
HINT_BITS = {group: 1 << index for index, group in enumerate(HINTS)}
_WORD_BITS: dict[str, int] = {}
for _group, _group_words in HINTS.items():
    for _word in _group_words:
        _WORD_BITS[_word] = _WORD_BITS.get(_word, 0) | HINT_BITS[_group]
_HINT_TABLE = Table(_WORD_BITS.items())


@dataclass(slots=True, frozen=True)
class Block:
    """A run of text of a page. Lengths are in characters; `line` says that it follows the block before after a mere <br>."""

    text: str
    tag: str
    link_chars: int
    links: int
    container: int
    hints: int  # HINT_BITS of all open elements around it
    tags: int  # TAG_BITS of the same
    line: bool


@dataclass(frozen=True)
class Page:
    """A page's blocks and containers, as columns. Container 0 is the body; `parent[i]` is the container around container i.

    `data` uint8 [bytes] holds the texts end to end, `rows` int32 [blocks, markup.COLUMNS] where each lies and what was
    around it.
    """

    title: str
    data: Array
    rows: Array
    parent: Array
    depth: int  # of elements nested in one another, the most

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, index: int) -> str:
        """Of one block."""
        row = self.rows[index]
        return self.data[row[START] : row[END]].tobytes().decode()

    def texts(self, first: int, last: int) -> list[str]:
        """Of the blocks [first, last)."""
        return [self.text(index) for index in range(first, last)]

    @property
    def characters(self) -> int:
        """Of all texts."""
        return int(np.count_nonzero((self.data & 0xC0) != 0x80))

    @cached_property
    def blocks(self) -> list[Block]:
        """For those who look at a page block by block."""
        rows = zip(self.texts(0, len(self)), self.rows.tolist(), strict=True)
        return [
            Block(text, BLOCK_NAMES[tag], min(chars, len(text)), links, container, hints, tags, bool(line))
            for text, (_, _, tag, chars, links, container, hints, tags, line) in rows
        ]


def decode(data: bytes) -> tuple[str, str]:
    """The page's text and the encoding it was read in: the declared one where it decodes the bytes, else the detected one.

    A byte order mark wins over both, as in browsers.
    """
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        name = "utf-8" if data[0] == 0xEF else "utf-16"
        return data.decode(name, errors="replace"), name
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        # A page cut in the middle of a character is still UTF-8.
        if error.start >= len(data) - 4:
            return data.decode("utf-8", errors="replace"), "utf-8"
    declared = _CHARSET.search(data[:4096])
    # Only encodings that browsers know: Python knows others (UTF-7, escapes), which make of bytes what no page may hold.
    known = map_encoding_to_html5(declared[1].decode("ascii"), False) if declared is not None else None
    if known and not known.startswith("utf-16"):  # a declaration that can be read is not in UTF-16
        name = _SUPERSETS.get(known, known)
        text = data.decode(name, errors="replace")
        # A declaration that is a lie shows: many bytes have no character in it.
        if text.count("\ufffd") <= len(text) // 100:
            return text, name
    name = detect_encoding(data) or "utf-8"
    return bytes_to_str(data, name, errors="replace"), name


def parse(text: str) -> Page:
    """The blocks of a page, in reading order. Text outside the body is left out, but for the title."""
    tree = HTMLTree.parse(text)
    body = tree.body.html if tree.body is not None else ""
    data = np.frombuffer(body.encode("utf-8", "replace"), np.uint8)
    found, rows, parent, depth = walk(
        data, body.count("<"), TAG_TABLE.keys, TAG_TABLE.values, ATTRIBUTE_TABLE.keys, ATTRIBUTE_TABLE.values,
        _HINT_TABLE.keys, _HINT_TABLE.values,
    )  # fmt: skip
    return Page(_SPACE.sub(" ", tree.title or "").strip(), found, rows, parent, depth)


__all__ = ["HINTS", "HINT_BITS", "TAG_BITS", "Block", "Page", "decode", "parse"]
