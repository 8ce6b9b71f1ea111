"""Supervised fine-tuning and preference optimisation as `loss(model, batch) -> (sum, count)` for the one loop.

Log-probabilities are sums over the answer's tokens and its `<eos>`, in float32 whatever the model computes in. The reference
model's are handed in as numbers: it is frozen, so it is asked once and not in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ninthsky.align.dialogue import Rows

Preference = Literal["sigmoid", "hinge", "ipo"]


class LanguageModel(Protocol):
    """What the losses ask of a model: tokens [B, T] -> hidden [B, T, dim], and hidden [..., dim] -> logits [..., vocab]."""

    def __call__(self, tokens: Tensor) -> Tensor: ...
    def logits(self, hidden: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class Pairs:
    """Two answers to each of B prompts: rows 0..B-1 of `rows` are the chosen ones, rows B..2B-1 the rejected ones.

    `reference` [2B] holds the frozen reference model's summed log-probabilities of the same rows.
    """

    rows: Rows
    reference: Tensor


PairLoss = Callable[[LanguageModel, Pairs], tuple[Tensor, Tensor]]


def target_logits(model: LanguageModel, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, vocab] in float32 that predict the N target tokens, those tokens [N], and the row [N] of each.

    Only target positions pass through the vocabulary projection.
    """
    device = next(model.parameters()).device
    tokens, predicts = rows.tokens.to(device), rows.target[:, 1:].to(device)
    logits = model.logits(model(tokens)[:, :-1][predicts]).float()
    row = predicts.nonzero(as_tuple=True)[0]
    return logits, tokens[:, 1:][predicts], row


def log_probabilities(model: LanguageModel, rows: Rows) -> Tensor:
    """log p(answer | prompt) of each row, summed over its tokens, [B] in float32."""
    logits, tokens, row = target_logits(model, rows)
    each = -F.cross_entropy(logits, tokens, reduction="none")
    return torch.zeros(len(rows.tokens), dtype=each.dtype, device=each.device).index_add(0, row, each)


def sft(model: LanguageModel, batch: Rows) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the answers' tokens: (sum in nats, number of tokens)."""
    logits, tokens, _ = target_logits(model, batch)
    return F.cross_entropy(logits, tokens, reduction="sum"), torch.tensor(len(tokens))


def rehearsing(loss: PairLoss, weight: float = 1.0) -> Callable[[LanguageModel, tuple[Pairs, Rows]], tuple[Tensor, Tensor]]:
    """`loss` plus `weight` times the mean cross-entropy of plain text, so that a correction does not cost the language."""

    def both(model: LanguageModel, batch: tuple[Pairs, Rows]) -> tuple[Tensor, Tensor]:
        pairs, text = batch
        total, count = loss(model, pairs)
        nats, tokens = sft(model, text)
        return total + weight * count * nats / tokens, count

    return both


def preference(beta: float, nll_weight: float = 0.0, kind: Preference = "sigmoid") -> PairLoss:
    """The preference loss over pairs: (sum over pairs, number of pairs).

    With h = [log p(chosen) - log ref(chosen)] - [log p(rejected) - log ref(rejected)]:
      sigmoid  -log sigmoid(beta h)        DPO, Rafailov et al. 2023 (arXiv 2305.18290), eq. 7
      hinge    max(0, 1 - beta h)          SLiC, Zhao et al. 2023 (arXiv 2305.10425)
      ipo      (h - 1 / (2 beta))^2        IPO, Azar et al. 2023 (arXiv 2310.12036), eq. 17; on sums, not per token

    `nll_weight` adds that much of the chosen answer's mean negative log-likelihood per token (RPO, Pang et al. 2024,
    arXiv 2404.19733). Without it the loss can fall while the chosen answer becomes *less* likely, as long as the rejected one
    falls faster; then the model ranks answers rightly and generates neither.
    """
    if beta <= 0 or nll_weight < 0:
        raise ValueError(f"beta must be positive and nll_weight not negative, not {beta}, {nll_weight}")
    if kind not in ("sigmoid", "hinge", "ipo"):
        raise ValueError(f"no preference loss is called {kind!r}")

    def loss(model: LanguageModel, batch: Pairs) -> tuple[Tensor, Tensor]:
        policy = log_probabilities(model, batch.rows)
        pairs = len(policy) // 2
        ratio = policy - batch.reference.to(policy.device)
        margin = ratio[:pairs] - ratio[pairs:]
        if kind == "sigmoid":
            each = -F.logsigmoid(beta * margin)
        elif kind == "hinge":
            each = torch.relu(1 - beta * margin)
        else:
            each = (margin - 1 / (2 * beta)).square()
        if nll_weight:
            length = batch.rows.target[:pairs].sum(1).to(policy.device)
            each = each - nll_weight * policy[:pairs] / length
        return each.sum(), torch.tensor(pairs)

    return loss
