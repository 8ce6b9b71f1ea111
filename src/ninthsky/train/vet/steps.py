"""The optimizers' own operators, held against their formulas over several steps."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ninthsky.train.vet.bounds import Units
from ninthsky.train.vet.case import Operator, Probe, Wrong

BETAS, EPS, DECAY = (0.9, 0.95), 1e-8, 0.1


def adamw(weight: Tensor, gradients: list[Tensor], rates: list[float], decay: float = DECAY) -> Tensor:
    """AdamW by its formula (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2), in the dtype of `weight`."""
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        weight = weight - rate * decay * weight
        unbiased = first / (1 - BETAS[0] ** step), (second / (1 - BETAS[1] ** step)).sqrt()
        weight = weight - rate * unbiased[0] / (unbiased[1] + EPS)
    return weight


def _fused(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """Each step errs by a few roundings of the weight and, of the update, by those of its two averages: about 30 u at most.

    An average of gradients of both signs is held to the average of their sizes, which is what its roundings are relative to.
    """
    rates = [1e-3, 3e-3, 3e-3, 1e-3, 5e-4, 1e-2]
    for shapes, decay in ((((33, 65), (7,), (1,)), DECAY), (((4099,), (2, 3, 5)), 0.0)):
        start = [torch.randn(shape, generator=generator) for shape in shapes]
        gradients = [[torch.randn(shape, generator=generator) * 0.1**at for _ in rates] for at, shape in enumerate(shapes)]
        weights = [x.to(device, copy=True).requires_grad_() for x in start]
        optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=BETAS, eps=EPS, weight_decay=decay, fused=True)
        for step, rate in enumerate(rates):
            for weight, own in zip(weights, gradients, strict=True):
                weight.grad = own[step].to(device)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        for weight, before, own in zip(weights, start, gradients, strict=True):
            exact = adamw(before.double(), [g.double() for g in own], rates, decay)
            sizes = torch.stack(own).double().abs().sum(0)
            smallest = (torch.stack(own).double().square().sum(0) * (1 - BETAS[1]) * BETAS[1] ** len(rates)).sqrt() + EPS
            moved = sum(rates) * sizes / smallest
            allowed = Units(dtype).gamma(4 * len(rates)) * (before.double().abs() + moved) + Units(dtype).gamma(30) * moved
            off = ((weight.detach().cpu().double() - exact).abs() / allowed).max()
            if not off.item() <= 1:
                what = f"AdamW of shape {tuple(before.shape)}, weight decay {decay}"
                raise Wrong(f"{what}: {float(off):.3g} x the bound after 6 steps")


def _gradual(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """The very first step moves every weight by the rate, whatever the gradient's size: bias correction is what makes it so."""
    gradient = torch.tensor([1e-3, -1.0, 30.0, -1e3])
    weight = torch.zeros(4, device=device, requires_grad=True)
    weight.grad = gradient.to(device)
    torch.optim.AdamW([weight], lr=0.5, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True).step()
    wanted = -0.5 * gradient.sign()
    if not torch.allclose(weight.detach().cpu(), wanted, rtol=2e-5):  # eps is 1e-5 of the smallest gradient
        raise Wrong(f"the first step moves by {weight.detach().cpu().tolist()} where {wanted.tolist()} is right")


def _many(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """Lists of tensors at once, in place: scaling of gradients, SGD, norms."""
    near = [torch.randn(shape, generator=generator) for shape in ((5,), (33, 7), (1,), (4099,), (0,))]
    far = [x.to(device, copy=True) for x in near]
    torch._foreach_mul_(far, 0.25)
    torch._foreach_add_(far, far, alpha=-0.5)
    for x, y in zip(near, far, strict=True):
        wanted = x * 0.125  # powers of two: exact
        if not torch.equal(y.cpu(), wanted):
            raise Wrong(f"foreach multiply and add of {list(x.shape)}: {int((y.cpu() != wanted).sum())} elements differ")
    norms = torch.stack(torch._foreach_norm(far)).cpu().double()
    exact = torch.stack([(x.double() * 0.125).norm() for x in near])
    if not bool(((norms - exact).abs() <= Units(torch.float32).gamma(4100) * exact).all()):
        raise Wrong(f"foreach norm gives {norms.tolist()} where {exact.tolist()} is right")
    if math.isnan(float(norms.sum())):
        raise Wrong("foreach norm of an empty tensor is NaN")


OPERATORS = (
    Operator(
        "fused AdamW",
        ("_fused_adamw",),
        (Probe("six steps against the formula", _fused), Probe("the first step", _gradual)),
        "AdamW(fused=False) in train/step/optimizer.py, or plain SGD",
        'train.optimizer = "sgd"',
    ),
    Operator(
        "lists of tensors",
        ("_foreach_mul", "_foreach_add", "_foreach_norm"),
        (Probe("multiply, add, norm", _many),),
        "the same tensor by tensor: foreach=False in train/step/optimizer.py",
    ),
)
