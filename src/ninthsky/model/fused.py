"""Forward and backward by hand, where torch's own pieces would pass over memory more often than needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ninthsky.model import formulas

BLOCKS = {torch.bfloat16: 128}  # query rows worked on together in `causal_attention`; 64 in other dtypes
SLICE = 1 << 19  # logits whose softmax is done at once in `output_loss`: 1 MiB in bf16
LONGEST = 1024  # positions up to which keeping all probabilities for the backward is worth its memory


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of `x` are done in: autocast's type where that is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        if formulas.asked():
            out, scale = formulas.rms_norm(x, weight, eps, dtype)
            ctx.save_for_backward(x, weight, scale)
            return out
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        if formulas.asked():
            return *formulas.rms_norm_backward(grads[0], x, weight, scale), None, None
        grad, dim = grads[0].float().contiguous(), x.shape[-1]
        unit = x.float() * scale
        product = (grad * unit).reshape(-1, dim)
        mean = torch.mv(product, weight).div_(dim).view(scale.shape)
        into = (grad * weight).addcmul_(unit, mean, value=-1.0).mul_(scale)
        return into.to(x.dtype), product.sum(0), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / root-mean-square(x) x weight over the last dimension, fp32 inside; comes out ready for the next product."""
    out: Tensor = _RMSNorm.apply(x, weight, eps, compute_dtype(x))
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, -1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, sin, 1.0), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    first, second = x.chunk(2, -1)
    out = torch.empty_like(x)
    low, high = out.chunk(2, -1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=sign)
    torch.mul(second, cos, out=high).addcmul_(first, sin, value=-sign)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + head_dim / 2) of [B, T, heads, head_dim]; cos, sin [.., T, 1, head_dim / 2] in x's dtype."""
    out: Tensor = _Rotate.apply(x, cos, sin)
    return out


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        out, scale = formulas.norm_rotate(x, weight, eps, cos, sin, dtype)
        ctx.save_for_backward(x, weight, cos, sin, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        x, weight, cos, sin, scale = ctx.saved_tensors
        return *formulas.norm_rotate_backward(grads[0], x, weight, cos, sin, scale), None, None, None, None


def norm_rotate(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate(rms_norm(x))`; compiled it is one pass, and not rounded between the two. cos and sin in fp32."""
    if not formulas.asked():
        normed = rms_norm(x, weight, eps)
        return rotate(normed, cos.to(normed.dtype), sin.to(normed.dtype))
    out: Tensor = _NormRotate.apply(x, weight, eps, cos, sin, compute_dtype(x))
    return out


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        if formulas.asked():
            done: Tensor = formulas.gated_silu(gate_up)
            return done
        gate, up = gate_up.chunk(2, -1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        if formulas.asked():
            done: Tensor = formulas.gated_silu_backward(grads[0], gate_up)
            return done
        gate, up = gate_up.chunk(2, -1)
        into = torch.empty_like(gate_up)
        into_gate, into_up = into.chunk(2, -1)
        torch.mul(torch.nn.functional.silu(gate), grads[0], out=into_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=into_gate)
        return into


def gated_silu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [.., 2 x hidden], gate first -> [.., hidden]."""
    out: Tensor = _GatedSilu.apply(gate_up)
    return out


class _CausalAttention(torch.autograd.Function):
    """By blocks of queries, each against the keys up to its end only. Probabilities are kept for the backward.

    Given the first position `begins` [B, T] that each one sees, keys before all of a block's are left out of it too.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, begins: Tensor | None) -> Tensor:
        batch, length, heads, dim = q.shape
        kv_heads, q = k.shape[2], q * dim**-0.5  # once over the queries, not over every score
        keys, values = (x.transpose(1, 2).reshape(batch * kv_heads, length, dim) for x in (k, v))
        out, kept, block = torch.empty_like(q), [], BLOCKS.get(q.dtype, 64)
        hidden = torch.full((block, block), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
        ctx.firsts = [0] * len(range(0, length, block)) if begins is None else begins[:, ::block].amin(0).tolist()
        for first, start in zip(ctx.firsts, range(0, length, block), strict=True):
            end = min(start + block, length)
            rows = _block(q, start, end, kv_heads)
            scores = torch.bmm(rows, keys[:, first:end].mT)
            per_head = scores.view(batch, kv_heads, heads // kv_heads, end - start, end - first)
            per_head[..., start - first :] += hidden[: end - start, : end - start]
            if begins is not None:
                unseen = torch.arange(first, end, device=q.device) < begins[:, None, None, start:end, None]
                per_head.masked_fill_(unseen, -torch.inf)
            kept += [rows, scores.softmax(-1)]
            _write(out, torch.bmm(kept[-1], values[:, first:end]), start, end, kv_heads)
        ctx.save_for_backward(keys, values, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        keys, values, *kept = ctx.saved_tensors
        batch, length, _, dim = grads[0].shape
        kv_heads = keys.shape[0] // batch
        into_q = torch.empty_like(grads[0])
        into_k, into_v = (torch.zeros_like(x, dtype=torch.float32) for x in (keys, values))
        block = BLOCKS.get(keys.dtype, 64)
        for first, start, rows, chances in zip(ctx.firsts, range(0, length, block), kept[::2], kept[1::2], strict=True):
            end = min(start + block, length)
            grad = _block(grads[0], start, end, kv_heads)
            into_v[:, first:end] += torch.bmm(chances.mT, grad)
            into_chances = torch.bmm(grad, values[:, first:end].mT)
            into_scores = torch._softmax_backward_data(into_chances, chances, -1, chances.dtype)
            _write(into_q, torch.bmm(into_scores, keys[:, first:end]), start, end, kv_heads)
            into_k[:, first:end] += torch.bmm(into_scores.mT, rows)
        back = (batch, kv_heads, length, dim)
        into_k, into_v = (x.to(keys.dtype).view(back).transpose(1, 2) for x in (into_k, into_v))
        return into_q.mul_(dim**-0.5), into_k, into_v, None


def _block(x: Tensor, start: int, end: int, kv_heads: int) -> Tensor:
    """[B, T, heads, dim] -> [B x kv_heads, heads / kv_heads x block, dim]: queries that share keys stand together."""
    batch, _, heads, dim = x.shape
    rows = x[:, start:end].view(batch, end - start, kv_heads, heads // kv_heads, dim)
    return rows.permute(0, 2, 3, 1, 4).reshape(batch * kv_heads, -1, dim)


def _write(out: Tensor, rows: Tensor, start: int, end: int, kv_heads: int) -> None:
    batch, _, heads, dim = out.shape
    shaped = rows.view(batch, kv_heads, heads // kv_heads, end - start, dim).permute(0, 3, 1, 2, 4)
    out[:, start:end].view(batch, end - start, kv_heads, heads // kv_heads, dim).copy_(shaped)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, begins: Tensor | None = None) -> Tensor:
    """Causal attention of q [B, T, heads, dim] over k, v [B, T, kv_heads, dim] -> [B, T, heads, dim].

    `begins` [B, T], never falling along T, is the first position that each position sees; left out, all see the first.

    On a CPU core (Zen 4), forward and backward at 512 positions took a third of the time of torch's flash kernel in bf16
    and 0.7 of it in fp32 (docs/model.md). Scores are rounded to the inputs' dtype, as in torch's unfused attention; the
    softmax is done in fp32.
    """
    out: Tensor = _CausalAttention.apply(q.contiguous(), k, v, begins)
    return out


def pays(q: Tensor, length: int) -> bool:
    """Whether `causal_attention` is the faster one: training on a CPU, short enough, and not tiny in fp32."""
    training = torch.is_grad_enabled() and q.requires_grad
    return training and q.device.type == "cpu" and length <= LONGEST and (q.dtype == torch.bfloat16 or length >= 256)


class _OutputLoss(torch.autograd.Function):
    """Both gradients are computed in the forward, chunk by chunk: no logits of the whole batch ever exist.

    A chunk is as many rows as a matrix product wants; its softmax goes by SLICE logits, which stay in a core's cache.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignored: int, rows: int, dtype: torch.dtype, z_loss: float
    ) -> Tensor:
        matrix = weight.to(dtype)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        into_hidden, into_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        step = max(SLICE // len(weight), 1) if hidden.device.type == "cpu" else rows
        for at in range(0, len(hidden), rows):
            part, wanted = hidden[at : at + rows].to(dtype), targets[at : at + rows]
            logits = torch.mm(part, matrix.t())
            for piece, right in zip(logits.split(step), wanted.split(step), strict=True):
                total += _into_logits(piece, right, ignored, z_loss)
            into_hidden[at : at + rows] = torch.mm(logits, matrix)
            into_weight += torch.mm(logits.t(), part)
        ctx.save_for_backward(into_hidden, into_weight)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        into_hidden, into_weight = ctx.saved_tensors
        return into_hidden.mul_(grads[0]), into_weight.mul_(grads[0]), None, None, None, None, None


def _into_logits(logits: Tensor, targets: Tensor, ignored: int, z_loss: float) -> Tensor:
    """Sum of the cross-entropies of logits [rows, vocab], which are replaced by their gradient."""
    if formulas.asked():
        grad, losses = formulas.cross_entropy(logits, targets, ignored, z_loss)
        logits.copy_(grad)
        return losses.sum(dtype=torch.float64)
    counted, place = (targets != ignored)[:, None], targets.clamp_min(0)[:, None]
    top, highest = (x.float() for x in (logits.gather(1, place), logits.amax(1, keepdim=True)))
    chances = logits.float().softmax(1)
    log_z = highest - chances.amax(1, keepdim=True).log()  # the largest chance is at least 1 / vocab
    losses = (log_z - top).masked_fill_(~counted, 0.0)
    if z_loss:
        chances.mul_(1.0 + 2.0 * z_loss * log_z)
    chances.scatter_add_(1, place, torch.full_like(top, -1.0))
    if not counted.all():
        chances.mul_(counted)
    logits.copy_(chances)
    return losses.sum(dtype=torch.float64)


def output_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignored: int = -100, rows: int = 1024, z_loss: float = 0.0
) -> Tensor:
    """Sum of cross-entropies of hidden [N, dim] @ weight [vocab, dim]^T against targets [N], `ignored` ones left out.

    Differentiable once. Logits are rounded to the compute dtype, the softmax is done in fp32. With `z_loss` the gradient,
    and it alone, is that of the sum of cross-entropy + z_loss x log(Z)^2.
    """
    out: Tensor = _OutputLoss.apply(hidden, weight, targets, ignored, rows, compute_dtype(hidden), z_loss)
    return out
