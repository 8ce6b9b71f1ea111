from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ninthsky.errors import UserError
from ninthsky.train.text.cursor import Cursor, TokenFile
from tests.train.small import cursor, tokens, write_token_folder


def global_digest(step: int, ranks: int, batch: int = 24) -> str:
    """Of a global batch, put together from what each rank reads."""
    read = [cursor(batch).read(step, rank, ranks).numpy() for rank in range(ranks)]
    return xxhash.xxh3_128_hexdigest(np.concatenate(read).tobytes())


def test_every_number_of_ranks_reads_the_same_global_batches() -> None:
    alone = [global_digest(step, 1) for step in range(40)]
    assert len(set(alone)) == 40
    elastic = [global_digest(step, ranks) for step, ranks in enumerate([4] * 10 + [2] * 10 + [3] * 10 + [8] * 10)]
    assert elastic == alone


@given(batch=st.integers(1, 60), ranks=st.integers(1, 16), step=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_ranks_share_a_batch_without_gap_or_overlap(batch: int, ranks: int, step: int) -> None:
    shares = [cursor(batch).samples(step, rank, ranks) for rank in range(ranks)]
    assert np.concatenate(shares).tolist() == list(range(step * batch, (step + 1) * batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(length=st.integers(40, 3000), sequence=st.integers(1, 19), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_an_epoch_visits_each_window_once_and_stays_inside(length: int, sequence: int, seed: int) -> None:
    made = Cursor(np.arange(length), sequence, 4, seed)
    for epoch in range(3):
        samples = np.arange(epoch * made.windows, (epoch + 1) * made.windows, dtype=np.uint64)
        starts = made.starts(samples)
        assert len(set(starts.tolist())) == made.windows
        assert len(set((starts % sequence).tolist())) == 1  # one grid per epoch
        assert starts.min() >= 0 and starts.max() + sequence + 1 <= length


def test_epochs_differ_in_order_and_offset_and_seeds_in_everything() -> None:
    made = Cursor(np.arange(5000), 16, 4, seed=1)
    first, second = (made.starts(np.arange(e * made.windows, (e + 1) * made.windows, dtype=np.uint64)) for e in (0, 1))
    other = Cursor(np.arange(5000), 16, 4, seed=2).starts(np.arange(made.windows, dtype=np.uint64))
    assert first.tolist() != second.tolist() and first.tolist() != other.tolist()
    assert abs(np.corrcoef(first, np.arange(made.windows))[0, 1]) < 0.2  # no order left
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_windows_are_the_tokens_themselves() -> None:
    made = cursor()
    starts = made.starts(made.samples(3))
    for row, start in zip(made.read(3).tolist(), starts.tolist(), strict=True):
        assert row == tokens()[start : start + 17].tolist()


def test_too_few_tokens_are_told() -> None:
    with pytest.raises(UserError, match="N9-TRN-001"):
        Cursor(np.arange(30), 16, 4, 0)


def test_token_folder_is_read_and_its_faults_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="N9-TRN-001"):
        TokenFile.open(tmp_path, "train")
    write_token_folder(tmp_path)
    held_out = TokenFile.open(tmp_path, "held_out")
    assert held_out.tokens.tolist() == tokens(1500, 1).tolist() and held_out.vocab == 97
    with pytest.raises(UserError, match="no tokens of split 'test'"):
        TokenFile.open(tmp_path, "test")
    whole = (tmp_path / "train.bin").read_bytes()
    (tmp_path / "train.bin").write_bytes(whole[:-2])
    with pytest.raises(UserError, match="5999 tokens, its index says 6000"):
        TokenFile.open(tmp_path, "train")
