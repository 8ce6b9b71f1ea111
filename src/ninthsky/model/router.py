"""The router: who gets a token, how load is kept even, and how choices are recorded, pinned and held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ninthsky.model.shape import Shape


class Router(nn.Module):
    """Sigmoid scores; the top k of score + bias are chosen, weighted by score alone (DeepSeek-V3, arXiv 2412.19437, 2.1.2).

    The bias is no parameter: after each step it moves by the sign of (mean load - load), counted over all ranks
    (`balance`), so that no auxiliary loss pulls at the weights. `load` counts choices since then, in training only, and
    once where a layer's forward is done again for its backward.
    """

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.experts_per_token = shape.experts_per_token
        self.normed, self.scaling = shape.norm_topk, shape.routed_scaling
        self.weight = nn.Parameter(torch.empty(shape.experts, shape.dim))
        self.register_buffer("e_score_correction_bias", torch.zeros(shape.experts))
        self.register_buffer("load", torch.zeros(shape.experts, dtype=torch.int64), persistent=False)
        self._pins: Iterator[Tensor] | None = None  # choices to take in place of the own ones
        self._again: Iterator[Tensor] | None = None  # the same, while a forward is done again
        self._records: list[list[Tensor]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, dim] -> weights [N, k] in fp32, chosen experts [N, k], choices per expert [experts]."""
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
        chosen = self._choose(scores.detach())
        weights = scores.gather(1, chosen)
        if self.normed:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        if self.scaling != 1.0:
            weights = weights * self.scaling
        counts = torch.bincount(chosen.flatten(), minlength=len(self.load))
        if self.training and torch.is_grad_enabled() and self._again is None:
            self.load += counts
        return weights, chosen, counts

    @torch.no_grad()
    def balance(self, load: Tensor, rate: float) -> None:
        """Moves the bias by the global `load` [experts], mean-centred so that it cannot drift, and counts anew."""
        wanted = load.double().mean()
        move = torch.sign(wanted - load).to(self.e_score_correction_bias.dtype)
        self.e_score_correction_bias += rate * (move - move.mean())
        self.load.zero_()

    def held(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Two contexts: for a forward, and for doing it again with the same choices, neither counted nor recorded anew."""
        kept: list[Tensor] = []
        return self._recording(kept), self._repeating(kept)

    def _choose(self, scores: Tensor) -> Tensor:
        if self._again is not None:
            return next(self._again)
        if self._pins is None:
            chosen = (scores + self.e_score_correction_bias).topk(self.experts_per_token, -1, sorted=False).indices
        else:
            pinned = next(self._pins, None)
            if pinned is None or pinned.shape != (len(scores), self.experts_per_token):
                told = "none left" if pinned is None else f"{list(pinned.shape)}"
                raise ValueError(f"pinned choices for {list(scores.shape[:1])} tokens: {told}")
            chosen = pinned.to(scores.device)
        for record in self._records:
            record.append(chosen)
        return chosen

    @contextmanager
    def _recording(self, into: list[Tensor]) -> Iterator[None]:
        self._records.append(into)
        try:
            yield
        finally:
            self._records = [record for record in self._records if record is not into]

    @contextmanager
    def _repeating(self, kept: list[Tensor]) -> Iterator[None]:
        self._again = iter(kept)
        try:
            yield
        finally:
            self._again = None

    @contextmanager
    def _pinned(self, calls: Sequence[Tensor]) -> Iterator[None]:
        before, self._pins = self._pins, iter(calls)
        try:
            yield
        finally:
            self._pins = before


@dataclass(frozen=True)
class Choices:
    """Chosen experts, by name of the router: one tensor [N, k] for each forward, tokens in order of (row, position)."""

    calls: dict[str, list[Tensor]] = field(default_factory=dict)

    def dealt(self, calls: Sequence[Tensor]) -> Choices:
        """For a model that sees the same tokens in other portions: what each of its forwards needs.

        `calls` are LongTensors of token numbers, one for each forward: number = row x T + position over all recorded
        forwards one after the other. So a rank takes its rows, its positions, or its micro-batches.
        """
        whole = {name: torch.cat(tensors) for name, tensors in self.calls.items()}
        return Choices({name: [tensor[numbers.flatten()] for numbers in calls] for name, tensor in whole.items()})


@contextmanager
def recorded(model: nn.Module) -> Iterator[Choices]:
    """Within it, what the routers of `model` choose is written down, forward by forward."""
    choices = Choices()
    with ExitStack() as stack:
        for name, router in routers(model).items():
            stack.enter_context(router._recording(choices.calls.setdefault(name, [])))
        yield choices


@contextmanager
def pinned(model: nn.Module, choices: Choices) -> Iterator[None]:
    """Within it, the routers of `model` take these choices in place of their own, forward by forward; weights stay theirs.

    One rounding can turn a top k: where two runs are to be compared that round otherwise, this holds the turn still.
    Raises KeyError for a router without choices, ValueError where a forward has other tokens than were recorded.
    """
    with ExitStack() as stack:
        for name, router in routers(model).items():
            stack.enter_context(router._pinned(choices.calls[name]))
        yield


def routers(model: nn.Module) -> dict[str, Router]:
    """All routers in `model`, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Router)}
