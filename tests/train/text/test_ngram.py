from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from ninthsky.train.text.baseline import Counts
from ninthsky.train.text.ngram import LEAST, KneserNey
from tests.train.small import tokens


def by_hand(run: list[int], vocab: int, order: int) -> Callable[[tuple[int, ...]], float]:
    """p of an n-gram's last token, from dictionaries and the paper's equations, one n-gram at a time."""
    raw = [Counter(tuple(run[at : at + n]) for at in range(len(run) - n + 1)) for n in range(1, order + 1)]
    counts = []
    for n in range(1, order + 1):
        if n == order:
            counts.append({gram: float(count) for gram, count in raw[n - 1].items()})
        else:
            before: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for gram in raw[n]:
                before[gram[1:]].add(gram[0])
            counts.append({gram: float(max(len(before[gram]), 1)) for gram in raw[n - 1]})
    rates = []
    for table in counts:
        once, twice, thrice, four = (sum(value == n for value in table.values()) for n in (1, 2, 3, 4))
        y = once / (once + 2 * twice) if once else 0.0
        exact = [n - (n + 1) * y * more / less if less else 0.0
                 for n, less, more in ((1, once, twice), (2, twice, thrice), (3, thrice, four))]  # fmt: skip
        rates.append([min(max(value, LEAST), n - LEAST) for n, value in enumerate(exact, 1)])

    @cache
    def share(gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / vocab
        lower, table, rate = share(gram[1:]), counts[len(gram) - 1], rates[len(gram) - 1]
        following = {other: count for other, count in table.items() if other[:-1] == gram[:-1]}
        if not following:
            return lower
        taken = {other: rate[min(int(count), 3) - 1] for other, count in following.items()}
        total = sum(following.values())
        return (following.get(gram, 0.0) - taken.get(gram, 0.0) + sum(taken.values()) * lower) / total

    return share


@pytest.mark.parametrize("order", [1, 2, 3])
def test_shares_equal_the_equations_worked_out_one_by_one(order: int) -> None:
    run = [int(token) % 40 for token in tokens(400)]
    asked = np.array([int(token) % 40 for token in tokens(60, seed=4)])
    share = by_hand(run, 40, order)
    got = KneserNey.fit(np.array(run), 40, order).probabilities(asked)
    wanted = [share(tuple(asked[max(at - order + 1, 0) : at + 1].tolist())) for at in range(len(asked))]
    assert got.tolist() == pytest.approx(wanted, rel=1e-12)


def test_shares_sum_to_one_after_anything() -> None:
    run = tokens(3000)
    fitted = KneserNey.fit(run, 97, 4)
    rng = np.random.default_rng(0)
    contexts = [run[at : at + 3] for at in rng.integers(0, 2900, 3)] + [rng.integers(0, 97, 3) for _ in range(2)] + [run[-3:]]
    for context in contexts:
        shares = [fitted.probabilities(np.array([*context, token]))[-1] for token in range(97)]
        assert sum(shares) == pytest.approx(1.0) and min(shares) > 0


def test_it_beats_the_bigram_where_more_than_one_token_before_matters_and_never_reads_ahead() -> None:
    rng = np.random.default_rng(1)
    run = [0, 1]
    for _ in range(20_000):  # the sum of the two before, mostly
        run.append((run[-1] + run[-2]) % 30 if rng.random() < 0.8 else int(rng.integers(30)))
    train, held_out = np.array(run[:18_000]), np.array(run[18_000:])
    shares = KneserNey.fit(train, 30, 5).probabilities(held_out)
    assert -np.log(shares[1:]).mean() < -np.log(Counts.of(train, 30).bigram(held_out, 10.0)).mean() - 0.5
    other = held_out.copy()
    other[1000:] = 7
    assert (KneserNey.fit(train, 30, 5).probabilities(other)[:1000] == shares[:1000]).all()


def test_few_and_strange_tokens() -> None:
    assert KneserNey.fit(np.zeros(50, dtype=np.uint16), 4, 3).probabilities(np.array([0, 0, 0, 0]))[-1] > 0.9
    assert (KneserNey.fit(np.arange(6), 6, 2).probabilities(np.array([5, 5, 5])) > 0).all()
    with pytest.raises(ValueError, match="3 tokens do not hold one 5-gram"):
        KneserNey.fit(np.arange(3), 6)
