"""Sources by weight, without state: which source a sample is from, and which of its windows, is f(seed, global index)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from ninthsky.errors import UserError
from ninthsky.train.text.cursor import Cursor, TokenFile, share_of_batch

BITS = 32  # resolution of a weight


@dataclass(frozen=True)
class Mixture:
    """Several cursors, each with its share of the samples; as `Cursor` to whoever reads.

    Of any first n samples a source has its share to within one, and its own samples come in its own order: each of its
    windows once per pass. Sources are split off one after the other: sample i of those that are left belongs to the next
    source where floor(i w + t) rises (a Sturmian word of slope w), and is then its sample number floor(i w + t).
    """

    names: tuple[str, ...]
    cursors: tuple[Cursor, ...]
    weights: tuple[float, ...]
    batch: int
    seed: int

    def places(self, samples: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Global indices -> (number of the source, index among its own samples)."""
        source = np.full(len(samples), len(self.cursors) - 1, dtype=np.int64)
        within = samples.copy()
        left = np.arange(len(samples))
        for number, weight in enumerate(self.weights[:-1]):
            slope = round(weight / sum(self.weights[number:]) * (1 << BITS))
            turn = xxhash.xxh3_64_intdigest(f"{self.seed}/mixture/{self.names[number]}".encode()) >> (64 - BITS)
            before, after = (_floors(within[left] + np.uint64(more), slope, turn) for more in (0, 1))
            chosen = after > before
            source[left[chosen]], within[left[chosen]] = number, before[chosen]
            left, before = left[~chosen], before[~chosen]
            within[left] -= before
        return source, within

    def samples(self, step: int, rank: int = 0, ranks: int = 1) -> NDArray[np.uint64]:
        """Global indices that `rank` reads in `step`, as `Cursor.samples`."""
        return share_of_batch(self.batch, step, rank, ranks)

    def read(self, step: int, rank: int = 0, ranks: int = 1) -> torch.Tensor:
        """LongTensor [this rank's share of the batch, sequence + 1]."""
        source, within = self.places(self.samples(step, rank, ranks))
        rows = np.empty((len(source), self.cursors[0].sequence + 1), dtype=np.int64)
        for number, cursor in enumerate(self.cursors):
            here = source == number
            rows[here] = cursor.windows_of(within[here])
        return torch.from_numpy(rows)

    def passes(self, steps: int) -> dict[str, float]:
        """How often each source has been gone through after so many steps."""
        total = sum(self.weights)
        return {
            name: steps * self.batch * weight / total / cursor.windows
            for name, cursor, weight in zip(self.names, self.cursors, self.weights, strict=True)
        }


def _floors(index: NDArray[np.uint64], slope: int, turn: int) -> NDArray[np.uint64]:
    """floor((index x slope + turn) / 2^BITS), exact for any index below 2^63: in two halves, so that nothing overflows."""
    high, low = index >> np.uint64(BITS), index & np.uint64((1 << BITS) - 1)
    if slope == 1 << BITS:
        return index
    return high * np.uint64(slope) + ((low * np.uint64(slope) + np.uint64(turn)) >> np.uint64(BITS))


def open_reader(
    file: TokenFile, sequence: int, batch: int, seed: int, mixture: Mapping[str, float] | None = None
) -> Cursor | Mixture:
    """What a training job reads: all tokens as they come, or sources by weight.

    Keys of `mixture` are languages (`zh`), sources (`made`), or both (`made/zh`); what no key names is not read. Raises
    UserError N9-TRN-001 where tokens are too few for a window, N9-TRN-006 for a mixture that cannot be.
    """
    if not mixture:
        return Cursor(file.tokens, sequence, batch, seed)
    chosen = {name: members for name, members in choose(file.parts, mixture).items() if mixture[name] > 0}
    cursors = []
    for number, (name, members) in enumerate(chosen.items()):
        spans = [file.tokens[part["start"] : part["start"] + part["tokens"]] for part in members]
        # Every source has a seed of its own; the first keeps the run's.
        own = xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) if number else seed
        try:
            cursors.append(Cursor(np.concatenate(spans), sequence, batch, own))
        except UserError as error:
            raise UserError(error.code, f"{name!r} of the mixture: {error.what}", "[train] mixture", error.next) from error
    return Mixture(tuple(chosen), tuple(cursors), tuple(mixture[name] for name in chosen), batch, seed)


def choose(parts: Sequence[Mapping[str, Any]], mixture: Mapping[str, float]) -> dict[str, list[Mapping[str, Any]]]:
    """Key of the mixture -> parts of the split that it names. Raises UserError N9-TRN-006."""
    if not mixture:
        return {}
    known = sorted({name for part in parts for name in _names(part)})
    found = {key: [part for part in parts if key in _names(part)] for key in mixture}
    problem = ""
    if unknown := [key for key, members in found.items() if not members]:
        problem = f"{', '.join(map(repr, unknown))}: no such language or source among the tokens"
    elif any(weight < 0 for weight in mixture.values()) or not sum(mixture.values()) > 0:
        problem = f"weights must not be negative, and must not sum to 0: {dict(mixture)}"
    else:
        for part in parts:
            twice = [key for key, members in found.items() if any(member is part for member in members)]
            if len(twice) > 1:
                problem = f"{' and '.join(map(repr, twice))} both name the tokens {part['source']}/{part['language']}"
    if problem:
        there = f"there are: {', '.join(known)}" if known else "this token folder tells no parts: make the tokens again"
        raise UserError("N9-TRN-006", f"the mixture cannot be: {problem}", "[train] mixture", there)
    return found


def _names(part: Mapping[str, Any]) -> tuple[str, str, str]:
    return part["language"], part["source"], f"{part['source']}/{part['language']}"
