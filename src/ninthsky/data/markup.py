"""Serialised HTML to runs of text, in one pass over its bytes.

What comes in was serialised by a parser: tags are closed, values stand in double quotes, and text knows four entities. Nothing
here recurses or looks behind, so a page nested 100,000 deep costs time and no stack, and each byte is read once or twice.
"""

# mypy: disable-error-code="no-untyped-def,assignment"
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ninthsky.data.lookup import Table, find
from ninthsky.data.rules.utf8 import hash_of, space

Array = NDArray[Any]

# Columns of a block: [start, end) of its text, the tag it stands in, characters and links inside <a>, its container, the hints
# and tags of all open elements around it, and whether it follows the block before after a mere <br>.
START, END, TAG, LINK_CHARS, LINKS, CONTAINER, HINTS, TAGS, LINE = range(9)
COLUMNS = 9
_NAMES = (
    "address article aside blockquote body button caption center dd details dialog dir div dl dt fieldset figcaption figure"
)
_MORE = (
    "footer form frameset h1 h2 h3 h4 h5 h6 header html legend li main menu nav ol p pre section summary table tbody td tfoot"
)
# Tags that end a run of text, by the number that TAG holds. Every other tag is inline and only passed over.
BLOCK_NAMES = tuple(f"{_NAMES} {_MORE} th thead tr ul".split())
_VOID_NAMES = "area base col embed hr img input link meta param source track wbr"
# Elements whose content is no text of the page.
_RAW_NAMES = "script style noscript template iframe select datalist object canvas svg math textarea audio video"
_TAG_NAMES = "nav footer aside header form main article table li figure blockquote pre dl button hidden"
TAG_BITS = {name: 1 << index for index, name in enumerate(_TAG_NAMES.split())}
_GROUPS = {**TAG_BITS, "figcaption": TAG_BITS["figure"], "dd": TAG_BITS["dl"], "dt": TAG_BITS["dl"], "td": TAG_BITS["table"]}

_INLINE, _BLOCK, _EMPTY, _SPACED, _SKIPPED, _LINK, _BREAK = range(7)
_CLASS, _HIDDEN, _STYLE, _ARIA = 1, 2, 3, 4
_QUOTE, _LESS, _GREATER, _SLASH, _AMPERSAND, _BANG, _DASH, _EQUALS = b'"<>/&!-='
_BODY, _HIDDEN_BIT, _PRE_BIT = BLOCK_NAMES.index("body"), TAG_BITS["hidden"], TAG_BITS["pre"]


_PLAIN = np.ones(256, np.bool_)  # bytes that can begin no white space, entity or tag
_PLAIN[:33] = _PLAIN[[0x26, 0x3C, 0xC2, 0xE1, 0xE2, 0xE3, 0xEF]] = False

_KINDS: dict[str, int] = {
    "a": _LINK,
    "br": _BREAK,
    **dict.fromkeys(_RAW_NAMES.split(), _SKIPPED),
    **dict.fromkeys(_VOID_NAMES.split(), _EMPTY),
}
_KINDS |= {"img": _SPACED, "input": _SPACED}
# kind, number of the block tag << 4, bits of its group << 12
TAG_TABLE = Table([
    *((name, kind) for name, kind in _KINDS.items()),
    *((name, _BLOCK | number << 4 | _GROUPS.get(name, 0) << 12) for number, name in enumerate(BLOCK_NAMES)),
])  # fmt: skip
ATTRIBUTE_TABLE = Table(
    [("class", _CLASS), ("id", _CLASS), ("role", _CLASS), ("hidden", _HIDDEN), ("style", _STYLE), ("aria-hidden", _ARIA)]
)


@njit(cache=True)
def _lower(c):
    return c | np.uint8(32) if 65 <= c <= 90 else c


@njit(cache=True)
def _hints(data, first, last, keys, values, word):
    """Bits of the words of a class, id or role name: camelCase and whatever is no letter part them. `word` is scratch."""
    found = np.int64(0)
    last = min(last, first + 200)
    i = first
    while i < last:
        c = data[i]
        if not (65 <= c <= 90 or 97 <= c <= 122):
            i += 1
            continue
        begin = i
        while i < last and 65 <= data[i] <= 90:
            i += 1
        capitals = i - begin
        if i < last and 97 <= data[i] <= 122:
            if capitals > 1:  # of "ADBox" the first word is "AD"
                i -= 1
            else:
                while i < last and 97 <= data[i] <= 122:
                    i += 1
        length = i - begin
        if length <= len(word):
            for k in range(length):
                word[k] = _lower(data[begin + k])
            found |= find(keys, values, hash_of(word, 0, length), 0)
    return found


