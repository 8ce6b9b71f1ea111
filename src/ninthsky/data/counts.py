"""What is counted in every run of text of a page, in one pass over its bytes: classes of characters, words, phrases, lists.

Blocks of a page and lines of a text are counted alike; `data.features` and `data.spam` make figures of it.
"""

# mypy: disable-error-code="no-untyped-def,arg-type"
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ninthsky.data.lookup import Table, find
from ninthsky.data.phrases import Phrases
from ninthsky.data.rules.utf8 import code_point, hash_of, space

Array = NDArray[Any]

_STOP_WORDS = """
the be to of and a in that have i it for not on with he as you do at this but his by from they we say her she or an will my one
all would there their what so up out if about who get which go me when make can like no just him know take into your some could
them see other than then now its also after how our was were is are been has had
"""
_STOP_CHARACTERS = "的了是在和有我他这不为也就都而及与着或一个没们你她它对从到把被让之其所以但因并等将还又很更最能会可要说"
_TERMINAL = '.!?…。！？；;：:"”’』」'
_PLACE_ENDS = "省市区县州旗镇乡盟"  # and 街道

LETTER, UPPER, DIGIT, CJK, SPACE, STOP, END, COMMA, OTHER = range(9)
_CLASSES = np.full(0x10000, OTHER, np.uint8)
_CLASSES[0x41:0x5B] = UPPER
_CLASSES[0x61:0x7B] = LETTER
_CLASSES[0xC0:0x250] = LETTER
_CLASSES[0x370:0x2000] = LETTER
_CLASSES[0x30:0x3A] = _CLASSES[0xFF10:0xFF1A] = DIGIT
for _low, _high in ((0x3040, 0x3100), (0x3400, 0xA000), (0xAC00, 0xD7B0), (0xF900, 0xFB00)):
    _CLASSES[_low:_high] = CJK
for _code in (0x20, 0x09, 0x0A, 0x0D, 0xA0, 0x3000):
    _CLASSES[_code] = SPACE
for _text, _class in ((".!?…。！？", END), (",，、;；", COMMA), (_STOP_CHARACTERS, STOP)):
    for _character in _text:
        _CLASSES[ord(_character)] = _class
# Of the same code points: those that end a sentence, a place's name, part two names of a Chinese list, or of a Latin one.
_TERMINAL_BIT, _PLACE, _PLACE_GAP, _NAME_GAP = 1, 2, 4, 8
_MARKS = np.zeros(0x10000, np.uint8)
for _text, _bit in ((_TERMINAL, _TERMINAL_BIT), (_PLACE_ENDS, _PLACE), ("、，,;；|", _PLACE_GAP), (",;|·•/", _NAME_GAP)):
    for _character in _text:
        _MARKS[ord(_character)] |= _bit

# Where a list of alternatives was a pattern, it is written out. Lower-cased text is searched; only short runs are.
_LURES = """
hotline|toll-free|toll free|tollfree|call now|call us|call today|24/7|24x7|24 hour|free quote|free download|free trial
click here|click now|you won't believe|you won’t believe|secret|shocking|best deal|cheap|discount|near me|near you|buy now
order now|watch online|watch free|full hd|full movie|limited time
热线|咨询|24小时|点击|免费|秘密|揭秘|惊人|震惊|必看|高清|在线观看|最新|福利|真相|优惠|报修|维修|上门|服务电话|服务中心|官方|领取|立即|限时
"""
_BOILERPLATE = """
copyright|©|all rights reserved|cookie|privacy policy|terms of use|terms of service|sign up|sign in|login|log in|subscribe
newsletter|read more|learn more|view all|see all|load more|click here|related articles|related posts|related stories
you may also|you might also|share this|share on|follow us|add to cart|leave a reply|leave a comment|skip to|back to top
advertisement|sponsored|filed under|posted in|posted by|next post|next page|previous post|previous page
版权所有|备案|icp备|登录|注册|首页|上一篇|上一页|上一条|下一篇|下一页|下一条|返回|分享|收藏|打印|关闭|举报|评论|点击|阅读|浏览|来源
责任编辑|责编|编辑:|编辑：|推荐|相关|热门|热点|排行|更多|客服|联系我们|关于我们|关注|订阅|扫码|扫一|扫描|二维码|免责|声明|广告|更新时间
发布时间|导航|下载|客户端
"""
_LURE_PHRASES = Phrases(_LURES.strip().replace("\n", "|").split("|"))
_BOILERPLATE_PHRASES = Phrases(_BOILERPLATE.strip().replace("\n", "|").split("|"))
_STOP_TABLE = Table((word, 1) for word in _STOP_WORDS.split())
_OF_TABLE = Table((word, 1) for word in ("of", "de", "on", "upon"))  # small words within a name
SHORT = 400  # characters of a run in which a phrase says something
_TITLE = 200  # characters of a run that may be the title

