"""The optimizer over what one rank holds: plain local tensors, one fused call, no distributed tensor in the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ninthsky.train.parallel import Piece
from ninthsky.train.recipe import Recipe


class LocalOptimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) or SGD over pieces, each by itself: no communication.

    Matrices decay, norms do not. A piece without a gradient in a step is left as it is.
    """

    def __init__(self, pieces: Sequence[Piece], recipe: Recipe) -> None:
        self.pieces = [piece for piece in pieces if piece.local.numel()]
        self.handles = [nn.Parameter(piece.local, requires_grad=True) for piece in self.pieces]  # same storage
        decay = [handle for handle, piece in zip(self.handles, self.pieces, strict=True) if len(piece.shape) > 1]
        plain = [handle for handle, piece in zip(self.handles, self.pieces, strict=True) if len(piece.shape) <= 1]
        groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        self.adam = recipe.optimizer == "adamw"
        if self.adam:
            self.inner: torch.optim.Optimizer = torch.optim.AdamW(
                groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True
            )
            for handle in self.handles:  # from the start, so that state can be saved and loaded before the first step
                self.inner.state[handle] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(handle, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(handle, requires_grad=False),
                }
        else:
            self.inner = torch.optim.SGD(groups, lr=recipe.lr, foreach=True)

    def step(self, lr: float, scale: float) -> None:
        """One step with gradients times `scale` (in place)."""
        gradients = []
        for handle, piece in zip(self.handles, self.pieces, strict=True):
            handle.grad = piece.gradient()
            if handle.grad is not None:
                gradients.append(handle.grad)
        if not gradients:
            return
        torch._foreach_mul_(gradients, scale)
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()
        self.clear()

    def clear(self) -> None:
        """Lets go of all gradients."""
        for handle in self.handles:
            handle.grad = None
        for piece in self.pieces:
            piece.parameter.grad = None

    def state(self) -> dict[str, tuple[Piece, Tensor]]:
        """Every tensor that the next step depends on beside the weights: name -> (its weight's piece, tensor)."""
        if not self.adam:
            return {}
        found = {}
        for handle, piece in zip(self.handles, self.pieces, strict=True):
            for key, tensor in self.inner.state[handle].items():
                found[f"{key}/{piece.name}"] = (piece, tensor)
        return found
