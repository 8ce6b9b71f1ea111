"""Steps of `fused` as plain formulas for torch.compile, which makes each one pass over memory; off unless asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ninthsky.errors import UserError

_asked = False  # of the whole process: on accelerators the backward runs in threads of its own


def asked() -> bool:
    """Whether compiled formulas are to be used."""
    return _asked


@contextmanager
def compiled(on: bool = True) -> Iterator[None]:
    """Within it, forwards and backwards use the compiled formulas, or (False) do not."""
    global _asked
    before, _asked = _asked, on
    try:
        yield
    finally:
        _asked = before


def check(device: torch.device) -> None:
    """Compiles one formula. Raises UserError N9-TRN-021 where this machine cannot."""
    try:
        rms_norm(torch.ones(2, 8, device=device), torch.ones(8, device=device), 1e-5, torch.float32)
    except (torch._dynamo.exc.BackendCompilerFailed, torch._inductor.exc.InductorError) as error:
        told = str(error).strip().splitlines()[0]
        what = f"torch.compile does not work here: {told}"
        raise UserError("N9-TRN-021", what, "[train] compile", "set compile = false") from error


def _formula(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True)  # made at the first call, kept on disk
    return compiled


@_formula
def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """-> normed x in `dtype`, 1 / root-mean-square [..., 1]."""
    wide = x.float()
    scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * scale * weight).to(dtype), scale


@_formula
def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """-> gradients of x and weight."""
    return _rms_norm_backward(grad.float(), x, weight, scale)


def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    unit = x.float() * scale
    product = grad * unit
    mean = (product * weight).mean(-1, keepdim=True)
    return ((grad * weight - unit * mean) * scale).to(x.dtype), product.flatten(0, -2).sum(0)


@_formula
def norm_rotate(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """-> normed and turned x in `dtype`, 1 / root-mean-square [..., 1]."""
    wide = x.float()
    scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    first, second = (wide * scale * weight).chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(dtype), scale


@_formula
def norm_rotate_backward(
    grad: Tensor, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """-> gradients of x and weight."""
    first, second = grad.float().chunk(2, -1)
    turned = torch.cat((first * cos + second * sin, second * cos - first * sin), -1)
    return _rms_norm_backward(turned, x, weight, scale)


@_formula
def gated_silu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up."""
    gate, up = gate_up.float().chunk(2, -1)
    return (gate * gate.sigmoid() * up).to(gate_up.dtype)


@_formula
def gated_silu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """-> gradient of gate_up."""
    gate, up = gate_up.float().chunk(2, -1)
    chance, wide = gate.sigmoid(), grad.float()
    into_gate = wide * up * chance * (1.0 + gate * (1.0 - chance))
    return torch.cat((into_gate, wide * gate * chance), -1).to(gate_up.dtype)


@_formula
def cross_entropy(logits: Tensor, targets: Tensor, ignored: int, z_loss: float) -> tuple[Tensor, Tensor]:
    """Logits [rows, vocab] -> their gradient in the same dtype, losses [rows] in fp32."""
    wide = logits.float()
    highest = wide.amax(1, keepdim=True)
    powers = (wide - highest).exp()
    sums = powers.sum(1, keepdim=True)
    log_z = sums.log() + highest
    counted, place = (targets != ignored)[:, None], targets.clamp_min(0)[:, None]
    here = torch.arange(logits.shape[1], device=logits.device) == place
    chances = powers / sums * (1.0 + 2.0 * z_loss * log_z) if z_loss else powers / sums
    grad = (chances - here.float()) * counted
    losses = (log_z - wide.gather(1, place)) * counted
    return grad.to(logits.dtype), losses.squeeze(1)
