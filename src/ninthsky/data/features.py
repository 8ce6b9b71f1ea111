"""Figures of a page's blocks: what each looks like, what stands around it, and where in the page it is.

`data.counts` counts in the blocks' texts; here the counts become figures, in one kernel whose cost does not depend on Python.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from ninthsky.data import counts, markup
from ninthsky.data.blocks import HINT_BITS, TAG_BITS, Page
from ninthsky.data.markup import BLOCK_NAMES
from ninthsky.data.spam import PHONE

Array = npt.NDArray[Any]

_HAN = re.compile(r"[\u3400-\u9fff]{2}")
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
_AT = {name: index for index, name in enumerate(NAMES)}
_OWN_COLUMN = np.array([_AT.get(f"tag_{name}", -1) for name in BLOCK_NAMES])
_SHIFT_COLUMNS = np.array([_AT[name] for name in _SHIFTED])
_SHIFT_BY = np.array(_SHIFTS)
_HINT_START, _INSIDE_START, _PAGE_START = (
    _AT[name] for name in (f"hint_{HINT_NAMES[0]}", f"inside_{TAG_NAMES[0]}", PAGE_NAMES[0])
)
_SHIFT_START, _DECAY_START = _AT[f"{_SHIFTED[0]}{_SHIFTS[0]:+d}"], _AT["prose_before"]
_HINT_COUNT, _INSIDE_COUNT = len(HINT_NAMES), len(TAG_NAMES)
(
    _UNITS, _CHARS, _LINK_DENSITY, _LINKS, _IS_LINK, _END_DENSITY, _ENDS, _COMMAS, _DIGITS, _UPPER, _CJK, _STOP, _OTHER,
    _WORD_LENGTH, _LINE, _REPEATED, _PREFIX, _BOILERPLATE, _LURE, _PHONE, _PLACES, _NAMES, _OVERLAP, _IS_TITLE, _POSITION,
    _POSITION_CHARS, _FROM_START, _FROM_END, _AFTER_H1, _PROSE, _IN_TOP, _RELATION, _MASS, _GRAND_MASS, _PARENT_UNITS,
    _PARENT_BLOCKS, _PARENT_LINKS, _GRAND_LINKS,
) = range(len(BASE_NAMES))  # fmt: skip
_DECAY = 0.7  # of what lies before a block, the nearest weighing most
_REACH = (1.0, 0.8, 0.4, 0.2, 0.1)  # how much of a block's prose counts for its container, the one around it ...


@njit(cache=True)
def _units(rows):
    """Length of each block in words; a CJK character counts .6 of a word (about what segmenters give)."""
    out = np.empty(len(rows))
    for n in range(len(rows)):
        row = rows[n]
        latin, cjk = row[counts.LETTER] + row[counts.UPPER], row[counts.CJK] + row[counts.STOP]
        # Words are counted by the spaces between them where a block has Latin letters at all.
        words = row[counts.SPACE] + 1.0 if latin + row[counts.DIGIT] > 0 else 0.0
        out[n] = words * (0.5 if cjk > latin else 1.0) + 0.6 * cjk
    return out


@njit(cache=True)
def _texts(rows, blocks, unit, repeated, prefixes, phones, overlap, out):
    """Figures of each block by itself and its place, into out; returns its prose."""
    n_blocks = len(rows)
    prose = np.empty(n_blocks)
    total = max(unit.sum(), 1.0)
    headline = -1
    before = 0.0
    for n in range(n_blocks):
        row, block, x = rows[n], blocks[n], out[n]
        length = float(row[counts.CHARACTERS])
        latin, cjk = float(row[counts.LETTER] + row[counts.UPPER]), float(row[counts.CJK] + row[counts.STOP])
        words = max(unit[n], 1.0)
        density = min(float(block[markup.LINK_CHARS]), length) / length
        ends = float(row[counts.ENDS])
        stop = row[counts.STOP] / max(cjk, 1.0) if cjk > latin else row[counts.STOP_WORDS] / words
        prose[n] = min(unit[n], 120.0) * (1 - density) * (1.0 if ends else 0.3) * min(stop * 5, 1.0)
        x[_UNITS], x[_CHARS], x[_LINK_DENSITY] = np.log1p(unit[n]), np.log1p(length), density
        x[_LINKS], x[_IS_LINK] = np.log1p(block[markup.LINKS]), density > 0.9
        x[_END_DENSITY], x[_ENDS] = min(row[counts.END] / words * 5, 3.0), ends
        x[_COMMAS], x[_DIGITS] = min(row[counts.COMMA] / words * 5, 3.0), row[counts.DIGIT] / length
        x[_UPPER], x[_CJK], x[_STOP] = row[counts.UPPER] / max(latin, 1.0), cjk / length, stop
        x[_OTHER] = row[counts.OTHER] / length
        x[_WORD_LENGTH] = min(latin / (row[counts.SPACE] + 1.0), 20.0) / 10
        x[_LINE], x[_REPEATED], x[_PREFIX] = block[markup.LINE], min(repeated[n] - 1, 3), min(prefixes[n] - 1, 6) / 2
        x[_BOILERPLATE] = min(row[counts.BOILERPLATE] * 100 / (length + 30), 3.0)
        x[_LURE] = min(row[counts.LURES] * 100 / (length + 30), 3.0)
        x[_PHONE], x[_PLACES], x[_NAMES] = phones[n], row[counts.PLACES] / length, row[counts.NAMES] / length
        x[_OVERLAP], x[_IS_TITLE] = overlap[n], overlap[n] > 0.7
        x[_POSITION], x[_POSITION_CHARS] = n / n_blocks, before / total
        x[_FROM_START], x[_FROM_END] = np.log1p(before), np.log1p(max(total - before - unit[n], 0.0))
        before += unit[n]
        x[_PROSE] = prose[n] / 30
        if headline < 0 and block[markup.TAG] == _H1:
            headline = n
        x[_AFTER_H1] = headline >= 0
        own = _OWN_COLUMN[block[markup.TAG]]
        if own >= 0:
            x[own] = 1
        for bit in range(_HINT_COUNT):
            x[_HINT_START + bit] = block[markup.HINTS] >> bit & 1
        for bit in range(_INSIDE_COUNT):
            x[_INSIDE_START + bit] = block[markup.TAGS] >> bit & 1
    if headline < 0:
        out[:, _AFTER_H1] = 0.5
    return prose


@njit(cache=True)
def _containers(blocks, parent, unit, prose, out):
    """Figures of the elements around a block; returns the share of the page's prose under the best of them.

    As in Arc90's Readability, a block's prose counts for its container, half for the next, less for those further out.
    """
    size = len(parent)
    mass, direct, links, near, near_links = np.zeros((5, size))
    count = np.zeros(size, np.int64)
    for n in range(len(blocks)):
        around = blocks[n, markup.CONTAINER]
        linked = unit[n] * out[n, _LINK_DENSITY]
        direct[around] += unit[n]
        links[around] += linked
        count[around] += 1
        near[parent[around]] += unit[n]
        near_links[parent[around]] += linked
        for weight in _REACH:
            mass[around] += prose[n] * weight
            around = parent[around]
    best = np.argmax(mass)
    # Containers are numbered in reading order, so what lies under the best one is a run of numbers.
    last = best
    while last + 1 < size and best <= parent[last + 1] <= last:
        last += 1
    most, under = max(mass[best], 1e-9), 0.0
    for n in range(len(blocks)):
        inner = blocks[n, markup.CONTAINER]
        around, x = parent[inner], out[n]
        inside = best <= inner <= last
        under += prose[n] if inside else 0.0
        x[_IN_TOP], x[_RELATION] = inside, 1.0 if inside else -1.0 if inner < best else -0.5
        x[_MASS], x[_GRAND_MASS] = mass[inner] / most, mass[around] / most
        x[_PARENT_UNITS], x[_PARENT_BLOCKS] = np.log1p(direct[inner]), np.log1p(count[inner])
        x[_PARENT_LINKS] = links[inner] / max(direct[inner], 1.0)
        x[_GRAND_LINKS] = near_links[around] / max(near[around], 1.0)
    return under / max(prose.sum(), 1e-9)


@njit(cache=True)
def _page(rows, unit, prose, top_share, out):
    """Figures of the page, of the neighbours, and of all that lies before and behind, into every block's row."""
    n_blocks = len(rows)
    total = max(unit.sum(), 1.0)
    length = cjk = linked = 0.0
    paragraphs = 0
    for n in range(n_blocks):
        length += rows[n, counts.CHARACTERS]
        cjk += rows[n, counts.CJK] + rows[n, counts.STOP]
        linked += unit[n] * out[n, _LINK_DENSITY]
        paragraphs += unit[n] > 20 and rows[n, counts.ENDS] > 0
    whole = (
        np.log1p(total), np.log1p(n_blocks), linked / total, cjk / length, prose.sum() / total, top_share, np.log1p(paragraphs),
    )  # fmt: skip
    held_prose = held_shell = 0.0
    for n in range(n_blocks):
        x = out[n]
        for k in range(len(whole)):
            x[_PAGE_START + k] = whole[k]
        column = _SHIFT_START
        for shift in _SHIFT_BY:
            near = n + shift
            for name in _SHIFT_COLUMNS:
                x[column] = out[near, name] if 0 <= near < n_blocks else 0.0
                column += 1
        x[_DECAY_START], x[_DECAY_START + 2] = np.log1p(held_prose), np.log1p(held_shell)
        held_prose, held_shell = _DECAY * (held_prose + prose[n]), _DECAY * (held_shell + _shell(unit[n], x))
    held_prose = held_shell = 0.0
    for n in range(n_blocks - 1, -1, -1):
        x = out[n]
        x[_DECAY_START + 1], x[_DECAY_START + 3] = np.log1p(held_prose), np.log1p(held_shell)
        held_prose, held_shell = _DECAY * (held_prose + prose[n]), _DECAY * (held_shell + _shell(unit[n], x))


