"""Generation: many prompts at once, each position computed once (keys and values are kept)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

from ninthsky.model.decoder import Cache, Decoder


@overload
def generate(
    model: Decoder,
    ids: Sequence[int],
    max_new_tokens: int,
    stop: int = ...,
    temperature: float = ...,
    seed: int = ...,
    rows: int = ...,
) -> list[int]: ...
@overload
def generate(
    model: Decoder,
    ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int = ...,
    temperature: float = ...,
    seed: int = ...,
    rows: int = ...,
) -> list[list[int]]: ...


def generate(
    model: Decoder,
    ids: Sequence[int] | Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    rows: int = 128,
) -> list[int] | list[list[int]]:
    """New tokens after one prompt, or after each of many; without the prompt and without the `stop` token.

    `temperature` 0 takes the likeliest token, the lowest id among equals. Prompts are worked on `rows` at a time, those of
    like length together; with a temperature each prompt has its own random numbers, whatever stands beside it.
    """
    if not ids or isinstance(ids[0], int):
        return _answers(model, [list(ids)], max_new_tokens, stop, temperature, seed, rows)[0]  # type: ignore[arg-type]
    return _answers(model, [list(prompt) for prompt in ids], max_new_tokens, stop, temperature, seed, rows)  # type: ignore[arg-type]


def stream(
    model: Decoder, ids: Sequence[int], max_new_tokens: int, stop: int = 1, temperature: float = 0.0, seed: int = 0
) -> Iterator[int]:
    """The same tokens as `generate` for one prompt, one by one as they come."""
    for tokens in _steps(model, [list(ids)], [0], max_new_tokens, temperature, seed):
        if int(tokens[0]) == stop:
            return
        yield int(tokens[0])


def _answers(
    model: Decoder, prompts: list[list[int]], max_new: int, stop: int, temperature: float, seed: int, rows: int
) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    for first in range(0, len(by_length), rows):
        indices = by_length[first : first + rows]
        going = [True] * len(indices)
        for tokens in _steps(model, [prompts[index] for index in indices], indices, max_new, temperature, seed):
            for row, token in enumerate(tokens.tolist()):
                going[row] = going[row] and token != stop
                if going[row]:
                    answers[indices[row]].append(token)
            if not any(going):
                break
    return answers


@torch.inference_mode()
def _steps(
    model: Decoder, prompts: list[list[int]], numbers: list[int], max_new: int, temperature: float, seed: int
) -> Iterator[Tensor]:
    """The next token of every row, again and again. Shorter prompts are padded on the left."""
    if any(not prompt for prompt in prompts):
        raise ValueError("an empty prompt has no next token")
    device = model.embedding.weight.device
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in numbers]
    cache = Cache(model, len(prompts), longest + max_new)
    uneven = padding if bool(padding.any()) else None
    training = model.training
    model.eval()
    try:
        for _ in range(max_new):
            logits = model.logits(model(tokens, cache=cache, padding=uneven)[:, -1])
            chosen = logits.argmax(-1) if temperature == 0 else _sample(logits / temperature, generators)
            yield chosen
            tokens = chosen[:, None]
    finally:
        model.train(training)


def _sample(logits: Tensor, generators: list[torch.Generator]) -> Tensor:
    """One draw per row by the Gumbel trick, from the row's own generator."""
    noise = torch.stack([torch.rand(logits.shape[1], generator=generator) for generator in generators]).to(logits.device)
    return (logits - (-noise.clamp_min(1e-20).log()).log()).argmax(-1)
