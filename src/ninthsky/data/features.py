"""Figures of a page's blocks: what each looks like, what stands around it, and where in the page it is.

All counts are taken in one pass over the code points of the page, so that the cost does not depend on the number of figures.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ninthsky.data.blocks import HINT_BITS, TAG_BITS, Page
from ninthsky.data.spam import LURE, LURE_CJK, PHONE, name_list_share, place_share

Array = npt.NDArray[Any]

_STOP_WORDS = """
the be to of and a in that have i it for not on with he as you do at this but his by from they we say her she or an will my one
all would there their what so up out if about who get which go me when make can like no just him know take into your some could
them see other than then now its also after how our was were is are been has had
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_STOP_CHARACTERS = "的了是在和有我他这不为也就都而及与着或一个没们你她它对从到把被让之其所以但因并等将还又很更最能会可要说"
_TERMINAL = '.!?…。！？；;：:"”’』」'
_LONG_COMMA = ",，、;；"

_LETTER, _UPPER, _DIGIT, _CJK, _SPACE, _STOP, _END, _COMMA, _OTHER = range(9)
_CLASSES = np.full(0x10000, _OTHER, np.uint8)
_CLASSES[0x41:0x5B] = _UPPER
_CLASSES[0x61:0x7B] = _LETTER
_CLASSES[0xC0:0x250] = _LETTER
_CLASSES[0x370:0x2000] = _LETTER
_CLASSES[0x30:0x3A] = _CLASSES[0xFF10:0xFF1A] = _DIGIT
for _low, _high in ((0x3040, 0x3100), (0x3400, 0xA000), (0xAC00, 0xD7B0), (0xF900, 0xFB00)):
    _CLASSES[_low:_high] = _CJK
for _code in (0x20, 0x09, 0x0A, 0x0D, 0xA0, 0x3000):
    _CLASSES[_code] = _SPACE
for _text, _class in ((".!?…。！？", _END), (_LONG_COMMA, _COMMA), (_STOP_CHARACTERS, _STOP)):
    for _character in _text:
        _CLASSES[ord(_character)] = _class

_BOILERPLATE = re.compile(
    "copyright|©|all rights reserved|cookie|privacy policy|terms of (?:use|service)|sign (?:up|in)|log ?in|subscribe|newsletter"
    "|read more|learn more|view all|see all|load more|click here|related (?:articles|posts|stories)|you (?:may|might) also"
    "|share (?:this|on)|follow us|add to cart|leave a (?:reply|comment)|skip to|back to top|advertisement|sponsored|filed under"
    "|posted (?:in|by)|next (?:post|page)|previous (?:post|page)"
)
_BOILERPLATE_CJK = re.compile(
    "版权所有|备案|icp备|登录|注册|首页|上一[篇页条]|下一[篇页条]|返回|分享|收藏|打印|关闭|举报|评论|点击|阅读|浏览|来源|责任编辑"
    "|责编|编辑[:：]|推荐|相关|热[门点]|排行|更多|客服|联系我们|关于我们|关注|订阅|扫[码一描]|二维码|免责|声明|广告|更新时间"
    "|发布时间|导航|下载|客户端"
)
_PAIR = re.compile(r"(?=([\u3400-\u9fff]{2}))")
_SITE = re.compile(r"\s*[-|_–—·»]\s*")

HINT_NAMES = tuple(HINT_BITS)
TAG_NAMES = tuple(TAG_BITS)
_OWN_TAGS = ("p", "h1", "h2", "h3", "h4", "li", "td", "div", "pre", "span", "body", "section", "blockquote", "dd")

