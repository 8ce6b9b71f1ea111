"""Interpolated modified Kneser-Ney n-grams over token ids (Chen and Goodman 1999, TR-10-98, 3.3 and equations 26-29).

The classic that a neural model has to beat on the same text. Nothing in it is tuned: discounts follow from the counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
LEAST = 0.1  # of a count, where the formula for discounts has nothing to go by


@dataclass(frozen=True)
class _Order:
    """n-grams of one order as sorted keys `number of the (n-1)-gram before x vocab + last token`."""

    keys: Ids
    discounted: NDArray[np.float64]  # [n-grams]: count less its discount
    total: NDArray[np.float64]  # [(n-1)-grams]: of the counts of all that follow
    freed: NDArray[np.float64]  # [(n-1)-grams]: share of `total` that discounts set free for the order below


@dataclass(frozen=True)
class KneserNey:
    """p(token | up to `order` - 1 tokens before), from raw counts at the highest order and, below it, from how many different
    tokens were seen before an n-gram. Below the unigrams stands 1 / vocab, so every token has a share."""

    vocab: int
    orders: tuple[_Order, ...]

    @classmethod
    def fit(cls, tokens: NDArray[Any], vocab: int, order: int = 5) -> KneserNey:
        """Counts a run of tokens. Raises ValueError where there are fewer of them than the order."""
        if len(tokens) < order:
            raise ValueError(f"{len(tokens)} tokens do not hold one {order}-gram")
        keys, numbers, ends = [], [], []  # of each order: sorted keys; which n-gram ends at each place; the places
        before: Ids = np.zeros(len(tokens) + 1, dtype=np.int64)  # the one empty context
        for length in range(1, order + 1):
            made, number = np.unique(before[:-1] * vocab + tokens[length - 1 :].astype(np.int64), return_inverse=True)
            keys.append(made)
            numbers.append(number)
            ends.append(np.arange(length - 1, len(tokens)))
            before = number
        counts = [np.bincount(numbers[-1]).astype(np.float64)]
        for length in range(order - 1, 0, -1):
            # Each longer n-gram is one different token before its last `length` tokens; the run's first has none before it.
            one_of_each = np.unique(numbers[length], return_index=True)[1]
            suffixes = numbers[length - 1][one_of_each + 1]
            counts.insert(0, np.maximum(np.bincount(suffixes, minlength=len(keys[length - 1])), 1).astype(np.float64))
        contexts = [1, *(len(made) for made in keys[:-1])]
        return cls(vocab, tuple(_discount(k, c, vocab, n) for k, c, n in zip(keys, counts, contexts, strict=True)))

    def probabilities(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        """[N] tokens -> p of each given those before it in `tokens`, as many as there are."""
        ids = tokens.astype(np.int64)
        shares = np.full(len(ids), 1.0 / self.vocab)
        context = np.zeros(len(ids), dtype=np.int64)  # number of the (n-1)-gram that ends before each place, or -1
        for order in self.orders:
            known = np.flatnonzero(context >= 0)
            wanted = context[known] * self.vocab + ids[known]
            at = np.minimum(np.searchsorted(order.keys, wanted), len(order.keys) - 1)
            seen = order.keys[at] == wanted
            total = order.total[context[known]]
            followed = total > 0  # the run's last n-gram may have nothing after it
            here, total = known[followed], total[followed]
            own = np.where(seen, order.discounted[at], 0.0)[followed]
            shares[here] = (own + order.freed[context[here]] * shares[here]) / total
            found = np.full(len(ids), -1, dtype=np.int64)
            found[known] = np.where(seen, at, -1)
            context = np.concatenate([np.full(1, -1, dtype=np.int64), found[:-1]])
        return shares


def _discount(keys: Ids, counts: NDArray[np.float64], vocab: int, contexts: int) -> _Order:
    """Takes D1, D2 or D3+ off each count (equation 26). Where too few n-grams are rare for the formula, as with very small
    vocabularies, a tenth of a count is taken at least and left at least: nothing unseen may have the share 0."""
    once, twice, thrice, four = (float((counts == n).sum()) for n in (1, 2, 3, 4))
    share = once / (once + 2 * twice) if once else 0.0
    exact = [
        n - (n + 1) * share * more / less if less else 0.0
        for n, less, more in ((1, once, twice), (2, twice, thrice), (3, thrice, four))
    ]
    rates = np.clip(exact, LEAST, np.array([1.0, 2.0, 3.0]) - LEAST)
    taken = rates[np.minimum(counts, 3).astype(np.int64) - 1]
    context = keys // vocab
    total, freed = (np.bincount(context, values, minlength=contexts).astype(np.float64) for values in (counts, taken))
    return _Order(keys, counts - taken, total, freed)
