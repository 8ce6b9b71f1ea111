"""Pairs of documents whose shingles overlap by at least the threshold, among those that share a band."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ninthsky.data.duplicates.minhash import overlap
from ninthsky.data.duplicates.runs import Shards

Array = NDArray[Any]

EDGES = np.dtype([("one", "<i8"), ("other", "<i8"), ("similarity", "<f4")])
# A crowded bucket is not compared pair by pair: its members are held against the first `LEADERS` of it, and against as many
# of those that were like none of these.
LEADERS = 32
_AT_ONCE = 16_000_000  # shingles that a batch of buckets holds; more only where one bucket alone has more


def edges(shards: Shards, alive: Array, threshold: float, part: int, parts: int) -> Array:
    """EDGES of one partition of the bands' keys, among documents that `alive` bool [documents] has.

    Jaccard similarities are exact (see `minhash.overlap`). Pairs whose documents are connected already are not compared: the
    components of the edges are those of all pairs.
    """
    keys, documents, _ = shards.merged("bands", part, parts)
    held = alive[documents]
    keys, documents = keys[held], documents[held]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.int64)
    sizes = np.diff(np.append(starts, len(keys)))
    crowded = np.repeat(sizes > 1, sizes)
    documents, sizes = documents[crowded], sizes[sizes > 1]
    ends = np.cumsum(sizes)
    weight = np.cumsum(_sizes(shards, documents))
    found = []
    bucket = 0
    while bucket < len(ends):
        begin = int(ends[bucket] - sizes[bucket])
        limit = (weight[begin - 1] if begin else 0) + _AT_ONCE
        last = max(int(np.searchsorted(weight[ends - 1], limit, "right")), bucket + 1)
        members = documents[begin : ends[last - 1]]
        unique, places = np.unique(members, return_inverse=True)
        sets, first = shards.sets(unique)
        one, other, similarity = _compare(np.append(0, ends[bucket:last] - begin), places, sets, first, threshold)
        batch = np.empty(len(one), EDGES)
        batch["one"], batch["other"], batch["similarity"] = unique[one], unique[other], similarity
        found.append(batch)
        bucket = last
    return np.concatenate(found) if found else np.empty(0, EDGES)


def _sizes(shards: Shards, documents: Array) -> Array:
    """Shingles of each document, which may come in any order and repeatedly."""
    sizes = np.empty(len(documents), np.int64)
    order = np.argsort(documents, kind="stable")
    bounds = np.searchsorted(documents[order], shards.base)
    for shard in np.flatnonzero(np.diff(bounds)):
        chosen = order[bounds[shard] : bounds[shard + 1]]
        rows = shards.rows(int(shard))[documents[chosen] - shards.base[shard]]
        sizes[chosen] = rows["last"] - rows["first"]
    return sizes


@njit(cache=True)
def root(parent, i):
    """Of a node's tree; halves the path to it."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True)
def _compare(bounds, places, sets, first, threshold):
    """Edges between members of buckets: bucket b is places[bounds[b] : bounds[b + 1]], numbers of documents."""
    parent = np.arange(len(first) - 1)
    one, other = np.empty(len(first), np.int64), np.empty(len(first), np.int64)
    similarity = np.empty(len(first), np.float32)
    leaders = np.empty(2 * LEADERS, np.int64)
    count = 0  # a forest: fewer edges than documents
    for bucket in range(len(bounds) - 1):
        leading = 0
        for m in range(bounds[bucket], bounds[bucket + 1]):
            member = places[m]
            mine = sets[first[member] : first[member + 1]]
            alone = True
            for k in range(leading):
                leader = leaders[k]
                here, there = root(parent, member), root(parent, leader)
                if here == there:
                    alone = False
                    continue
                theirs = sets[first[leader] : first[leader + 1]]
                small, large = min(len(mine), len(theirs)), max(len(mine), len(theirs))
                if small < threshold * large:  # not even a subset is as like as that
                    continue
                like = overlap(mine, theirs)
                if like >= threshold:
                    parent[max(here, there)] = min(here, there)
                    one[count], other[count], similarity[count] = leader, member, like
                    count += 1
                    alone = False
            if leading < LEADERS or (alone and leading < 2 * LEADERS):
                leaders[leading] = member
                leading += 1
    return one[:count], other[:count], similarity[:count]
