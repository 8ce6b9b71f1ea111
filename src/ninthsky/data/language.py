"""Language of a text by its script first and, for scripts that many languages share, by resiliparse's profiles. No download."""

from __future__ import annotations

import re

from resiliparse.parse.lang import detect_fast

UNKNOWN = "unknown"
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_HANGUL = re.compile(r"[\uac00-\ud7af]")
_CJK_RUNS = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_FIRST_CHARACTERS = 6_000  # accuracy was the same as on whole documents from 1,000 characters on
_SHORTEST = 60  # characters of a paragraph whose language can be told
_WORST_RANK = 1_200  # resiliparse: values above are usually false


def detect(text: str) -> tuple[str, float]:
    """(ISO 639-1 code or `unknown`, share of the text in the CJK scripts, counted in words).

    A text of several scripts is of the one with the most words, a Chinese character counting .6 of a word: a translated page
    that quotes many commands stays Chinese.
    """
    sample = text[:_FIRST_CHARACTERS]
    han, kana, hangul = (len(pattern.findall(sample)) for pattern in (_HAN, _KANA, _HANGUL))
    rest = _CJK_RUNS.sub(" ", sample)
    words = len(_WORD.findall(rest))
    cjk = 0.6 * (han + kana) + 0.4 * hangul
    share = cjk / (cjk + words) if cjk + words else 0.0
    if share > 0.5:
        if hangul > han + kana:
            return "ko", share
        # Japanese prose is at least a third kana; a name in kana does not make a Chinese page Japanese.
        return ("ja" if kana > 0.15 * (han + kana) else "zh"), share
    if words < 3:
        return UNKNOWN, share
    language, rank = detect_fast(rest, cutoff=_WORST_RANK)
    return (language if rank <= _WORST_RANK else UNKNOWN), share


def share(text: str, language: str) -> float:
    """Share of a text, paragraph by paragraph, that is in its language: less in a translation that was not finished.

    Paragraphs too short to tell are not counted; a Chinese character weighs three others. 1 where nothing can be counted.
    """
    whole = own = 0
    for paragraph in text.split("\n"):
        weight = len(paragraph) + 2 * len(_HAN.findall(paragraph))
        if weight >= _SHORTEST:
            whole += weight
            own += weight if detect(paragraph)[0] == language else 0
    return own / whole if whole else 1.0