_BASE_NAMES = """
units_log chars_log link_density links_log is_link end_density ends_sentence comma_density digit_share upper_share cjk_share
stop_share other_share word_length line repeated_text repeated_prefix boilerplate lure phone place_share name_list_share
title_overlap is_title position position_chars from_start_log from_end_log after_h1 prose
in_top top_relation parent_mass grand_mass parent_units_log parent_blocks_log parent_links grand_links
"""
BASE_NAMES = tuple(_BASE_NAMES.split())
PAGE_NAMES = (
    "page_units_log",
    "page_blocks_log",
    "page_links",
    "page_cjk",
    "page_prose_share",
    "page_top_share",
    "page_paragraphs_log",
)
_SHIFTED = (
    "units_log",
    "link_density",
    "ends_sentence",
    "stop_share",
    "prose",
    "boilerplate",
    "lure",
    "repeated_text",
    "in_top",
    "place_share",
    "parent_mass",
)
_SHIFTS = (-3, -2, -1, 1, 2, 3)
NAMES = (
    *BASE_NAMES,
    *(f"tag_{name}" for name in _OWN_TAGS),
    *(f"hint_{name}" for name in HINT_NAMES),
    *(f"inside_{name}" for name in TAG_NAMES),
    *PAGE_NAMES,
    *(f"{name}{shift:+d}" for shift in _SHIFTS for name in _SHIFTED),
    "prose_before", "prose_after", "shell_before", "shell_after",
)  # fmt: skip
_BASE_INDEX = {name: index for index, name in enumerate(BASE_NAMES)}
_SHIFT_COLUMNS = [_BASE_INDEX[name] for name in _SHIFTED]
_HINT_SHIFTS = np.arange(len(HINT_NAMES), dtype=np.int64)
_TAG_SHIFTS = np.arange(len(TAG_NAMES), dtype=np.int64)
_OWN_TAG_INDEX = {name: index for index, name in enumerate(_OWN_TAGS)}


def units(page: Page) -> Array:
    """Length of each block in words; a CJK character counts .6 of a word (about what segmenters give). Float [blocks]."""
    return _counts(page)[0]


def _counts(page: Page) -> tuple[Array, Array, Array]:
    texts = [block.text for block in page.blocks]
    lengths = np.array([len(text) for text in texts], np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "replace"), np.uint32)
    classes = _CLASSES[np.minimum(codes, 0xFFFF)]
    owner = np.repeat(np.arange(len(texts)), lengths)
    table = np.bincount(owner * 9 + classes, minlength=9 * len(texts)).reshape(-1, 9).astype(np.float64)
    latin = table[:, _LETTER] + table[:, _UPPER]
    cjk = table[:, _CJK] + table[:, _STOP]
    # Words are counted by the spaces between them where a block has Latin letters at all.
    words = np.where(latin + table[:, _DIGIT] > 0, table[:, _SPACE] + 1, 0.0) * np.where(cjk > latin, 0.5, 1.0)
    return words + 0.6 * cjk, lengths.astype(np.float64), table


