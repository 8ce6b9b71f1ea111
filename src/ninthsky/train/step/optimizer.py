"""The optimizer over what one rank holds: plain local tensors, one fused call, no distributed tensor in the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ninthsky.train.cut.piece import Piece
from ninthsky.train.step.muon import Muon, takes
from ninthsky.train.step.recipe import Recipe


class LocalOptimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) or SGD over pieces, each by itself: no communication. With
    `muon`, matrices inside the model are moved by Muon (muon.py), which puts them together over ranks.

    Matrices decay, norms do not. A piece without a gradient in a step is left as it is.
    """

    def __init__(self, pieces: Sequence[Piece], recipe: Recipe) -> None:
        self.decay = recipe.weight_decay
        inner = [piece for piece in pieces if recipe.optimizer == "muon" and takes(piece)]
        dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        self.muon = Muon(inner, recipe.momentum, dtype) if inner else None
        kept = {piece.name for piece in inner}
        self.pieces = [piece for piece in pieces if piece.local.numel() and piece.name not in kept]
        self.handles = [nn.Parameter(piece.local, requires_grad=True) for piece in self.pieces]  # same storage
        decay = [handle for handle, piece in zip(self.handles, self.pieces, strict=True) if len(piece.shape) > 1]
        plain = [handle for handle, piece in zip(self.handles, self.pieces, strict=True) if len(piece.shape) <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decay, "weight_decay": recipe.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        groups = [group | {"decays": group["params"] is decay} for group in groups if group["params"]]
        # torch wants one at least, and a rank may hold nothing but matrices that Muon moves.
        groups = groups or [{"params": [nn.Parameter(torch.empty(0))], "decays": False}]
        self.adam = recipe.optimizer != "sgd"
        if self.adam:
            self.inner: torch.optim.Optimizer = torch.optim.AdamW(
                groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True
            )
            for handle in self.handles:  # from the start, so that state can be saved and loaded before the first step
                self.inner.state[handle] = {
                    "step": torch.zeros((), dtype=torch.float32, device=handle.device),  # where fused kernels read it
                    "exp_avg": torch.zeros_like(handle, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(handle, requires_grad=False),
                }
        else:
            self.inner = torch.optim.SGD(groups, lr=recipe.lr, foreach=True)

    def step(self, lr: float, scale: float) -> None:
        """One step with gradients times `scale` (in place). Collective where Muon moves matrices over several ranks."""
        if self.muon is not None:
            self.muon.step(lr, self.decay, scale)
        gradients = []
        for handle, piece in zip(self.handles, self.pieces, strict=True):
            handle.grad = piece.gradient()
            if handle.grad is not None:
                gradients.append(handle.grad)
        if gradients:
            if self.adam:  # its kernel divides on the way, which saves a pass over all gradients
                self.inner.grad_scale = torch.full((), 1.0 / scale, device=gradients[0].device)  # type: ignore[attr-defined]
            else:
                torch._foreach_mul_(gradients, scale)
            for group in self.inner.param_groups:
                group["lr"] = lr
            self.inner.step()
        self.clear()

    def retune(self, recipe: Recipe) -> None:
        """Takes another weight decay; the learning rate comes with every step."""
        for group in self.inner.param_groups:
            if group["decays"]:
                group["weight_decay"] = recipe.weight_decay
        self.decay = recipe.weight_decay

    def clear(self) -> None:
        """Lets go of all gradients."""
        for handle in self.handles:
            handle.grad = None
        for piece in (*self.pieces, *self._inner()):
            piece.parameter.grad = None

    def state(self) -> dict[str, tuple[Piece, Tensor]]:
        """Every tensor that the next step depends on beside the weights: name -> (its weight's piece, tensor)."""
        if not self.adam:
            return {}
        found = (
            {f"momentum/{piece.name}": (piece, self.muon.moments[piece.name]) for piece in self._inner()} if self.muon else {}
        )
        for handle, piece in zip(self.handles, self.pieces, strict=True):
            for key, tensor in self.inner.state[handle].items():
                found[f"{key}/{piece.name}"] = (piece, tensor)
        return found

    def _inner(self) -> list[Piece]:
        """Pieces that Muon moves."""
        return [piece for team in self.muon.teams for piece in team.pieces] if self.muon is not None else []
