"""What the model is held against on held-out text: counts of single tokens and of pairs, fitted on the training tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ninthsky.model.decoder import Decoder
from ninthsky.train.step.loss import documents
from ninthsky.train.text.cursor import TokenFile

ADD = 0.5  # added to each count of a single token (Jeffreys 1946), so that unseen ones keep a share
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # tried for the bigram's prior
TUNING = 0.05  # share at the end of the training tokens on which the prior's strength is chosen, never on what is reported


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


def count_shares(train: TokenFile, held_out: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """p of held_out[1:] by unigram and bigram; the prior's strength is chosen on the end of each part of `train`."""
    spans = [train.tokens[p["start"] : p["start"] + p["tokens"]] for p in train.parts] or [train.tokens]
    cuts = [int(len(span) * (1 - TUNING)) for span in spans]
    early = Counts.of(np.concatenate([span[:cut] for span, cut in zip(spans, cuts, strict=True)]), train.vocab)
    late = np.concatenate([span[cut:] for span, cut in zip(spans, cuts, strict=True)])
    strength = min(STRENGTHS, key=lambda value: _nats(early.bigram(late, value)))
    counts = Counts.of(train.tokens, train.vocab)
    return {"unigram": counts.unigram(held_out), "bigram": counts.bigram(held_out, strength)}


@torch.inference_mode()
def model_nats(
    model: Decoder, tokens: NDArray[Any], sequence: int, stride: int | None = None, rows: int = 16, eos: int | None = None
) -> NDArray[np.float64]:
    """The model's loss on each of tokens[1:], in fp32, in windows of `sequence` tokens that begin every `stride` tokens.

    Of a window that overlaps the one before, only the tokens that are new are scored: each token is scored once, those of
    all windows but the first after at least `sequence` - `stride` tokens of context. Windows do not overlap by default.
    With `eos` the documents of a window do not see each other, as for a model trained under `document_mask`.
    """
    stride = min(stride or sequence, sequence)
    ids = torch.from_numpy(tokens.astype(np.int64))
    device, training = model.embedding.weight.device, model.training
    model.eval()
    found = np.empty(len(ids) - 1, dtype=np.float64)
    windows: dict[tuple[int, int], list[int]] = {}  # (length, tokens known already) -> where they begin
    done, begin = 0, 0
    while done < len(found):
        end = min(begin + sequence, len(found))
        windows.setdefault((end - begin, done - begin), []).append(begin)
        done, begin = end, begin + stride
    for (length, known), begins in windows.items():
        for some in (begins[at : at + rows] for at in range(0, len(begins), rows)):
            both = torch.stack([ids[begin : begin + length + 1] for begin in some]).to(device)
            own = None if eos is None else documents(both[:, :-1], eos)
            logits = model.logits(model(both[:, :-1], documents=own)[:, known:])
            losses = F.cross_entropy(logits.flatten(0, 1), both[:, known + 1 :].flatten(), reduction="none")
            for begin, nats in zip(some, losses.view(len(some), -1).double().cpu().numpy(), strict=True):
                found[begin + known : begin + length] = nats
    model.train(training)
    return found


def held_out_bytes(held_out: TokenFile) -> float | None:
    """Bytes of text per token of the split itself where the index tells them, else of the whole corpus, else unknown."""
    if size := held_out.split.get("bytes"):
        return float(size) / len(held_out.tokens)
    return held_out.bytes_per_token


def _nats(probabilities: NDArray[np.float64]) -> float:
    return float(-np.log(probabilities).mean())
