"""The data position without state: sample = f(seed, global index). Any number of ranks reads the same global batches."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from ninthsky.errors import UserError

ROUNDS = 6  # of the Feistel network; 4 suffice for a pseudo-random permutation (Luby and Rackoff 1988)


@dataclass(frozen=True)
class TokenFile:
    """One split of a token folder (`index.json`, format 1): its ids in order, documents separated by <eos>."""

    tokens: NDArray[Any]
    vocab: int
    eos: int
    split: dict[str, Any] = field(default_factory=dict)
    bytes_per_token: float | None = None

    @classmethod
    def open(cls, folder: Path, split: str) -> TokenFile:
        """Reads a whole split into memory, never a memory map: those crash runs on cluster file systems.

        Raises UserError N9-TRN-001 where the folder holds no tokens, or the file is not as long as the index says.
        """
        try:
            index = json.loads((folder / "index.json").read_text("utf-8"))
            entry = index["splits"][split]
            dtype = np.dtype(index["dtype"]).newbyteorder("<")
            # An index that was written before there were several files names one.
            names = [part["file"] for part in entry.get("files", [entry])]
            tokens = np.concatenate([np.fromfile(folder / name, dtype=dtype) for name in names])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                "N9-TRN-001",
                f"no tokens of split {split!r}: {type(error).__name__}: {error}",
                str(folder),
                "name the folder `tokens` that `n9 data` wrote",
            ) from error
        if len(tokens) != entry["tokens"]:
            raise UserError(
                "N9-TRN-001",
                f"{', '.join(names)}: {len(tokens)} tokens, its index says {entry['tokens']}",
                str(folder),
                "make the tokens again",
            )
        return cls(tokens, index["vocab"], index["eos"], entry, index.get("bytes_per_token"))

    @property
    def parts(self) -> list[dict[str, Any]]:
        """{source, language, start, tokens, documents, bytes} of each stretch of one source and language, where told."""
        found: list[dict[str, Any]] = self.split.get("parts", [])
        return found


@dataclass(frozen=True)
class Cursor:
    """Windows of `sequence` + 1 tokens in an order that is a function of (seed, epoch) alone.

    `batch` is the number of windows per step over all ranks. Each epoch visits every window once, in a fresh order and
    shifted by a fresh offset, so that windows begin elsewhere.
    """

    tokens: NDArray[Any]
    sequence: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise UserError(
                "N9-TRN-001",
                f"{len(self.tokens)} tokens are fewer than two windows of {self.sequence}",
                "",
                "take a shorter [train] sequence, or more pages",
            )

    @property
    def windows(self) -> int:
        """Windows per epoch."""
        return (len(self.tokens) - 1) // self.sequence - 1

    def starts(self, samples: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where each global sample begins in `tokens`."""
        count = np.uint64(self.windows)
        epochs, within = samples // count, samples % count
        found = np.empty(len(samples), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            offset = _key(self.seed, epoch, ROUNDS) % self.sequence
            found[here] = _permuted(within[here], self.windows, self.seed, epoch).astype(np.int64) * self.sequence + offset
        return found

    def samples(self, step: int, rank: int = 0, ranks: int = 1) -> NDArray[np.uint64]:
        """Global indices that `rank` reads in `step`: a contiguous share of the global batch, even but for one."""
        return share_of_batch(self.batch, step, rank, ranks)

    def windows_of(self, samples: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Global samples -> their tokens, [samples, sequence + 1]."""
        starts = self.starts(samples)
        return self.tokens[starts[:, None] + np.arange(self.sequence + 1)].astype(np.int64)

    def passes(self, steps: int) -> dict[str, float]:
        """How often the tokens have been gone through after so many steps."""
        return {"all": steps * self.batch / self.windows}

    def read(self, step: int, rank: int = 0, ranks: int = 1) -> torch.Tensor:
        """LongTensor [this rank's share of the batch, sequence + 1]."""
        return torch.from_numpy(self.windows_of(self.samples(step, rank, ranks)))


def share_of_batch(batch: int, step: int, rank: int, ranks: int) -> NDArray[np.uint64]:
    """Global indices of the samples of `step` that `rank` reads: the ranks' shares lie one after another."""
    first, last = (batch * r // ranks for r in (rank, rank + 1))
    return np.arange(step * batch + first, step * batch + last, dtype=np.uint64)


def _key(seed: int, epoch: int, part: int) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed}/{epoch}/{part}".encode())


def _permuted(values: NDArray[np.uint64], count: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    """Where a keyed bijection of range(count) sends `values`: a Feistel network over an even number of bits, walked until
    the value is in range (cycle walking, Black and Rogaway 2002)."""
    half = max((count - 1).bit_length() + 1, 2) // 2
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    keys = [np.uint64(_key(seed, epoch, part)) for part in range(ROUNDS)]
    out = values.copy()
    walking = np.ones(len(out), dtype=bool)
    while walking.any():
        left, right = out[walking] >> shift, out[walking] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        out[walking] = left << shift | right
        walking = out >= count
    return out


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
