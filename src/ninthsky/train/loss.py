"""Batch to loss: the only thing in which pretraining, fine-tuning and preference optimisation differ."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ninthsky.model.decoder import Decoder

IGNORED = -100  # a target that is not counted


def next_token_loss(model: Decoder, batch: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of each next token, in nats: LongTensor [B, T + 1] -> (sum, B x T)."""
    inputs, targets = batch[:, :-1], batch[:, 1:]
    logits = model.logits(model(inputs))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"), float(targets.numel())


def masked_token_loss(model: Decoder, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
    """The same over answers only: tokens [B, T] and targets [B, T], IGNORED where nothing is asked -> (sum, counted)."""
    tokens, targets = batch
    logits = model.logits(model(tokens))
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED)
    return total, float((targets != IGNORED).sum())
