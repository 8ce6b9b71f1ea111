"""What the model is held against on held-out text: counts of single tokens and of pairs, fitted on the training tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ninthsky.model.decoder import Decoder
from ninthsky.train.cursor import TokenFile

ADD = 0.5  # added to each count of a single token (Jeffreys 1946), so that unseen ones keep a share
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # tried for the bigram's prior
TUNING = 0.05  # share at the end of the training tokens on which the prior's strength is chosen, never on what is reported


@dataclass(frozen=True)
class Score:
    """Mean loss over every token but a split's first."""

    name: str
    nats_per_token: float
    tokens: int
    bits_per_byte: float | None = None

    def over(self, bytes_per_token: float | None) -> Score:
        """The same with bits per byte, where the length of a token in bytes is known."""
        bits = self.nats_per_token / math.log(2) / bytes_per_token if bytes_per_token else None
        return Score(self.name, self.nats_per_token, self.tokens, bits)


@dataclass(frozen=True)
class Counts:
    """Counts of tokens and of pairs; pairs as sorted keys `first * vocab + second`, for vocabularies of any size."""

    vocab: int
    single: NDArray[np.float64]  # [vocab]
    first: NDArray[np.float64]  # [vocab]: how often a token has a successor
    pairs: NDArray[np.int64]
    pair_counts: NDArray[np.int64]

    @classmethod
    def of(cls, tokens: NDArray[Any], vocab: int) -> Counts:
        """Counts of a run of tokens."""
        ids = tokens.astype(np.int64)
        pairs, pair_counts = np.unique(ids[:-1] * vocab + ids[1:], return_counts=True)
        first = np.bincount(ids[:-1], minlength=vocab).astype(np.float64)
        return cls(vocab, np.bincount(ids, minlength=vocab).astype(np.float64), first, pairs, pair_counts)

    def unigram(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        """p(token) of tokens[1:], with ADD on every count."""
        shares = (self.single + ADD) / (self.single.sum() + ADD * self.vocab)
        return shares[tokens[1:].astype(np.int64)]

    def bigram(self, tokens: NDArray[Any], strength: float) -> NDArray[np.float64]:
        """p(token | token before) of tokens[1:]: (pair + strength x unigram) / (first + strength) (MacKay and Peto 1995)."""
        ids = tokens.astype(np.int64)
        keys = ids[:-1] * self.vocab + ids[1:]
        at = np.searchsorted(self.pairs, keys)
        at[at == len(self.pairs)] = 0
        seen = np.where(self.pairs[at] == keys, self.pair_counts[at], 0)
        return (seen + strength * self.unigram(tokens)) / (self.first[ids[:-1]] + strength)


def count_scores(train: TokenFile, held_out: TokenFile) -> tuple[Score, Score]:
    """Unigram and bigram on the held-out split; the prior's strength is chosen on the end of the training tokens."""
    cut = int(len(train.tokens) * (1 - TUNING))
    early, late = Counts.of(train.tokens[:cut], train.vocab), train.tokens[cut:]
    strength = min(STRENGTHS, key=lambda value: _nats(early.bigram(late, value)))
    counts = Counts.of(train.tokens, train.vocab)
    size = len(held_out.tokens) - 1
    unigram = Score("unigram", _nats(counts.unigram(held_out.tokens)), size)
    bigram = Score("bigram", _nats(counts.bigram(held_out.tokens, strength)), size)
    per_token = held_out_bytes(held_out)
    return unigram.over(per_token), bigram.over(per_token)


@torch.inference_mode()
def model_score(model: Decoder, held_out: TokenFile, sequence: int, rows: int = 16, limit: int | None = None) -> Score:
    """The model's loss on the same tokens, in windows of `sequence` that do not overlap; `limit` tokens at most."""
    ids = torch.from_numpy(held_out.tokens[: None if limit is None else limit + 1].astype(np.int64))
    device = model.embedding.weight.device
    training = model.training
    model.eval()
    total, whole = 0.0, (len(ids) - 1) // sequence
    windows = [ids[: whole * sequence].view(whole, sequence), ids[1 : whole * sequence + 1].view(whole, sequence)]
    batches = [(windows[0][at : at + rows], windows[1][at : at + rows]) for at in range(0, whole, rows)]
    if rest := len(ids) - 1 - whole * sequence:
        batches.append((ids[-rest - 1 : -1][None], ids[-rest:][None]))
    for inputs, targets in batches:
        logits = model.logits(model(inputs.to(device)))
        total += float(F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), reduction="sum"))
    model.train(training)
    return Score("model", total / (len(ids) - 1), len(ids) - 1).over(held_out_bytes(held_out))


def held_out_bytes(held_out: TokenFile) -> float | None:
    """Bytes of text per token of the split itself where the index tells them, else of the whole corpus, else unknown."""
    if size := held_out.split.get("bytes"):
        return float(size) / len(held_out.tokens)
    return held_out.bytes_per_token


def _nats(probabilities: NDArray[np.float64]) -> float:
    return float(-np.log(probabilities).mean())
