"""Faults that were written when the tests of vet were done, to see what it finds that it was not made for.

`HELD` came first: 11 of its 12 were found at once; `sum-block-lost` was not, and sums of whole numbers were added for it.
`LATE` came after that and nothing was changed since.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from ninthsky.train.vet.faults import KNOWN, Planted, altering, instead
from ninthsky.train.vet.simulated import Fault, Kernel


def _crude_root(out: Tensor, args: Any, kwargs: Any) -> None:
    out.copy_((out.view(torch.int32) & -4096).view(torch.float32) if out.dtype == torch.float32 else out)


def _tf32(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    cut = [
        ((x.contiguous().view(torch.int32) + 4096) & -8192).view(torch.float32) if x.dtype == torch.float32 else x
        for x in args[:2]
    ]
    return op(*cut, *args[2:], **kwargs)


def _ties_away(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    far, near = args
    if far.dtype == torch.bfloat16 and near.dtype == torch.float32 and bool(near.isfinite().all()):
        near = ((near.contiguous().view(torch.int32) + 32_768) & -65_536).view(torch.float32)
    return far.copy_(near)


def _lost_counts(out: Tensor, args: Any, kwargs: Any) -> None:
    if args[0].numel() > 10_000:
        out[0] -= 1


def _last_row_only(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    gradient, places, rows = args[:3]
    into = torch.zeros(rows, gradient.shape[-1], dtype=gradient.dtype)
    into[places.flatten()] = gradient.reshape(-1, gradient.shape[-1])
    return kwargs["out"].copy_(into) if "out" in kwargs else into


def _far_angles(out: Tensor, args: Any, kwargs: Any) -> None:
    out.add_(1e-3 * (args[0].abs() > 8192).to(out.dtype))


def _last_of_equals(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    out = op(*args, **kwargs)
    if len(args) > 1 and args[1] is not None and args[0].shape[args[1]]:
        out.copy_(args[0].shape[args[1]] - 1 - args[0].flip(args[1]).argmax(args[1]))
    return out


def _seedless() -> Fault:
    free = torch.Generator()
    free.seed()

    def fault(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
        out = op(*args, **kwargs)
        if name == "uniform":
            out.copy_(torch.rand(out.shape, generator=free))
        return out

    return fault


def _racing() -> Fault:
    last = [0]

    def fault(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
        out = op(*args, **kwargs)
        here = threading.get_ident()
        if name == "mm" and last[0] not in (0, here) and out.numel() and threading.current_thread() is threading.main_thread():
            out[-1, -1] += 1.0
        last[0] = here
        return out

    return fault


def _biased(out: Tensor, args: Any, kwargs: Any) -> None:
    if out.dtype == torch.float32:
        out.mul_(1 - 1.5 * 2.0**-24)


def _dropped_block(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    x = args[0]
    if x.is_floating_point() and x.numel() > 1 << 16 and x.dim() == 1:
        x = x[: x.numel() // 1024 * 1024]
    return op(x, *args[1:], **kwargs)


def _wrong_query(out: Tensor, args: Any, kwargs: Any) -> None:
    if out.dim() == 3 and out.shape[0] > 2:
        out[-1, -1] = out[0, -1]


HELD: dict[str, Planted] = {
    "rsqrt-crude": Planted("1 / root has 12 good bits", ("roots",), altering("rsqrt", _crude_root)),
    "matmul-tf32": Planted("fp32 products are made of 10-bit mantissas without being asked", ("matmul",), instead("mm", _tf32)),
    "cast-ties-away": Planted(
        "fp32 to bf16 rounds half-ways away from zero instead of to even", ("cast",), instead("copy", _ties_away)
    ),
    "bincount-loses": Planted("one count in more than 10,000 is lost", ("bincount",), altering("bincount", _lost_counts)),
    "embedding-last": Planted(
        "of an embedding row's gradients the last alone counts",
        ("embedding",),
        instead("embedding_dense_backward", _last_row_only),
    ),
    "cosine-far": Planted(
        "cosines of angles above 8,192 are off by a thousandth", ("sine and cosine",), altering("cos", _far_angles)
    ),
    "argmax-last": Planted(
        "among equal largest the last is named", ("compare and choose",), instead("argmax", _last_of_equals)
    ),
    "seed-ignored": Planted("uniform random numbers do not heed the seed", ("random numbers",), _seedless),
    "race": Planted("a product is wrong while another thread multiplies", ("repeats under load",), _racing),
    "divide-biased": Planted("quotients are always too small, by less than one ulp", ("divide",), altering("div", _biased)),
    "sum-block-lost": Planted(
        "sums of more than 65,536 numbers leave out the last odd block", ("sum and mean",), instead("sum", _dropped_block)
    ),
    "bmm-last-batch": Planted(
        "the last row of the last batch is the first batch's", ("batched matmul", "attention"), altering("bmm", _wrong_query)
    ),
}


def _wrong_broadcast(out: Tensor, args: Any, kwargs: Any) -> None:
    if isinstance(args[1], Tensor) and args[1].dim() == 2 == args[0].dim() and args[0].shape != args[1].shape:
        out[..., -1] = out[..., 0]


def _wrong_side(out: Tensor, args: Any, kwargs: Any) -> None:
    if out.numel() > 1000 and isinstance(args[1], Tensor) and isinstance(args[2], Tensor):
        condition, one, other = torch.broadcast_tensors(*args[:3])
        last = (-1,) * out.dim()
        out[last] = other[last] if condition[last] else one[last]


def _saturated(out: Tensor, args: Any, kwargs: Any) -> None:
    out[args[0] < -16] = 0.0


def _row_before(out: Tensor, args: Any, kwargs: Any) -> None:
    source, places = args[0], args[1][0]
    if source.dim() == 2 and places is not None and places.dtype == torch.int64 and places.numel():
        out[places == len(source) - 1] = source[-2:-1]


def _low_norm(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    out = op(*args, **kwargs)
    x = args[0]
    if x.dtype == torch.bfloat16 and x.dim() == 2 and x.shape[1] > 16:
        total = torch.zeros(len(x), dtype=x.dtype)
        for at in range(0, x.shape[1], 8):
            total += x[:, at : at + 8].square().sum(1)
        out.copy_(total.sqrt().view(out.shape))
    return out


def _no_sum(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    out = op(*args, **kwargs)
    if out.shape[-1] > 4096:
        out.copy_(args[0] * args[1])
    return out


def _last_row(out: Tensor, args: Any, kwargs: Any) -> None:
    ends = kwargs.get("offs", args[2] if len(args) > 2 else None)
    if out.dim() == 2 and ends is not None and len(out):
        counts = ends.diff(prepend=ends.new_zeros(1))
        out[ends[(counts % 2 == 1) & (counts > 16)].long() - 1] = 0.0


def _whole_words(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    far, near = args
    kept = far.flatten()[-1:].clone() if far.element_size() == 1 and far.numel() % 4 else None
    far.copy_(near)
    if kept is not None and far.is_contiguous():
        far.view(-1)[-1:] = kept
    return far


def _even_sine(out: Tensor, args: Any, kwargs: Any) -> None:
    out.copy_(torch.where(args[0] < -1000, -out, out))


def _low_mean(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    out = op(*args, **kwargs)
    x = args[0]
    if x.dtype == torch.bfloat16 and x.dim() == 2 and x.shape[1] > 16:
        total = torch.zeros(len(x), dtype=x.dtype)
        for at in range(0, x.shape[1], 16):
            total += x[:, at : at + 16].sum(1)
        out.copy_((total / x.shape[1]).view(out.shape))
    return out


def _eps_inside(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    weights, gradients, firsts, seconds, _, steps = args[:6]
    rate, one, two, decay, eps = (float(kwargs[name]) for name in ("lr", "beta1", "beta2", "weight_decay", "eps"))
    for weight, gradient, first, second, step in zip(weights, gradients, firsts, seconds, steps, strict=True):
        first.lerp_(gradient, 1 - one)
        second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
        root = (second / (1 - two ** float(step)) + eps).sqrt_()
        weight.mul_(1 - rate * decay).addcdiv_(first, root, value=-rate / (1 - one ** float(step)))
    return None


def _one_too_far(out: Any, args: Any, kwargs: Any) -> None:
    x, k = args[0], args[1]
    if x.dim() == 2 and 6 <= k < x.shape[1] and x.shape[1] >= 128:
        best = x.topk(k + 1, -1)
        at = out[0].argmin(-1, keepdim=True)
        out[0].scatter_(1, at, best.values[:, -1:])
        out[1].scatter_(1, at, best.indices[:, -1:])


LATE: dict[str, Planted] = {
    "add-broadcast": Planted(
        "a row plus a column is wrong in its last column", ("add, subtract, multiply",), altering("add", _wrong_broadcast)
    ),
    "where-last": Planted(
        "where takes the wrong side for the last of many elements", ("compare and choose",), altering("where", _wrong_side)
    ),
    "sigmoid-saturates": Planted("sigmoid is zero below -16", ("sigmoid",), altering("sigmoid", _saturated)),
    "index-last-row": Planted("a lookup of the last row gives the row before", ("index",), altering("index", _row_before)),
    "norm-bf16": Planted("norms of bf16 rows are summed in bf16", ("norm",), instead("linalg_vector_norm", _low_norm)),
    "softmax-backward-long": Planted(
        "softmax's gradient leaves its sum out in rows above 4,096", ("softmax",), instead("_softmax_backward_data", _no_sum)
    ),
    "expert-last-row": Planted(
        "the last row of an odd group above 16 rows is zero", ("grouped matmul",), altering("_grouped_mm", _last_row)
    ),
    "copy-whole-words": Planted("of an odd number of bytes the last is not copied", ("copy",), instead("copy", _whole_words)),
    "sine-even": Planted("sine has the wrong sign below -1,000", ("sine and cosine",), altering("sin", _even_sine)),
    "mean-bf16": Planted("means of bf16 rows are summed in bf16", ("sum and mean",), instead("mean", _low_mean)),
    "adamw-eps-inside": Planted("fused AdamW adds eps under the root", ("fused AdamW",), instead("_fused_adamw", _eps_inside)),
    "topk-one-too-far": Planted(
        "with six or more of 128 the last chosen is the next best", ("top k",), altering("topk", _one_too_far)
    ),
}

FAULTS: dict[str, Planted] = KNOWN | HELD | LATE
