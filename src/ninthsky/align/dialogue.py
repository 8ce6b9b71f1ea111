"""Prompts and answers as token rows: `<user>` prompt `<assistant>` answer `<eos>`, right-padded, loss on the answer alone.

Prompt and answer are tokenised apart, so that the answer's tokens do not depend on the prompt's last letters and the
log-probabilities of two answers to one prompt can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

PAD, EOS, USER, ASSISTANT = 0, 1, 2, 3  # ids in every tokenizer of the project (docs/architecture.md)


@dataclass(frozen=True)
class Rows:
    """`tokens` LongTensor [B, T]; `target` BoolTensor [B, T], true where the token belongs to the answer or is its `<eos>`."""

    tokens: Tensor
    target: Tensor

    def take(self, index: Tensor) -> Rows:
        """The rows at `index`, cut to the longest of them (rounded up to 8, so that few shapes occur)."""
        tokens = self.tokens[index]
        used = int((tokens != PAD).any(0).nonzero().max()) + 1
        length = min(-(-used // 8) * 8, tokens.shape[1])
        return Rows(tokens[:, :length], self.target[index, :length])

    def beside(self, other: Rows) -> Rows:
        """Both batches as one, the shorter padded."""
        length = max(self.tokens.shape[1], other.tokens.shape[1])
        tokens, target = (
            [F.pad(part, (0, length - part.shape[1])) for part in parts]
            for parts in ((self.tokens, other.tokens), (self.target, other.target))
        )
        return Rows(torch.cat(tokens), torch.cat(target))


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """`<user>` prompt `<assistant>`: what the model is handed before it answers."""
    return [USER, *tokenizer.encode(prompt, add_special_tokens=False).ids, ASSISTANT]


def answer_ids(tokenizer: Tokenizer, answer: str) -> list[int]:
    """answer `<eos>`."""
    return [*tokenizer.encode(answer, add_special_tokens=False).ids, EOS]


def rows(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> Rows:
    """(prompt, answer) pairs -> one padded batch."""
    encoded = [(prompt_ids(tokenizer, prompt), answer_ids(tokenizer, answer)) for prompt, answer in pairs]
    length = max(len(prompt) + len(answer) for prompt, answer in encoded)
    tokens = torch.full((len(encoded), length), PAD, dtype=torch.long)
    target = torch.zeros((len(encoded), length), dtype=torch.bool)
    for row, (prompt, answer) in enumerate(encoded):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        target[row, len(prompt) : end] = True
    return Rows(tokens, target)
