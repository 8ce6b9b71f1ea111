"""Texts that share n-grams with evaluation sets: what they share, of which set, and where.

As for GPT-3 (Brown et al. 2020, appendix C: 13 words; items that are shorter count whole, from 8 words on), over tokens as
`duplicates.normal` has them. In Chinese, Japanese and Korean, whose tokens are single characters, n is larger: 20 by
default, about as much as 13 English words say (own threshold).
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
from numba import njit, uint64
from numpy.typing import NDArray

from ninthsky.data.duplicates.normal import mix, room, tables, tokens
from ninthsky.data.formats import files_of, suffix
from ninthsky.data.rules.judge import buffers
from ninthsky.errors import UserError

Array = NDArray[Any]

SHORTEST = (8, 13)  # words, characters that a whole item has at least to count
_WIDE = ("zh", "ja", "ko")
_BASE = uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Overlap:
    """What a text shares with evaluation sets. `spans` are characters [first, last) of it, merged; `item` names the first."""

    share: float  # of the text's tokens
    spans: tuple[tuple[int, int], ...]
    item: str


class Evaluation:
    """Evaluation sets as hashes of n-grams: `keys` uint64 sorted, `owners` the item of each, `items` their names.

    `used` bool [2, longest + 1] says which lengths there are of words, and of characters.
    """

    def __init__(self, keys: Array, owners: Array, used: Array, items: Sequence[str]) -> None:
        self._keys, self._owners, self._used, self._items = keys, owners, used, list(items)

    @classmethod
    def of(cls, texts: Sequence[tuple[str, str]], words: int, characters: int) -> Evaluation:
        """Of (name, text) pairs: their runs of so many words, and of so many characters for languages without spaces.

        An item that is shorter is one run, if it has `SHORTEST` tokens.
        """
        keys, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        used = np.zeros((2, max(words, characters) + 1), bool)
        for item, (_, text) in enumerate(texts):
            found, _ = _tokens_of(text)
            for kind, n in enumerate((words, characters)):
                length = min(n, len(found))
                if length >= min(SHORTEST[kind], n):
                    used[kind, length] = True
                    keys.append(_windows(found, length, kind))
                    owners.append(np.full(len(keys[-1]), item))
        unique, first = np.unique(np.concatenate(keys), return_index=True)
        return cls(unique, np.concatenate(owners)[first], used, [name for name, _ in texts])

    def save(self, path: Path) -> None:
        """Whole or not at all; without pickle."""
        draft = path.with_name(f"{path.name}.draft.npz")
        items = np.frombuffer(json.dumps(self._items).encode(), np.uint8)
        np.savez(draft, keys=self._keys, owners=self._owners, used=self._used, items=items)
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["keys"], stored["owners"], stored["used"], json.loads(stored["items"].tobytes()))

    def overlap(self, text: str, language: str) -> Overlap | None:
        """What the text shares with any item; None where nothing."""
        kind = int(language in _WIDE)
        found, places = _tokens_of(text)
        edges = np.zeros(len(found) + 1, np.int64)  # where a match begins, less where one ends
        first: tuple[int, int] | None = None
        for length in np.flatnonzero(self._used[kind]).tolist():
            windows = _windows(found, length, kind)
            at = np.minimum(np.searchsorted(self._keys, windows), len(self._keys) - 1)
            hits = np.flatnonzero(self._keys[at] == windows)
            if len(hits):
                first = min(first or (len(found), 0), (int(hits[0]), int(self._owners[at[hits[0]]])))
                np.add.at(edges, hits, 1)
                np.add.at(edges, hits + length, -1)
        if first is None:
            return None
        covered = np.cumsum(edges)[:-1] > 0
        bounds = np.flatnonzero(np.diff(np.concatenate([[False], covered, [False]]).astype(np.int8)))
        raw = text.encode()
        spans = []
        for start, end in bounds.reshape(-1, 2).tolist():
            begin = len(raw[: places[start, 0]].decode())
            spans.append((begin, begin + len(raw[places[start, 0] : places[end - 1, 1]].decode())))
        return Overlap(float(covered.mean()), tuple(spans), self._items[first[1]])


def read_sets(paths: Sequence[str]) -> list[tuple[str, str]]:
    """(name, text) of every item of evaluation sets: rows of JSON lines or Parquet with all their strings, lines of texts.

    Raises UserError N9-DATA-001 where a path cannot be read, N9-DATA-006 where it holds no text.
    """
    found: list[tuple[str, str]] = []
    for path in paths:
        before = len(found)
        for url, name in files_of(path):
            found += [(f"{name}#{number}", text) for number, text in enumerate(_items(url), 1) if text.strip()]
        if len(found) == before:
            raise UserError(
                "N9-DATA-006", "no text in the evaluation set", path, "JSON lines, Parquet or text: an item a row or line"
            )
    return found


def _items(url: str) -> Iterator[str]:
    kind = suffix(url)
    try:
        if kind == ".parquet":
            with fsspec.open(url, "rb") as stream:
                for batch in pq.ParquetFile(stream).iter_batches():
                    yield from ("\n".join(_strings(row)) for row in batch.to_pylist())
            return
        with fsspec.open(url, "rt", encoding="utf-8", errors="replace", compression="infer") as stream:
            for line in stream:
                yield "\n".join(_strings(json.loads(line))) if kind in (".jsonl", ".ndjson") and line.strip() else line
    except (OSError, ValueError) as error:
        raise UserError(
            "N9-DATA-001", f"cannot be read: {error}", url, "one JSON object a line, Parquet, or plain text"
        ) from error


def _strings(value: Any) -> Iterator[str]:
    """All strings of a record, in its order: question, choices, answer."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _tokens_of(text: str) -> tuple[Array, Array]:
    """Hashes of a text's tokens, and the bytes [first, last) of each."""
    data, offsets = buffers([text])
    size = room(int(offsets[1] - offsets[0]))
    found, places = np.empty(size, np.uint64), np.empty((size, 2), np.int64)
    count = tokens(data, offsets[0], offsets[1], *tables(), found, places)
    return found[:count], places[:count]


@njit(cache=True)
def _windows(found, n, kind):
    """Hashes of all runs of n tokens; n and kind (0 for words, 1 for characters) are hashed with them."""
    out = np.empty(max(len(found) - n + 1, 0), np.uint64)
    power = uint64(1)
    for _ in range(n):
        power *= _BASE
    h = uint64(0)
    for i in range(len(found)):
        h = h * _BASE + found[i]
        if i >= n:
            h -= power * found[i - n]
        if i >= n - 1:
            out[i - n + 1] = mix(h ^ uint64(2 * n + kind))
    return out