# Columns of the counts; the first nine are the classes.
CHARACTERS, STOP_WORDS, LURES, BOILERPLATE, PLACES, NAMES, ENDS = range(9, 16)
COLUMNS = 16


@njit(cache=True)
def _phrases(data, first, last, moves, ends):
    """How many phrases are in data[first:last], none counted twice."""
    state = count = 0
    for i in range(first, last):
        c = data[i]
        state = moves[state, c | np.uint8(32) if 65 <= c <= 90 else c]
        if ends[state]:
            count += 1
            state = 0
    return count


@njit(cache=True)
def _word_hash(data, first, last, word):
    """Of a word in lower case; `word` is scratch."""
    length = min(last - first, len(word))
    for k in range(length):
        c = data[first + k]
        word[k] = c | np.uint8(32) if 65 <= c <= 90 else c
    return hash_of(word, 0, length)


@njit(cache=True)
def _class_counts(data, first, last, classes, marks, row):
    """Classes, length, and whether a sentence ends, into a row."""
    i = first
    mark = np.uint8(0)
    while i < last:
        point = min(code_point(data, i), 0xFFFF)
        class_ = classes[point]
        row[class_] += 1
        row[CHARACTERS] += 1
        if class_ != SPACE:
            mark = marks[point]
        i += 1 if point < 0x80 else 2 if point < 0x800 else 3 if data[i] < 0xF0 else 4
    row[ENDS] = mark & _TERMINAL_BIT


@njit(cache=True)
def _stop_words(data, first, last, keys, values, word):
    count = 0
    i = first
    while i < last:
        begin = i
        while i < last and data[i] > 32:
            i += 1
        if 0 < i - begin <= 8:
            count += find(keys, values, _word_hash(data, begin, i, word), 0)
        i += 1
    return count


@njit(cache=True)
def _places(data, first, last, marks):
    """Characters of a run in Chinese place names of a list: 2 to 15 of them, an ending, then a comma, a space or the end."""
    found = run = characters = 0
    gaps = False
    previous = before = np.int64(0)
    i = first
    while i <= last:
        point, width = np.int64(32), 1
        if i < last:
            point = min(code_point(data, i), 0xFFFF)
            width = 1 if point < 0x80 else 2 if point < 0x800 else 3 if data[i] < 0xF0 else 4
            characters += 1
        i += width
        if 0x4E00 <= point <= 0x9FFF:
            run += 1
            before, previous = previous, point
            continue
        blank = point <= 32 or point == 0x3000 or point == 0xA0
        gap = marks[point] & _PLACE_GAP != 0
        gaps = gaps or point == 0x3001 or point == 0xFF0C or point == 0x2C
        named = previous and (marks[previous] & _PLACE or (before == 0x8857 and previous == 0x9053))
        if (blank or gap) and run >= 2 and named:
            found += min(run, 15)
        run = 0
        before = previous = np.int64(0)
    return found if gaps or characters <= 12 else 0


@njit(cache=True)
def _names(data, first, last, marks, keys, values, word):
    """Characters of a run in capitalised names of a list: one to four words, then one of , ; | · • / or the end."""
    found = gaps = words = characters = 0
    fits = True
    begin = i = first
    while i <= last:
        point, width = np.int64(0), 1
        if i < last:
            point = min(code_point(data, i), 0xFFFF)
            width = 1 if point < 0x80 else 2 if point < 0x800 else 3 if data[i] < 0xF0 else 4
        gap = i == last or marks[point] & _NAME_GAP != 0
        if gap or point <= 32:
            if i > begin:
                c = data[begin]
                words += 1
                capital = 65 <= c <= 90 or (words > 1 and c == 40)
                small = words > 1 and i - begin <= 4 and find(keys, values, hash_of(data, begin, i), 0) == 1
                fits = fits and (capital or small)
            begin = i + width
        elif point < 0x80 and not (
            48 <= point <= 57
            or 65 <= point <= 90
            or 97 <= point <= 122
            or 39 <= point <= 41
            or point == 45
            or point == 46
            or point == 95
        ):
            fits = False
        if gap:
            gaps += i < last
            if fits and 1 <= words <= 4:
                found += characters + (gaps > 1)
            words = characters = 0
            fits = True
        else:
            characters += 1
        i += width
    return found if gaps >= 4 else 0


