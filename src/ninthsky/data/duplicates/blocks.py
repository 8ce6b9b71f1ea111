"""Blocks that stand on many pages of a site, or of the corpus: shells, footers, notices. Counted over documents that are kept.

A block is a line of a document's text. Copies of one article share all their blocks, but they are gone as duplicates when
blocks are counted, so what is repeated then is repeated beside different texts.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import xxhash
from numba import njit, uint64
from numpy.typing import NDArray

from ninthsky.data.duplicates.normal import mix, room, tables, tokens
from ninthsky.data.duplicates.runs import Shards
from ninthsky.data.rules.judge import buffers

Array = NDArray[Any]

LONG = 12  # tokens from which a block says something of its own: a few of them are too many, whatever the site's size
ANYWHERE = 0  # the site of a block that the whole corpus repeats
REPEATED = np.dtype([("key", "<u8"), ("site", "<u8"), ("pages", "<i8"), ("limit", "<i8")])


class Lines(NamedTuple):
    """Lines of texts, those of text n being [first[n], first[n + 1]). Key 0: no letter or digit; odd: `LONG` tokens or more."""

    keys: Array
    first: Array


def site_of(source: str, path: str) -> str:
    """The host of a page's address, or the source where it has none."""
    return (urlsplit(path).hostname or source) if "://" in path else source


def site_key(site: str) -> int:
    """64 bits, never ANYWHERE."""
    return xxhash.xxh3_64_intdigest(site.encode("utf-8", "replace")) | 1


def lines(texts: Sequence[str]) -> Lines:
    """Keys of the lines of texts."""
    cut = [text.split("\n") for text in texts]
    data, offsets = buffers([line for part in cut for line in part])
    first = np.concatenate([[0], np.cumsum([len(part) for part in cut])]).astype(np.int64)
    return Lines(_keys(data, offsets, *tables()), first)


def repeated(
    shards: Shards, alive: Array, sizes: tuple[Array, Array], pages: int, share: float, part: int, parts: int
) -> Array:
    """REPEATED blocks of one partition of the keys, by key and site, among documents that `alive` has; `sizes` by `site_sizes`.

    A block goes that stands on more pages of a site than the larger of `pages` and `share` of the site's pages; one of `LONG`
    tokens or more, than `pages`. So does one that stands on more than `share` of the corpus' pages.
    """
    keys, documents, records = shards.merged("blocks", part, parts)
    held = alive[documents]
    keys, sites = keys[held], records["site"][held]
    everywhere = np.array([ANYWHERE], np.uint64), np.array([alive.sum()])
    found = [
        _over(keys, sites, sizes, pages, share, pages),
        _over(keys, np.zeros_like(sites), everywhere, pages, share, None),
    ]
    return np.sort(np.concatenate(found), order=("key", "site"))


def _over(keys: Array, sites: Array, sizes: tuple[Array, Array], pages: int, share: float, long: int | None) -> Array:
    """REPEATED of what stands on too many pages of a site; `long` is the limit of blocks of `LONG` tokens if they have one."""
    order = np.lexsort((sites, keys))
    keys, sites = keys[order], sites[order]
    starts = np.flatnonzero((np.diff(keys, prepend=keys[:1] + np.uint64(1)) != 0) | (np.diff(sites, prepend=sites[:1]) != 0))
    counts = np.diff(np.append(starts, len(keys)))
    many = counts > pages
    key, site, counts = keys[starts][many], sites[starts][many], counts[many]
    limit = np.maximum(np.ceil(share * sizes[1][np.searchsorted(sizes[0], site)]).astype(np.int64), pages)
    if long is not None:
        limit[key & np.uint64(1) == 1] = long
    over = counts > limit
    rows = np.empty(int(over.sum()), REPEATED)
    rows["key"], rows["site"], rows["pages"], rows["limit"] = key[over], site[over], counts[over], limit[over]
    return rows


def site_sizes(shards: Shards, alive: Array) -> tuple[Array, Array]:
    """Sites, sorted, and how many documents each has that are alive."""
    sites, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for shard in range(len(shards.folders)):
        rows = shards.rows(shard)
        more, many = np.unique(rows["site"][alive[shards.base[shard] : shards.base[shard + 1]]], return_counts=True)
        both, places = np.unique(np.concatenate([sites, more]), return_inverse=True)
        sites, counts = both, np.bincount(places, np.concatenate([counts, many]), len(both)).astype(np.int64)
    return sites, counts


@njit(cache=True)
def _keys(data, offsets, ascii_, points, sequences):
    longest = 0
    for i in range(len(offsets) - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    found, nowhere = np.empty(room(longest), np.uint64), np.empty((0, 2), np.int64)
    out = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(offsets) - 1):
        count = tokens(data, offsets[i], offsets[i + 1], ascii_, points, sequences, found, nowhere)
        h = uint64(count)
        for k in range(count):
            h = mix(h ^ found[k]) + uint64(0x9E3779B97F4A7C15)
        h = max((h >> uint64(1)) << uint64(1), uint64(2)) | uint64(count >= LONG)
        out[i] = h if count else uint64(0)
    return out
