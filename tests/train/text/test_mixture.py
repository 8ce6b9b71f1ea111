from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ninthsky.config.load import parse_settings
from ninthsky.errors import UserError
from ninthsky.train.text.cursor import Cursor, TokenFile
from ninthsky.train.text.mixture import Mixture, open_reader
from tests.train.small import tokens, write_token_folder

SIZES = {("book", "en"): 3000, ("book", "zh"): 900, ("made", "en"): 600, ("made", "zh"): 400}


def file() -> TokenFile:
    parts: list[dict[str, Any]] = []
    for (source, language), count in SIZES.items():
        start = sum(part["tokens"] for part in parts)
        parts.append({"source": source, "language": language, "start": start, "tokens": count, "documents": 1, "bytes": count})
    # The value of a token is its place, so that a window tells where it is from.
    return TokenFile(np.arange(sum(SIZES.values()), dtype=np.uint16), 5000, 1, {"parts": parts})


def reader(mixture: dict[str, float], batch: int = 24, seed: int = 5) -> Mixture:
    made = open_reader(file(), 16, batch, seed, mixture)
    assert isinstance(made, Mixture)
    return made


def test_every_number_of_ranks_reads_the_same_global_batches() -> None:
    made = reader({"en": 0.6, "zh": 0.4})

    def digest(step: int, ranks: int) -> str:
        return xxhash.xxh3_128_hexdigest(
            np.concatenate([made.read(step, rank, ranks).numpy() for rank in range(ranks)]).tobytes()
        )

    alone = [digest(step, 1) for step in range(40)]
    assert len(set(alone)) == 40
    assert [digest(step, ranks) for step, ranks in enumerate([4] * 10 + [2] * 10 + [3] * 10 + [8] * 10)] == alone


weights = st.lists(st.floats(0.01, 50.0), min_size=1, max_size=5)


@given(weights=weights, seed=st.integers(0, 99), count=st.integers(1, 3000))
@settings(max_examples=60, deadline=None)
def test_shares_are_kept_and_no_sample_of_a_source_is_left_out_or_comes_twice(
    weights: list[float], seed: int, count: int
) -> None:
    cursor = Cursor(np.arange(500), 16, 8, 0)
    names = tuple(map(str, range(len(weights))))
    made = Mixture(names, (cursor,) * len(weights), tuple(weights), 8, seed)
    source, within = made.places(np.arange(count, dtype=np.uint64))
    for number, weight in enumerate(weights):
        own = within[source == number]
        assert own.tolist() == list(range(len(own)))
        # To within one for each source that is split off; a share is kept to 2 ** -32.
        assert abs(len(own) - count * weight / sum(weights)) <= len(weights)
    # Any one of them, asked for alone, is the same: no state.
    some = np.random.default_rng(seed).integers(0, count, 5).astype(np.uint64)
    alone = made.places(some)
    assert alone[0].tolist() == source[some.astype(np.int64)].tolist()
    assert alone[1].tolist() == within[some.astype(np.int64)].tolist()


def test_far_positions_do_not_overflow() -> None:
    made = reader({"en": 0.7, "zh": 0.3})
    for start in (1 << 33, 1 << 45):
        source, within = made.places(np.arange(start, start + 1000, dtype=np.uint64))
        for number, share in enumerate((0.7, 0.3)):
            own = within[source == number].astype(object)
            assert abs(own[0] - start * share) <= start * 2.0**-31 + 1
            assert (own[1:] - own[:-1] == 1).all() and abs(len(own) - 1000 * share) < 2


def test_each_source_is_gone_through_once_per_pass() -> None:
    made = reader({"en": 3, "made/zh": 1})
    english, chinese = made.cursors
    assert len(english.tokens) == 3600 and len(chinese.tokens) == 400
    rows = np.concatenate([made.read(step).numpy() for step in range(60)])
    assert (rows[:, 1:] - rows[:, :-1] == 1).mean() > 0.99  # windows as they lie in the file
    zh = [int(row[0]) for row in rows if row[0] >= 4500]
    assert all(4500 <= start <= 4900 - 17 for start in zh)
    for epoch in range(len(zh) // chinese.windows):
        assert len(set(zh[epoch * chinese.windows : (epoch + 1) * chinese.windows])) == chinese.windows
    assert len(zh) == pytest.approx(60 * 24 / 4, abs=2)
    assert made.passes(60)["made/zh"] == pytest.approx(60 * 24 / 4 / chinese.windows)
    assert reader({"en": 1, "zh": 0}).names == ("en",)
    assert not any(3000 <= row[0] < 3900 for row in rows)  # book/zh is named by no key


def test_without_a_mixture_nothing_changes() -> None:
    plain = open_reader(file(), 16, 24, 5, {})
    assert plain.read(3).tolist() == Cursor(file().tokens, 16, 24, 5).read(3).tolist()


@pytest.mark.parametrize(
    ("mixture", "what"),
    [
        ({"en": 1, "fr": 1}, "'fr': no such language or source"),
        ({"en": 0, "zh": 0}, "must not sum to 0"),
        ({"en": 2, "zh": -1}, "must not be negative"),
        ({"en": 1, "made": 1}, "'en' and 'made' both name the tokens made/en"),
        ({"en": math.nan}, "must not sum to 0"),
    ],
)
def test_a_wrong_mixture_is_told_with_what_there_is(mixture: dict[str, float], what: str) -> None:
    with pytest.raises(UserError) as told:
        reader(mixture)
    assert told.value.code == "N9-TRN-006" and what in told.value.what
    assert told.value.next == "there are: book, book/en, book/zh, en, made, made/en, made/zh, zh"


def test_too_short_a_source_and_a_folder_without_parts_are_told(tmp_path: Path) -> None:
    short = dataclasses.replace(file(), split={"parts": [*file().parts[:3], {**file().parts[3], "tokens": 20}]})
    with pytest.raises(UserError, match=r"'made/zh' of the mixture: 20 tokens"):
        open_reader(short, 16, 4, 0, {"en": 1, "made/zh": 1})
    write_token_folder(tmp_path)
    with pytest.raises(UserError, match="make the tokens again"):
        open_reader(TokenFile.open(tmp_path, "train"), 16, 4, 0, {"made": 1})
    assert TokenFile.open(tmp_path, "train").tokens.tolist() == tokens().tolist()


def test_it_stands_in_run_toml() -> None:
    made = parse_settings('[train]\nmixture = { en = 0.6, zh = 0.4 }\nschedule = "cosine"\nfinal = 0.1', "run.toml")
    assert made.train.mixture == {"en": 0.6, "zh": 0.4} and made.train.schedule == "cosine" and made.train.final == 0.1
    with pytest.raises(UserError, match="N9-CFG-012"):
        parse_settings("[train]\nmixture = { en = -0.6 }", "run.toml")