@njit(cache=True)
def _shell(unit, x):
    return unit * min(x[_LINK_DENSITY] + min(x[_LURE] + x[_PLACES], 1.0), 1.0)


_H1 = BLOCK_NAMES.index("h1")
_COLUMNS = len(NAMES)


def units(page: Page) -> Array:
    """Length of each block in words; a CJK character counts .6 of a word. Float [blocks]."""
    return figures(page)[1]


def features(page: Page) -> Array:
    """Figures of every block, float32 [blocks, len(NAMES)]."""
    return figures(page)[0]


def figures(page: Page) -> tuple[Array, Array]:
    """(`features`, `units`) of a page."""
    out = np.zeros((len(page), _COLUMNS), np.float32)
    if not len(page):
        return out, np.zeros(0)
    bounds = page.rows[:, : markup.END + 1]
    rows, hashes = counts.count(page.data, bounds)
    unit: Array = _units(rows)
    phones = np.zeros(len(page))
    for index in np.flatnonzero((rows[:, counts.DIGIT] > 4) & (rows[:, counts.CHARACTERS] < counts.SHORT)).tolist():
        phones[index] = min(len(PHONE.findall(page.text(index))), 3)
    title, cjk = _title(page.title)
    overlap = counts.title_overlaps(page.data, bounds, rows[:, counts.CHARACTERS], title, cjk)
    repeated, prefixes = _times(hashes[:, 0]), _times(hashes[:, 1])
    prose = _texts(rows, page.rows, unit, repeated, prefixes, phones, overlap, out)
    _page(rows, unit, prose, _containers(page.rows, page.parent, unit, prose, out), out)
    return out, unit


def _times(values: Array) -> Array:
    """How often each value occurs among them."""
    _, which, times = np.unique(values, return_inverse=True, return_counts=True)
    return times[which]


def _title(title: str) -> tuple[Array, bool]:
    """A page's title without the site's name behind a dash: its longest part, and whether it is read by pairs of characters."""
    longest = max(_SITE.split(title), key=len, default="")
    return np.frombuffer(longest.encode("utf-8", "replace"), np.uint8), bool(_HAN.search(title))
