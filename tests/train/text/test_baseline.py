from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ninthsky.train.text.baseline import Counts, count_shares, held_out_bytes, model_nats
from ninthsky.train.text.cursor import TokenFile
from tests.train.small import model, write_token_folder


def test_shares_sum_to_one_whatever_came_before() -> None:
    counts = Counts.of(np.array([2, 3, 2, 3, 4, 2, 9]), vocab=12)
    for before in (2, 4, 9, 11):  # seen often, once, only at the end, never
        pairs = np.stack([np.full(12, before), np.arange(12)], 1)
        assert sum(counts.bigram(pair, 3.0)[0] for pair in pairs) == pytest.approx(1.0)
        assert sum(counts.unigram(pair)[0] for pair in pairs) == pytest.approx(1.0)


def test_figures_by_hand() -> None:
    counts = Counts.of(np.array([0, 1, 0, 1, 0, 2]), vocab=3)
    single = (np.array([3, 2, 1]) + 0.5) / 7.5
    assert counts.unigram(np.array([0, 1, 2])).tolist() == pytest.approx([single[1], single[2]])
    assert counts.bigram(np.array([0, 1]), 2.0)[0] == pytest.approx((2 + 2 * single[1]) / (3 + 2))


def test_pairs_beat_single_tokens_where_tokens_depend_on_each_other_and_nothing_beats_the_source() -> None:
    rng = np.random.default_rng(0)
    chain = np.zeros(20_000, dtype=np.uint16)
    for at in range(1, len(chain)):  # the next of 16 with .9, else any
        chain[at] = (chain[at - 1] + 1) % 16 if rng.random() < 0.9 else rng.integers(16)
    train, held_out = (TokenFile(part, 16, 1, {}, 3.0) for part in (chain[:18_000], chain[18_000:]))
    shares = count_shares(train, held_out.tokens)
    unigram, bigram = (-np.log(shares[name]) for name in ("unigram", "bigram"))
    share = 0.9 + 0.1 / 16
    entropy = -share * math.log(share) - 0.1 * 15 / 16 * math.log(0.1 / 16)
    assert unigram.mean() == pytest.approx(math.log(16), abs=0.01)
    assert entropy - 0.1 < bigram.mean() < entropy + 0.1
    assert held_out_bytes(held_out) == 3.0
    assert len(unigram) == len(bigram) == 1999


def test_the_strength_is_never_chosen_on_what_is_reported(tmp_path: Path) -> None:
    write_token_folder(tmp_path)
    train, held_out = (TokenFile.open(tmp_path, split) for split in ("train", "held_out"))
    scrambled = TokenFile(np.random.default_rng(5).permutation(held_out.tokens), held_out.vocab, 1, held_out.split, None)
    honest, other = (-np.log(count_shares(train, text.tokens)["bigram"]).mean() for text in (held_out, scrambled))
    assert other > honest  # same strength, worse text
    assert held_out_bytes(scrambled) is None


@pytest.mark.parametrize("count", [1500, 1000, 49, 17])
def test_the_model_is_scored_on_every_token_but_the_first(tmp_path: Path, count: int) -> None:
    write_token_folder(tmp_path)
    held_out, made = TokenFile.open(tmp_path, "held_out"), model()
    ids = torch.from_numpy(held_out.tokens[:count].astype(np.int64))
    total = 0.0
    with torch.no_grad():
        for at in range(0, count - 1, 16):
            window = ids[at : at + 17]
            total += float(F.cross_entropy(made.logits(made(window[None, :-1]))[0], window[1:], reduction="sum"))
    nats = model_nats(made, held_out.tokens[:count], sequence=16)
    assert len(nats) == count - 1
    assert nats.mean() == pytest.approx(total / (count - 1), rel=1e-5)
    assert made.training