@njit(cache=True)
def _holds(data, first, last, wanted):
    """Whether data[first:last], lower-cased and without white space, holds `wanted`."""
    at = 0
    for i in range(first, last):
        c = _lower(data[i])
        if c <= 32:
            continue
        if c != wanted[at]:
            at = 0
        if c == wanted[at]:
            at += 1
            if at == len(wanted):
                return True
    return False


@njit(cache=True)
def _has_word(data, first, last, wanted):
    """Whether one of the words in data[first:last], parted by white space, is `wanted`."""
    at = 0  # bytes of it matched, -1 within another word
    for i in range(first, last + 1):
        if i == last or data[i] <= 32:
            if at == len(wanted):
                return True
            at = 0
        elif at >= 0:
            at = at + 1 if at < len(wanted) and data[i] == wanted[at] else -1
    return False


_HIDDEN_WORD = np.frombuffer(b"hidden", np.uint8)
_DISPLAY_NONE = np.frombuffer(b"display:none", np.uint8)
_TRUE = np.frombuffer(b"true", np.uint8)


@njit(cache=True)
def _tag_end(data, i, end):
    """Where the tag ends (its '>'), from inside it."""
    while i < end and data[i] != _GREATER:
        if data[i] == _QUOTE:
            i += 1
            while i < end and data[i] != _QUOTE:
                i += 1
        i += 1
    return min(i, end)


@njit(cache=True)
def _attributes(data, i, end, attribute_keys, attribute_values, hint_keys, hint_values, word):
    """(hints, 1 where the element is hidden) from the attributes in data[i:end]."""
    hints, hidden = np.int64(0), np.int64(0)
    while i < end:
        while i < end and data[i] <= 32:
            i += 1
        begin = i
        while i < end and data[i] > 32 and data[i] != _EQUALS:
            i += 1
        which = find(attribute_keys, attribute_values, hash_of(data, begin, i), 0)
        if which == _HIDDEN:
            hidden = 1
        if i < end and data[i] == _EQUALS:
            i += 1
            if i < end and data[i] == _QUOTE:
                i += 1
            first = i
            while i < end and data[i] != _QUOTE:
                i += 1
            if which == _CLASS:
                hints |= _hints(data, first, i, hint_keys, hint_values, word)
                hidden |= _has_word(data, first, i, _HIDDEN_WORD)
            elif (which == _STYLE and _holds(data, first, i, _DISPLAY_NONE)) or (
                which == _ARIA and _holds(data, first, i, _TRUE)
            ):
                hidden = 1
            i += 1
        elif begin == i:
            i += 1
    return hints, hidden


@njit(cache=True)
def _element_end(data, i, end, first, length):
    """Where the first closing tag of a name, data[first:first + length], ends; `end` where there is none."""
    while i < end:
        if data[i] == _LESS and i + length + 2 < end and data[i + 1] == _SLASH:
            same = True
            for k in range(length):
                if data[i + 2 + k] != data[first + k]:
                    same = False
                    break
            if same and (data[i + 2 + length] == _GREATER or data[i + 2 + length] <= 32):
                return _tag_end(data, i, end) + 1
        i += 1
    return end


@njit(cache=True)
def _entity(data, i, end):
    """(the byte, bytes it took) of one of the four entities at '&'; (32, 6) stands for a non-breaking space."""
    if i + 3 < end and data[i + 2] == 116 and data[i + 3] == 59:
        if data[i + 1] == 108:
            return 60, 4
        if data[i + 1] == 103:
            return 62, 4
    if i + 4 < end and data[i + 1] == 97 and data[i + 2] == 109 and data[i + 3] == 112 and data[i + 4] == 59:
        return 38, 5
    if (
        i + 5 < end
        and data[i + 1] == 110
        and data[i + 2] == 98
        and data[i + 3] == 115
        and data[i + 4] == 112
        and data[i + 5] == 59
    ):
        return 32, 6
    return 38, 1


@njit(cache=True)
def _blank(data, i, end):
    """Bytes of the white space at i, zero-width spaces and byte order marks among it; 0 where none is."""
    if data[i] == 0xEF:
        return 3 if i + 2 < end and data[i + 1] == 0xBB and data[i + 2] == 0xBF else 0
    if data[i] == 0xE2 and i + 2 < end and data[i + 1] == 0x80 and data[i + 2] == 0x8B:
        return 3
    return space(data, i, end)


