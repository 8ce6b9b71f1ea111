"""An HTML page as blocks: runs of text between block-level tags, each with what the tags around it say.

The tree is built by resiliparse and read back in its serialised form, which is well formed by construction: one regular
expression then walks it. Nothing here recurses, so a page nested 100,000 deep costs time and no stack.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

from resiliparse.parse.encoding import bytes_to_str, detect_encoding
from resiliparse.parse.html import HTMLTree

_ATTRIBUTES = r"((?:[^>\"]++|\"[^\"]*+\")*+)"
_RAW = "script|style|noscript|template|iframe|select|datalist|object|canvas|svg|math|textarea|audio|video"
# A comment, an element whose content is no text of the page, or a tag. Tags are taken whole, so that `<script>` inside an
# attribute's value, which serialised HTML does not escape, begins nothing.
_TAG = re.compile(rf"<!--.*?-->|<({_RAW})\b(?:[^>\"]++|\"[^\"]*+\")*+>.*?</\1>|<(/?[a-zA-Z][^\s/>]*+){_ATTRIBUTES}>", re.S)
_NAMES = re.compile(r"(?:^|\s)(?:class|id|role)=\"([^\"]*)\"")
_HIDDEN = re.compile(r"(?:^|\s)hidden(?:[\s=]|$)|display:\s*none|aria-hidden=\"true\"", re.I)
_SPACE = re.compile(r"[\s\u00a0\u200b\ufeff]+")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]+)", re.I)

_VOID = "area base br col embed hr img input link meta param source track wbr"
VOID = frozenset(_VOID.split())
# Tags that end a run of text. Every other tag is inline and only passed over.
_BLOCK = """
address article aside blockquote body button caption center dd details dialog dir div dl dt fieldset figcaption figure footer
form frameset h1 h2 h3 h4 h5 h6 header html legend li main menu nav ol p pre section summary table tbody td tfoot th thead tr ul
"""
BLOCK = frozenset(_BLOCK.split())
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
TAG_BITS = {
    name: 1 << index
    for index, name in enumerate(
        (
            "nav",
            "footer",
            "aside",
            "header",
            "form",
            "main",
            "article",
            "table",
            "li",
            "figure",
            "blockquote",
            "pre",
            "dl",
            "button",
            "hidden",
        )
    )
}
_TAG_GROUP = {**TAG_BITS, "figcaption": TAG_BITS["figure"], "dd": TAG_BITS["dl"], "dt": TAG_BITS["dl"], "td": TAG_BITS["table"]}


@dataclass(slots=True)
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


@dataclass(slots=True)
class Page:
    """A page's blocks and containers. Container 0 is the body; `parent[i]` is the container around container i."""

    title: str = ""
    blocks: list[Block] = field(default_factory=list)
    parent: list[int] = field(default_factory=lambda: [0])
    depth: int = 0  # of elements nested in one another, the most


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
    if declared is not None:
        name = declared[1].decode("ascii").lower()
        name = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252"}.get(name, name)
        try:
            text = data.decode(name, errors="replace")
        except LookupError:
            text = "\ufffd" * len(data)
        # A declaration that is a lie shows: many bytes have no character in it.
        if text.count("\ufffd") <= len(text) // 100:
            return text, name
    name = detect_encoding(data) or "utf-8"
    return bytes_to_str(data, name, errors="replace"), name


def parse(text: str) -> Page:
    """The blocks of a page, in reading order. Text outside the body is left out, but for the title."""
    tree = HTMLTree.parse(text)
    page = Page(title=_SPACE.sub(" ", tree.title or "").strip())
    if tree.body is None:
        return page
    pieces = _TAG.split(tree.body.html)
    blocks, parent = page.blocks, page.parent
    stack: list[tuple[str, int, int, int]] = []  # tag, container, hints, tags
    tag, container, hints, tags = "body", 0, 0, 0
    run: list[str] = []
    link_chars = links = depth = deepest = 0
    in_link = False
    line = False
    for index in range(0, len(pieces), 4):
        piece = pieces[index]
        if piece:
            run.append(piece)
            if in_link:
                link_chars += len(piece.strip())
        if index + 1 == len(pieces):
            name, attributes = "/body", ""
        else:
            name, attributes = pieces[index + 2], pieces[index + 3]
            if name is None:  # a comment, or content that is no text
                run.append(" " if pieces[index + 1] else "")
                continue
        closing = name[0] == "/"
        if closing:
            depth -= 1
            name = name[1:]
        elif name not in VOID:
            depth += 1
            if depth > deepest:
                deepest = depth
        if name == "a":
            in_link = not closing
            links += in_link
            continue
        if name != "br" and name not in BLOCK:
            if name == "img" or name == "input":
                run.append(" ")
            continue
        if run:
            joined = "".join(run)
            if "&" in joined:
                joined = html.unescape(joined)
            words = joined.strip("\n") if tags & TAG_BITS["pre"] else _SPACE.sub(" ", joined).strip()
            if words and not words.isspace():
                blocks.append(Block(words, tag, min(link_chars, len(words)), links, container, hints, tags, line))
                line = False
            run.clear()
            link_chars = links = 0
        if name == "br":
            line = True
            continue
        line = False
        if closing:
            # The serialised form closes what it opened; the test for the name costs little and survives if it does not.
            while stack:
                opened = tag
                tag, container, hints, tags = stack.pop()
                if opened == name:
                    break
            continue
        stack.append((tag, container, hints, tags))
        parent.append(container)
        container = len(parent) - 1
        tag = name
        tags |= _TAG_GROUP.get(name, 0)
        if attributes:
            if "hidden" in attributes or "none" in attributes:
                tags |= TAG_BITS["hidden"] if _HIDDEN.search(attributes) else 0
            for names in _NAMES.findall(attributes):
                hints |= _hint(names)
    page.depth = deepest
    return page


_HINT_MEMORY: dict[str, int] = {}


def _hint(names: str) -> int:
    known = _HINT_MEMORY.get(names)
    if known is None:
        known = 0
        for word in _WORDS.findall(names[:200]):
            known |= _WORD_BITS.get(word.lower(), 0)
        if len(_HINT_MEMORY) < 100_000:
            _HINT_MEMORY[names] = known
    return known