def features(page: Page) -> Array:
    """Figures of every block, float32 [blocks, len(NAMES)]."""
    blocks = page.blocks
    n = len(blocks)
    if n == 0:
        return np.zeros((0, len(NAMES)), np.float32)
    unit, length, table = _counts(page)
    latin = table[:, _LETTER] + table[:, _UPPER]
    cjk = table[:, _CJK] + table[:, _STOP]
    texts = [block.text for block in blocks]
    lower = [text.lower() for text in texts]
    same = Counter(texts)
    prefixes = Counter(_prefix(text) for text in texts)
    link_density = np.array([block.link_chars for block in blocks]) / length
    links = np.array([block.links for block in blocks], np.float64)
    ends = np.array([text.rstrip()[-1:] in _TERMINAL for text in texts], np.float64)
    english = np.array(
        [_stop_words(text) if few < size else 0 for text, few, size in zip(lower, cjk, latin, strict=True)], np.float64
    )
    stop = np.where(cjk > latin, table[:, _STOP] / np.maximum(cjk, 1), english / np.maximum(unit, 1))
    prose = (
        np.minimum(unit, 120.0) * (1 - np.minimum(link_density, 1)) * np.where(ends > 0, 1.0, 0.3) * np.minimum(stop * 5, 1.0)
    )

    base = np.zeros((n, len(BASE_NAMES)))

    def put(name: str, values: Any) -> None:
        base[:, _BASE_INDEX[name]] = values

    before = np.cumsum(unit) - unit
    total = max(float(unit.sum()), 1.0)
    headline = next((i for i, block in enumerate(blocks) if block.tag == "h1"), None)
    cjk_title = bool(_PAIR.search(page.title))
    title = _title(page.title.lower(), cjk_title)
    overlap = np.array([_overlap(title, text, cjk_title) if len(text) < 200 else 0.0 for text in lower])
    put("units_log", np.log1p(unit))
    put("chars_log", np.log1p(length))
    put("link_density", link_density)
    put("links_log", np.log1p(links))
    put("is_link", link_density > 0.9)
    put("end_density", np.minimum(table[:, _END] / np.maximum(unit, 1) * 5, 3))
    put("ends_sentence", ends)
    put("comma_density", np.minimum(table[:, _COMMA] / np.maximum(unit, 1) * 5, 3))
    put("digit_share", table[:, _DIGIT] / length)
    put("upper_share", table[:, _UPPER] / np.maximum(latin, 1))
    put("cjk_share", cjk / length)
    put("stop_share", stop)
    put("other_share", table[:, _OTHER] / length)
    put("word_length", np.minimum(latin / np.maximum(table[:, _SPACE] + 1, 1), 20) / 10)
    put("line", [block.line for block in blocks])
    put("repeated_text", [min(same[text] - 1, 3) for text in texts])
    put("repeated_prefix", [min(prefixes[_prefix(text)] - 1, 6) / 2 for text in texts])
    has_cjk, digits = (cjk > 0).tolist(), table[:, _DIGIT].tolist()
    signs = [text if len(text) <= 400 else "" for text in lower]  # a word in a long text says nothing
    boilerplate, lure = _matches(_BOILERPLATE, signs), _matches(LURE, signs)
    if any(has_cjk):
        boilerplate, lure = boilerplate + _matches(_BOILERPLATE_CJK, signs), lure + _matches(LURE_CJK, signs)
    put("boilerplate", np.minimum(boilerplate * 100 / (length + 30), 3.0))
    put("lure", np.minimum(lure * 100 / (length + 30), 3.0))
    put(
        "phone",
        [
            min(len(PHONE.findall(text)), 3) if count > 4 and len(text) < 400 else 0
            for text, count in zip(texts, digits, strict=True)
        ],
    )
    put("place_share", [place_share(text) if some else 0.0 for text, some in zip(texts, has_cjk, strict=True)])
    put("name_list_share", [name_list_share(text) for text in texts])
    put("title_overlap", overlap)
    put("is_title", overlap > 0.7)
    put("position", np.arange(n) / n)
    put("position_chars", before / total)
    put("from_start_log", np.log1p(before))
    put("from_end_log", np.log1p(total - before - unit))
    put("after_h1", 0.5 if headline is None else (np.arange(n) >= headline))
    put("prose", prose / 30)
    top_share = _containers(page, base, unit, link_density, prose)

    own = np.zeros((n, len(_OWN_TAGS)))
    for index, block in enumerate(blocks):
        column = _OWN_TAG_INDEX.get(block.tag)
        if column is not None:
            own[index, column] = 1
    hints = (np.array([block.hints for block in blocks])[:, None] >> _HINT_SHIFTS) & 1
    inside = (np.array([block.tags for block in blocks])[:, None] >> _TAG_SHIFTS) & 1
    whole = np.array([
        np.log1p(total), np.log1p(n), float((unit * link_density).sum()) / total, float(cjk.sum() / length.sum()),
        float(prose.sum()) / total, top_share, np.log1p(float(((unit > 20) & (ends > 0)).sum())),
    ])  # fmt: skip
    padded = np.zeros((n + 6, len(_SHIFTED)))
    padded[3:-3] = base[:, _SHIFT_COLUMNS]
    shifted = [padded[3 + shift : 3 + shift + n] for shift in _SHIFTS]
    shell = unit * np.minimum(
        link_density + np.minimum(base[:, _BASE_INDEX["lure"]] + base[:, _BASE_INDEX["place_share"]], 1), 1
    )
    decayed = np.stack([_decay(prose), _decay(prose[::-1])[::-1], _decay(shell), _decay(shell[::-1])[::-1]], 1)
    parts = [base, own, hints, inside, np.broadcast_to(whole, (n, len(whole))), *shifted, np.log1p(decayed)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _containers(page: Page, base: Array, unit: Array, link_density: Array, prose: Array) -> float:
    """Figures of the elements around a block; returns the share of the page's prose under the best of them.

    As in Arc90's Readability, a block's prose counts for its container, half for the next, less for those further out.
    """
    parent = np.array(page.parent)
    inner = np.array([block.container for block in page.blocks])
    size = len(parent)
    chain = [inner]
    for _ in range(4):
        chain.append(parent[chain[-1]])
    mass = np.zeros(size)
    for around, weight in zip(chain, (1.0, 0.8, 0.4, 0.2, 0.1), strict=True):
        mass += np.bincount(around, prose * weight, size)
    top = int(mass.argmax())
    # Containers are numbered in reading order, so what lies under `top` is a run of numbers.
    last = top
    for container in range(top + 1, size):
        if not top <= parent[container] <= last:
            break
        last = container
    in_top = (inner >= top) & (inner <= last)
    best = max(float(mass[top]), 1e-9)
    direct = np.bincount(inner, unit, size)
    direct_links = np.bincount(inner, unit * link_density, size)
    count = np.bincount(inner, minlength=size)
    second = np.bincount(chain[1], unit, size)
    second_links = np.bincount(chain[1], unit * link_density, size)
    base[:, _BASE_INDEX["in_top"]] = in_top
    base[:, _BASE_INDEX["top_relation"]] = np.where(in_top, 1.0, np.where(inner < top, -1.0, -0.5))
    base[:, _BASE_INDEX["parent_mass"]] = mass[inner] / best
    base[:, _BASE_INDEX["grand_mass"]] = mass[chain[1]] / best
    base[:, _BASE_INDEX["parent_units_log"]] = np.log1p(direct[inner])
    base[:, _BASE_INDEX["parent_blocks_log"]] = np.log1p(count[inner])
    base[:, _BASE_INDEX["parent_links"]] = direct_links[inner] / np.maximum(direct[inner], 1)
    base[:, _BASE_INDEX["grand_links"]] = second_links[chain[1]] / np.maximum(second[chain[1]], 1)
    return float(prose[in_top].sum()) / max(float(prose.sum()), 1e-9)


def _decay(values: Array, keep: float = 0.7) -> Array:
    """What lies before each block, the nearest weighing most: out[i] = keep x (out[i-1] + values[i-1])."""
    out = np.empty(len(values))
    held = 0.0
    for index, value in enumerate(values.tolist()):
        out[index] = held
        held = keep * (held + value)
    return out


def _prefix(text: str) -> str:
    return text[:6] if "\u3400" <= text[:1] <= "\u9fff" else text[:12]


def _stop_words(text: str) -> int:
    return sum(map(STOP_WORDS.__contains__, text.split()))


def _matches(pattern: re.Pattern[str], texts: list[str]) -> Array:
    """How often a pattern, which matches no line break, occurs in each text: one scan over all of them. Int [texts]."""
    starts = [match.start() for match in pattern.finditer("\n".join(texts))]
    ends = np.cumsum(np.array([len(text) + 1 for text in texts]))
    return np.bincount(np.searchsorted(ends, np.array(starts, np.int64), "right"), minlength=len(texts))


def _pieces(text: str, cjk: bool) -> set[str]:
    """Words of a title, or pairs of CJK characters."""
    if cjk:
        return set(_PAIR.findall(text))
    return {word for word in text.split() if len(word) > 2}


def _title(title: str, cjk: bool) -> set[str]:
    """A page's title without the site's name behind a dash: its longest part."""
    return _pieces(max(_SITE.split(title), key=len, default=""), cjk)


def _overlap(title: set[str], text: str, cjk: bool) -> float:
    if not title:
        return 0.0
    own = _pieces(text, cjk)
    return len(title & own) / max(len(title), len(own), 1)