@njit(cache=True)
def walk(data, cap, tag_keys, tag_values, attribute_keys, attribute_values, hint_keys, hint_values):
    """(text uint8, blocks int64 [N, COLUMNS], parent int64 [containers], depth) of a serialised body of at most `cap` tags."""
    end = len(data)
    out = np.empty(end + 1, np.uint8)
    blocks = np.empty((cap + 2, COLUMNS), np.int32)
    parent = np.empty(cap + 2, np.int32)
    stack = np.empty((cap + 2, 4), np.int32)
    word = np.empty(40, np.uint8)
    parent[0] = 0
    containers, count, top, at, start = 1, 0, 0, 0, 0
    tag, container, hints, tags = np.int64(_BODY), np.int64(0), np.int64(0), np.int64(0)
    link_chars = links = depth = deepest = 0
    in_link = line = gap = seen = False
    i = 0
    while i <= end:
        kind, closing, number, group, value_start, value_end = _INLINE, False, 0, 0, 0, 0
        if i == end:
            kind, closing, number, i = _BLOCK, True, _BODY, i + 1
        elif data[i] != _LESS:
            if tags & _PRE_BIT:
                c, width = np.int64(data[i]), 1
                if c == _AMPERSAND:
                    c, width = _entity(data, i, end)
                if c == 10 and at == start:  # line breaks before and behind are no part of it
                    gap = True
                    i += width
                    continue
                seen = seen or (c > 32 and _blank(data, i, end) == 0)
                out[at] = np.uint8(c)
                at += 1
                link_chars += in_link and (c & 0xC0) != 0x80
                i += width
                continue
            c = data[i]
            width = 1
            if c == _AMPERSAND:
                byte, width = _entity(data, i, end)
                c = np.uint8(byte)
                if c == 32:
                    gap = True
                    i += width
                    continue
            elif c <= 32 or c >= 0xC2:
                blank = _blank(data, i, end)
                if blank:
                    gap = True
                    i += blank
                    continue
            if gap:
                if at > start:
                    out[at] = 32
                    at += 1
                    link_chars += in_link and link_chars > 0
                gap = False
            out[at] = c
            at += 1
            seen = True
            link_chars += in_link and (c & 0xC0) != 0x80
            i += width
            # Most bytes need no second look: letters, and whatever else is neither blank, '&' nor '<'.
            while i < end and _PLAIN[data[i]]:
                c = data[i]
                out[at] = c
                at += 1
                link_chars += in_link and (c & 0xC0) != 0x80
                i += 1
            continue
        elif i + 3 < end and data[i + 1] == _BANG and data[i + 2] == _DASH and data[i + 3] == _DASH:
            i += 4
            while i < end and not (data[i] == _GREATER and data[i - 1] == _DASH and data[i - 2] == _DASH):
                i += 1
            i += 1
            if i > end:
                i = end
            continue
        else:
            i += 1
            if i < end and data[i] == _SLASH:
                closing = True
                i += 1
            first = i
            while i < end and data[i] > 32 and data[i] != _GREATER and data[i] != _SLASH:
                i += 1
            length = i - first
            value = find(tag_keys, tag_values, hash_of(data, first, i), 0)
            kind, number, group = value & 15, value >> 4 & 255, value >> 12
            value_start = i
            i = _tag_end(data, i, end)
            value_end = i
            if i < end:
                i += 1
            if kind == _SKIPPED:
                if not closing:
                    i = _element_end(data, i, end, first, length)
                    if tags & _PRE_BIT:
                        out[at] = 32
                        at += 1
                    else:
                        gap = True
                continue
        if closing:
            depth -= 1
        elif kind != _EMPTY and kind != _SPACED and kind != _BREAK:
            depth += 1
            deepest = max(deepest, depth)
        if kind == _LINK:
            in_link = not closing
            links += in_link
            continue
        if kind != _BLOCK and kind != _BREAK:
            gap = gap or kind == _SPACED
            continue
        touched = gap or at > start
        while at > start and out[at - 1] == 10:
            at -= 1
        if seen:
            row = blocks[count]
            row[START], row[END], row[TAG] = start, at, tag
            row[LINK_CHARS], row[LINKS], row[CONTAINER] = link_chars, links, container
            row[HINTS], row[TAGS], row[LINE] = hints, tags, line
            count += 1
            line = False
        else:
            at = start
        if touched:
            link_chars = links = 0
        start = at
        gap = seen = False
        if kind == _BREAK:
            line = True
            continue
        line = False
        if closing:
            # The serialised form closes what it opened; the test for the name costs little and survives if it does not.
            while top > 0:
                opened = tag
                top -= 1
                tag, container, hints, tags = stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3]
                if opened == number:
                    break
            continue
        stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3] = tag, container, hints, tags
        top += 1
        parent[containers] = container
        container = np.int64(containers)
        containers += 1
        tag = np.int64(number)
        tags |= group
        if value_start < value_end:
            more, hidden = _attributes(
                data, value_start, value_end, attribute_keys, attribute_values, hint_keys, hint_values, word
            )
            hints |= more
            if hidden:
                tags |= _HIDDEN_BIT
    return out[:at], blocks[:count], parent[:containers], deepest
