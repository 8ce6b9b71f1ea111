"""Clusters of near duplicates: connected components of the edges of all partitions, and of each the document that stays.

Memory: about 100 bytes for each document that has an edge; nothing for the others.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ninthsky.data.duplicates.candidates import EDGES, root
from ninthsky.data.duplicates.minhash import overlap
from ninthsky.data.duplicates.runs import Shards

Array = NDArray[Any]

# `link` is the neighbour through which a document hangs on its survivor, which may be the survivor itself.
NEAR = np.dtype([
    ("document", "<i8"), ("survivor", "<i8"), ("similarity", "<f4"), ("link", "<i8"), ("link_similarity", "<f4"),
])  # fmt: skip
_CHUNK = 1_000_000  # edges
_AT_ONCE = 8_192  # documents whose shingles are held


def clusters(shards: Shards, files: Sequence[Path]) -> Array:
    """NEAR of all documents that go, by document. `files` hold EDGES, in the order of the partitions."""
    nodes = np.empty(0, np.int64)
    for chunk in _chunks(files):
        nodes = np.union1d(nodes, np.concatenate([chunk["one"], chunk["other"]]))
    parent = np.arange(len(nodes))
    forest: list[Array] = []
    for chunk in _chunks(files):
        one, other = np.searchsorted(nodes, chunk["one"]), np.searchsorted(nodes, chunk["other"])
        joined = _join(parent, one, other)
        chosen = np.empty(int(joined.sum()), EDGES)
        chosen["one"], chosen["other"], chosen["similarity"] = one[joined], other[joined], chunk["similarity"][joined]
        forest.append(chosen)
    tree = np.concatenate(forest) if forest else np.empty(0, EDGES)
    survivor, link, similarity = _hang(parent, shards.ranks(nodes), tree["one"], tree["other"], tree["similarity"])
    gone = np.flatnonzero(survivor != np.arange(len(nodes)))
    found = np.empty(len(gone), NEAR)
    found["document"], found["survivor"], found["link"] = nodes[gone], nodes[survivor[gone]], nodes[link[gone]]
    found["link_similarity"] = similarity[gone]
    for start in range(0, len(found), _AT_ONCE):
        part = found[start : start + _AT_ONCE]
        both = np.unique(np.concatenate([part["document"], part["survivor"]]))
        sets, first = shards.sets(both)
        part["similarity"] = _similarities(
            sets, first, np.searchsorted(both, part["document"]), np.searchsorted(both, part["survivor"])
        )
    return found


def _chunks(files: Sequence[Path]):
    for file in files:
        size = file.stat().st_size // EDGES.itemsize
        for start in range(0, size, _CHUNK):
            yield np.fromfile(file, EDGES, min(_CHUNK, size - start), offset=start * EDGES.itemsize)


@njit(cache=True)
def _join(parent, one, other):
    """Unites what edges connect; which edges united two trees."""
    joined = np.zeros(len(one), np.bool_)
    for e in range(len(one)):
        a, b = root(parent, one[e]), root(parent, other[e])
        if a != b:
            parent[max(a, b)] = min(a, b)
            joined[e] = True
    return joined


@njit(cache=True)
def _hang(parent, rank, one, other, similarity):
    """Of each node of a forest: the survivor of its tree, the next node towards it, and the similarity to that."""
    count = len(parent)
    best = np.full(count, -1)
    for i in range(count):
        r = root(parent, i)
        if best[r] < 0 or rank[i] < rank[best[r]]:
            best[r] = i
    start = np.zeros(count + 1, np.int64)
    for e in range(len(one)):
        start[one[e] + 1] += 1
        start[other[e] + 1] += 1
    start = np.cumsum(start)
    fill, near, like = start[:-1].copy(), np.empty(2 * len(one), np.int64), np.empty(2 * len(one), np.float32)
    for e in range(len(one)):
        for a, b in ((one[e], other[e]), (other[e], one[e])):
            near[fill[a]], like[fill[a]] = b, similarity[e]
            fill[a] += 1
    survivor, link, linked = np.arange(count), np.arange(count), np.ones(count, np.float32)
    seen = np.zeros(count, np.bool_)
    queue = np.empty(count, np.int64)
    for i in range(count):
        r = root(parent, i)
        if r != i:
            continue
        queue[0], head, tail = best[r], 0, 1
        seen[best[r]] = True
        while head < tail:
            node = queue[head]
            head += 1
            survivor[node] = best[r]
            for k in range(start[node], start[node + 1]):
                if not seen[near[k]]:
                    seen[near[k]] = True
                    link[near[k]], linked[near[k]] = node, like[k]
                    queue[tail] = near[k]
                    tail += 1
    return survivor, link, linked


@njit(cache=True)
def _similarities(sets, first, one, other):
    out = np.empty(len(one), np.float32)
    for i in range(len(one)):
        a, b = one[i], other[i]
        out[i] = overlap(sets[first[a] : first[a + 1]], sets[first[b] : first[b + 1]])
    return out