@njit(cache=True)
def _count(
    data, bounds, classes, marks, stop_keys, stop_values, of_keys, of_values, lures, lure_ends, plates, plate_ends, spam
):
    rows = np.zeros((len(bounds), COLUMNS), np.int64)
    hashes = np.empty((len(bounds), 2), np.uint64)
    word = np.empty(8, np.uint8)
    for n in range(len(bounds)):
        first, last = bounds[n, 0], bounds[n, 1]
        row = rows[n]
        _class_counts(data, first, last, classes, marks, row)
        cjk, latin = row[CJK] + row[STOP], row[LETTER] + row[UPPER]
        if cjk < latin:
            row[STOP_WORDS] = _stop_words(data, first, last, stop_keys, stop_values, word)
        if row[CHARACTERS] <= SHORT:
            row[LURES] = _phrases(data, first, last, lures, lure_ends)
            if not spam:
                row[BOILERPLATE] = _phrases(data, first, last, plates, plate_ends)
        if cjk:
            row[PLACES] = _places(data, first, last, marks)
        if row[UPPER]:
            row[NAMES] = _names(data, first, last, marks, of_keys, of_values, word)
        hashes[n, 0] = hash_of(data, first, last)
        # A beginning is six Chinese characters, or twelve others.
        wide = last > first and 0x3400 <= code_point(data, first) <= 0x9FFF
        stop, left = first, 6 if wide else 12
        while stop < last and left:
            stop += 1
            left -= stop == last or data[stop] & 0xC0 != 0x80
        hashes[n, 1] = hash_of(data, first, stop)
    return rows, hashes


def count(data: Array, bounds: Array, spam: bool = False) -> tuple[Array, Array]:
    """(counts int64 [N, COLUMNS], hashes uint64 [N, 2] of whole runs and of their beginnings) of runs data[bounds[n]].

    `spam`: only what `data.spam` asks.
    """
    return _count(
        data, bounds, _CLASSES, _MARKS, _STOP_TABLE.keys, _STOP_TABLE.values, _OF_TABLE.keys, _OF_TABLE.values,
        _LURE_PHRASES.moves, _LURE_PHRASES.ends, _BOILERPLATE_PHRASES.moves, _BOILERPLATE_PHRASES.ends, spam,
    )  # fmt: skip


# -- the title ----------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _pieces(data, first, last, cjk, out, word):
    """Distinct words of more than two characters, or pairs of Chinese characters, as hashes into `out`; their number."""
    count = 0
    i = first
    previous = np.int64(0)
    while i < last:
        key = np.uint64(0)
        if cjk:
            point = code_point(data, i)
            i += 1 if point < 0x80 else 2 if point < 0x800 else 3 if point < 0x10000 else 4
            if not 0x3400 <= point <= 0x9FFF:
                point = np.int64(0)
            if point and previous:
                key = np.uint64(previous << 16 | point)
            previous = point
        else:
            width = space(data, i, last)
            begin = i
            while i < last and width == 0:
                i += 1
                width = space(data, i, last) if i < last else 1
            if i - begin > 2:
                key = _word_hash(data, begin, i, word)
            i += max(width, 1)
        if key == np.uint64(0) or count == len(out):
            continue
        known = False
        for k in range(count):
            if out[k] == key:
                known = True
                break
        if not known:
            out[count] = key
            count += 1
    return count


@njit(cache=True)
def title_overlaps(data, bounds, characters, title, cjk):
    """Of each short run: words (pairs of characters) that it shares with the title, of the larger of both; float64 [N]."""
    out = np.zeros(len(bounds))
    scratch, word = np.empty(256, np.uint64), np.empty(64, np.uint8)
    own = np.empty(256, np.uint64)
    count = _pieces(title, 0, len(title), cjk, own, word)
    if count == 0:
        return out
    for n in range(len(bounds)):
        if characters[n] < _TITLE:
            mine = _pieces(data, bounds[n, 0], bounds[n, 1], cjk, scratch, word)
            shared = 0
            for a in range(mine):
                for b in range(count):
                    if scratch[a] == own[b]:
                        shared += 1
                        break
            out[n] = shared / max(count, mine, 1)
    return out
