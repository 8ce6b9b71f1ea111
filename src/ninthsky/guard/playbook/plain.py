"""A log's text as the patterns and words read it: without what a terminal, a progress bar or a wrapped line adds, in English.

Drivers, libc and people write in other languages too: a Chinese driver's log, `Permiso denegado`. Their terms are put into the
English of the manuals (`glossary.toml`), so that no pattern and no phrase has to be written twice.
"""

from __future__ import annotations

import functools
import re
import tomllib
from importlib import resources

_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\ufeff]"
)
_DRAWN = re.compile(r"[\u2500-\u259f]+")  # frames of a traceback, bars of progress
_BLANKS = re.compile(r"[ \t\xa0\u3000]+")
_EDGES = re.compile(r" ?(?:\r\n?|\n) ?")
_WIDE = str.maketrans("\uff1a\uff0c\u3002\uff08\uff09\uff1b\uff01\u3001", ":,.();!,")  # full-width marks


def plain(text: str) -> str:
    """The text in one form. Lines stay lines, runs of blanks are one blank."""
    text = _DRAWN.sub(" ", _CONTROL.sub("", text)).translate(_WIDE)
    if not text.isascii():
        pattern, english = _glossary()
        text = pattern.sub(lambda found: f" {english[found[0].lower()]} ", text)
    return _EDGES.sub("\n", _BLANKS.sub(" ", text))


@functools.cache
def _glossary() -> tuple[re.Pattern[str], dict[str, str]]:
    """(what to look for, longest term first; term -> English)."""
    tree = tomllib.loads(resources.files(__package__).joinpath("glossary.toml").read_text("utf-8"))
    english = {term: told for told, terms in tree.items() for term in terms}
    return re.compile("|".join(map(re.escape, sorted(english, key=len, reverse=True))), re.IGNORECASE), english
