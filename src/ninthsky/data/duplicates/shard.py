"""The map: what one shard of texts leaves behind for the reduce."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ninthsky.data.duplicates import runs
from ninthsky.data.duplicates.blocks import lines, site_key
from ninthsky.data.duplicates.minhash import BANDS, sketch


def rank(purity: float, words: float) -> int:
    """The smallest of equal or near texts stays: the one that is most in its own language, by hundredths, then the longest.

    Of equal ranks it is the first document of the corpus. The purest is the original, not the page half translated from it.
    """
    return (100 - min(max(round(purity * 100), 0), 100)) << 32 | (0xFFFFFFFF - min(max(int(words), 0), 0xFFFFFFFF))


def leave(folder: Path, rows: Sequence[int], texts: Sequence[str], ranks: Sequence[int], sites: Sequence[str]) -> None:
    """Writes `folder` for texts that are rows `rows` of their shard, ascending. `sites` name whose shells they may share."""
    found, blocks = sketch(texts), lines(texts)
    count = len(texts)
    rank_, site = np.array(ranks, np.uint64), np.array([site_key(name) for name in sites], np.uint64)
    kept = np.zeros(count, runs.ROWS)
    kept["row"], kept["rank"], kept["site"] = rows, rank_, site
    kept["first"], kept["last"] = found.first[:-1], found.first[1:]
    number = np.arange(count)
    whole = np.zeros(count, runs.TEXTS)
    whole["row"], whole["second"], whole["rank"] = number, found.hashes[:, 1], rank_
    band = np.zeros(count * BANDS, runs.BANDS)
    band["row"] = np.repeat(number, BANDS)
    # A document counts once for each block, however often it has it.
    owner, keys = np.repeat(number, np.diff(blocks.first)), blocks.keys
    order = np.lexsort((keys, owner))
    owner, keys = owner[order], keys[order]
    once = (keys != 0) & ((np.diff(owner, prepend=-1) != 0) | (np.diff(keys, prepend=np.uint64(0)) != 0))
    block = np.zeros(int(once.sum()), runs.BLOCKS)
    block["row"], block["site"] = owner[once], site[owner[once]]
    runs.write(
        folder,
        kept,
        found.sets,
        {"texts": (found.hashes[:, 0], whole), "bands": (found.bands.ravel(), band), "blocks": (keys[once], block)},
    )
