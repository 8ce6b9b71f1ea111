"""Batch to loss: the only thing in which pretraining, fine-tuning and preference optimisation differ."""

from __future__ import annotations

from torch import Tensor

from ninthsky.model.decoder import Decoder

IGNORED = -100  # a target that is not counted


def next_token_loss(model: Decoder, batch: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of each next token, in nats: LongTensor [B, T + 1] -> (sum, B x T)."""
    inputs, targets = batch[:, :-1], batch[:, 1:]
    return model.token_loss(model(inputs), targets), float(targets.numel())


def document_loss(model: Decoder, batch: Tensor, eos: int = 1) -> tuple[Tensor, float]:
    """The same where documents do not see each other. An `eos` opens what comes after it: it stands for an empty past."""
    inputs, targets = batch[:, :-1], batch[:, 1:]
    return model.token_loss(model(inputs, documents=documents(inputs, eos)), targets), float(targets.numel())


def documents(tokens: Tensor, eos: int = 1) -> Tensor:
    """Numbers of the documents that tokens [B, T] of packed windows belong to, counted from the left of each row."""
    return (tokens == eos).cumsum(-1)


def masked_token_loss(model: Decoder, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
    """The same over answers only: tokens [B, T] and targets [B, T], IGNORED where nothing is asked -> (sum, counted)."""
    tokens, targets = batch
    return model.token_loss(model(tokens), targets, IGNORED), float((targets != IGNORED).sum())
