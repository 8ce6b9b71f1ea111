"""The golden run: twenty steps of a small Decoder on the device, beside the same steps on the host in fp64.

The fp64 run is written out here by the formulas, with no operator of the model's own code: plain products, a loop over the
experts, AdamW by its definition. It takes the device's router choices, since one ulp flips a choice and another expert is
another model; each choice that fp64 would not have made must have been a close one.

How far a loss may lie from fp64's: the forward and backward of a token pass about n = 30 roundings per layer one after
another, which add up like sqrt(n) u (Higham and Mary 2019); a mean over N tokens takes sqrt(N) off that; and each step
starts from weights that carry all errors before. So at step s, from 0, the allowance is 4 u sqrt(n / N) (1 + s) times the
loss of a model that knows nothing, log(vocab). AdamW's eps is 1e-4 here: at 1e-8 a gradient that is all rounding moves its
weight by the whole rate, to either side, and no bound on the loss would hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ninthsky.model import Decoder, Shape
from ninthsky.model.router import recorded
from ninthsky.train.step.recipe import Precision, Recipe
from ninthsky.train.step.trainer import Gate, Trainer

STEPS, BATCH, LENGTH = 20, 8, 48
SHAPE = Shape(vocab=128, layers=3, dim=64, heads=4, kv_heads=2, experts=6, experts_per_token=2, expert_dim=48, dense_dim=96)
ROUNDINGS_PER_LAYER = 30
SAFETY = 4.0


@dataclass(frozen=True)
class GoldenStep:
    """One step on the device (`loss`) and in fp64 (`exact`), and how far they may lie apart."""

    step: int
    loss: float
    exact: float
    allowed: float
    norm: float
    exact_norm: float
    flipped: int  # router choices that fp64 would have made otherwise
    widest: float  # the largest difference of scores that such a choice went against
    allowed_margin: float

    @property
    def problem(self) -> str:
        """Empty where all is well."""
        if not abs(self.loss - self.exact) <= self.allowed:
            return f"step {self.step}: loss {self.loss:.7g} where {self.exact:.7g} +- {self.allowed:.2g} is right"
        if not abs(self.norm / self.exact_norm - 1) <= self.allowed_margin:
            return f"step {self.step}: gradient norm {self.norm:.6g} where {self.exact_norm:.6g} is right"
        if self.widest > self.allowed_margin:
            return f"step {self.step}: a router's choice against a difference of scores of {self.widest:.2g}"
        return ""


def batches(seed: int) -> list[Tensor]:
    """[BATCH, LENGTH + 1] tokens per step: most follow from the one before."""
    generator = torch.Generator().manual_seed(seed)
    successor = torch.randint(0, SHAPE.vocab, (SHAPE.vocab,), generator=generator)
    made = []
    for _ in range(STEPS):
        tokens = torch.randint(0, SHAPE.vocab, (BATCH, LENGTH + 1), generator=generator)
        keep = torch.rand(BATCH, LENGTH + 1, generator=generator) < 0.8
        for at in range(1, LENGTH + 1):
            tokens[:, at] = torch.where(keep[:, at], successor[tokens[:, at - 1]], tokens[:, at])
        made.append(tokens)
    return made


def golden_run(device: torch.device, precision: Precision = "fp32", seed: int = 0, count: int = STEPS) -> list[GoldenStep]:
    """Both runs, step by step, over the first `count` of the twenty steps."""
    recipe = Recipe(lr=3e-3, eps=1e-4, precision=precision)
    model = Decoder(SHAPE, seed)
    exact = _Exact({name: x.double().clone() for name, x in model.state_dict().items()}, recipe)
    trainer = Trainer(model, _loss, recipe, STEPS, device=device)
    unit = 2.0**-24 if precision == "fp32" else 2.0**-9
    depth = ROUNDINGS_PER_LAYER * SHAPE.layers
    steps = []
    for step, tokens in enumerate(batches(seed)[:count]):
        with recorded(model) as choices:
            trainer.local_gradients(tokens.to(device))
        chosen = [calls[0].cpu() for calls in choices.calls.values()]
        figures = trainer.apply(Gate.total([trainer.gate_values()]))
        loss, norm, flipped, widest = exact.step(tokens, chosen, recipe.rate(step, STEPS))
        per_token = SAFETY * unit * math.sqrt(depth) * (1 + step)
        allowed = per_token * math.log(SHAPE.vocab) / math.sqrt(BATCH * LENGTH)
        steps.append(GoldenStep(step, figures.loss, loss, allowed, figures.norm, norm, flipped, widest, per_token))
    return steps


def _loss(model: Any, tokens: Tensor) -> tuple[Tensor, float]:
    return model.token_loss(model(tokens[:, :-1]), tokens[:, 1:]), tokens[:, 1:].numel()


class _Exact:
    """The decoder of SHAPE and its training step in fp64, from a state dict."""

    def __init__(self, state: dict[str, Tensor], recipe: Recipe) -> None:
        self.bias = {name: x for name, x in state.items() if name.endswith("e_score_correction_bias")}
        self.weights = {name: x.requires_grad_() for name, x in state.items() if name not in self.bias}
        self.first, self.second = ({name: torch.zeros_like(x) for name, x in self.weights.items()} for _ in range(2))
        self.recipe, self.done = recipe, 0

    def step(self, tokens: Tensor, chosen: list[Tensor], rate: float) -> tuple[float, float, int, float]:
        """-> mean loss, gradient norm, choices otherwise than fp64's, the largest difference of scores they went against."""
        self.flipped, self.widest = 0, 0.0
        self.loads: list[Tensor] = []
        loss = self._loss(tokens, iter(chosen))
        gradients = torch.autograd.grad(loss, list(self.weights.values()))
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        self._move(gradients, min(1.0, self.recipe.clip / (norm + 1e-6)), rate)
        for (_, bias), load in zip(self.bias.items(), self.loads, strict=True):
            move = torch.sign(load.double().mean() - load)
            bias += self.recipe.balance * (move - move.mean())
        return float(loss.detach()), norm, self.flipped, self.widest

    def _loss(self, tokens: Tensor, chosen: Any) -> Tensor:
        w, length = self.weights, tokens.shape[1] - 1
        x = w["embedding.weight"][tokens[:, :-1]]
        half = torch.arange(0, SHAPE.head_dim, 2, dtype=torch.float64) / SHAPE.head_dim
        angle = (torch.arange(length)[:, None] * SHAPE.rope_theta**-half)[:, None]  # [T, 1, head_dim / 2]
        for layer in range(SHAPE.layers):
            at = f"layers.{layer}."
            x = x + self._attention(self._norm(x, at + "attention_norm.weight"), at + "attention.", angle.cos(), angle.sin())
            y = self._norm(x, at + "mlp_norm.weight").reshape(-1, SHAPE.dim)
            fed = self._dense(y, at + "mlp.") if layer < SHAPE.dense_layers else self._sparse(y, at + "mlp.", next(chosen))
            x = x + fed.view(x.shape)
        scores = self._norm(x, "norm.weight") @ w["head.weight"].t()
        return F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + SHAPE.norm_eps).sqrt() * self.weights[name]

    def _attention(self, x: Tensor, at: str, cos: Tensor, sin: Tensor) -> Tensor:
        w, (rows, length, _) = self.weights, x.shape
        q, k, v = (
            (x @ w[f"{at}{name}_proj.weight"].t()).view(rows, length, heads, SHAPE.head_dim)
            for name, heads in (("q", SHAPE.heads), ("k", SHAPE.kv_heads), ("v", SHAPE.kv_heads))
        )
        turned = []
        for part, name in ((q, "q_norm.weight"), (k, "k_norm.weight")):
            low, high = self._norm(part, at + name).chunk(2, -1)
            turned.append(torch.cat((low * cos - high * sin, high * cos + low * sin), -1))
        repeat = SHAPE.heads // SHAPE.kv_heads
        q, k, v = (
            part.transpose(1, 2) for part in (turned[0], turned[1].repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2))
        )
        scores = (q @ k.mT / math.sqrt(SHAPE.head_dim)).masked_fill(
            torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf
        )
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, -1) @ w[at + "o_proj.weight"].t()

    def _dense(self, x: Tensor, at: str) -> Tensor:
        gate, up = (x @ self.weights[at + "gate_up.weight"].flatten(0, -2).t()).chunk(2, -1)
        return (gate * gate.sigmoid() * up) @ self.weights[at + "down.weight"].t()

    def _sparse(self, x: Tensor, at: str, chosen: Tensor) -> Tensor:
        scores = (x @ self.weights[at + "router.weight"].t()).sigmoid()
        ranked = scores.detach() + self.bias[at + "router.e_score_correction_bias"]
        against = ranked.topk(SHAPE.experts_per_token).values[:, -1] - ranked.gather(1, chosen).amin(1)
        self.flipped += int((against > 0).sum())
        self.widest = max(self.widest, float(against.max()))
        self.loads.append(torch.bincount(chosen.flatten(), minlength=SHAPE.experts))
        weights = scores.gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        out = self._dense(x, at + "shared.")
        for expert in range(SHAPE.experts):
            token, place = (chosen == expert).nonzero(as_tuple=True)
            gate, up = (x[token] @ self.weights[at + "experts.gate_up"][expert]).chunk(2, -1)
            answer = (gate * gate.sigmoid() * up) @ self.weights[at + "experts.down"][expert]
            out = out.index_add(0, token, answer * weights[token, place, None])
        return out

    @torch.no_grad()
    def _move(self, gradients: tuple[Tensor, ...], clip: float, rate: float) -> None:
        """AdamW, Loshchilov and Hutter 2019, algorithm 2; matrices decay, norms do not."""
        self.done += 1
        one, two = self.recipe.betas
        for (name, weight), gradient in zip(self.weights.items(), gradients, strict=True):
            gradient = gradient * clip
            self.first[name].mul_(one).add_(gradient, alpha=1 - one)
            self.second[name].mul_(two).add_(gradient**2, alpha=1 - two)
            if weight.dim() > 1:
                weight.mul_(1 - rate * self.recipe.weight_decay)
            root = (self.second[name] / (1 - two**self.done)).sqrt() + self.recipe.eps
            weight.sub_(rate * (self.first[name] / (1 - one**self.done)) / root)
