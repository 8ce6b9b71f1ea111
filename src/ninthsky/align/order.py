"""Which prompts a step reads: a function of the step number alone, one language at a time so that rows are of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ninthsky.align.policy import Prompt

TURNS = 8  # steps after which the languages' turns repeat


def by_language(prompts: Sequence[Prompt], batch: int, seed: int) -> Callable[[int], Tensor]:
    """step -> places [batch] in `prompts`. Each step takes one language; languages take turns by their share of the prompts.

    Within a language each epoch is a fresh permutation, a function of (seed, epoch).
    """
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt.language, []).append(place)
    turns = _turns({language: len(rows) / len(prompts) for language, rows in places.items()})
    index = {language: torch.tensor(rows) for language, rows in places.items()}

    def rows_of(step: int) -> Tensor:
        cycle, turn = divmod(step, len(turns))
        language = turns[turn]
        before = cycle * turns.count(language) + turns[:turn].count(language)
        return index[language][permuted(len(index[language]), batch, seed, before)]

    return rows_of


def permuted(count: int, batch: int, seed: int, step: int) -> Tensor:
    """The `step`-th batch of range(count), epoch after epoch, each in an order of its own."""
    places = torch.arange(step * batch, (step + 1) * batch)
    epochs = places // count
    found = torch.empty_like(places)
    for epoch in epochs.unique().tolist():
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        here = epochs == epoch
        found[here] = order[places[here] % count]
    return found


def _turns(shares: dict[str, float]) -> list[str]:
    """Languages evenly interleaved by share, each at least once."""
    wanted = {language: max(round(TURNS * share), 1) for language, share in shares.items()}
    spread = [((turn + 0.5) / count, language) for language, count in wanted.items() for turn in range(count)]
    return [language for _, language in sorted(spread)]
