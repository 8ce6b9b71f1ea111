"""Faults to plant in the simulated device, as young back ends have them: `n9 train vet --device simulated --fault NAME`.

These were known while the tests were written; those in heldback.py were not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ninthsky.train.vet.simulated import Fault, Kernel


@dataclass(frozen=True)
class Planted:
    """A fault: what it does, which operator (as the table names them) should fail, and how to make a fresh one."""

    what: str
    blamed: tuple[str, ...]
    make: Callable[[], Fault]


Change = Callable[[Tensor, tuple[Any, ...], dict[str, Any]], Any]  # alters the sound result in place, or returns another


def altering(names: str, change: Change) -> Callable[[], Fault]:
    """A fault of the operators named: their sound result, changed."""
    wanted = names.split()

    def fault(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
        out = op(*args, **kwargs)
        if name not in wanted:
            return out
        changed = change(out, args, kwargs)
        return out if changed is None else changed

    return lambda: fault


def instead(names: str, body: Callable[[tuple[Any, ...], dict[str, Any], Kernel], Any]) -> Callable[[], Fault]:
    """A fault of the operators named: something else in their place."""
    wanted = names.split()

    def fault(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
        return body(args, kwargs, op) if name in wanted else op(*args, **kwargs)

    return lambda: fault


def _truncated(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    far, near = args
    if far.dtype == torch.bfloat16 and near.dtype == torch.float32:
        near = (near.contiguous().view(torch.int32) & -65_536).view(torch.float32)
    return far.copy_(near)


def _one_element(out: Tensor, args: Any, kwargs: Any) -> None:
    if out.numel() > 200_000 and out.shape[-1] % 2:
        out[out.shape[0] // 2, -1] += 0.25 * out[out.shape[0] // 2].abs().max()


def _trembling() -> Fault:
    calls = [0]

    def fault(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
        out = op(*args, **kwargs)
        if name in ("sum", "index_add") and out.is_floating_point() and out.numel():
            calls[0] += 1
            if calls[0] % 3 == 0:
                out.mul_(1 + torch.finfo(out.dtype).eps)
        return out

    return fault


def _stale() -> Fault:
    kept: dict[tuple[int, tuple[int, ...], torch.dtype], Tensor] = {}

    def fault(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
        if name != "mm":
            return op(*args, **kwargs)
        weight = args[1]
        packed = kept.setdefault((weight.data_ptr(), tuple(weight.shape), weight.dtype), weight.clone())
        return op(args[0], packed, *args[2:], **kwargs)

    return fault


def _denormal(out: Tensor, args: Any, kwargs: Any) -> None:
    smallest = torch.finfo(out.dtype).smallest_normal if out.is_floating_point() else 0.0
    if smallest:
        out.copy_(torch.where((out != 0) & (out.abs() < smallest), torch.full_like(out, smallest), out))


def _lost_duplicates(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    into, dim, places, rows, *_ = args
    last = torch.scatter(torch.zeros_like(into), dim, places, rows)
    out = kwargs.get("out", args[0])
    return out.copy_(into + last)


def _same_place(out: Any, args: Any, kwargs: Any) -> None:
    values, places = out
    same = values[..., 1:] == values[..., :-1]
    places[..., 1:] = torch.where(same, places[..., :-1], places[..., 1:])


def _narrow_places(out: Any, args: Any, kwargs: Any) -> None:
    words = out[1].view(-1).view(torch.int32)
    narrow = out[1].int().flatten()
    words.zero_()
    words[: len(narrow)] = narrow


def _unstable(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    values, places = op(*args, **kwargs)
    if values.dtype.is_floating_point or values.dim() != 1:
        return values, places
    order = places.flip(0)
    turned = args[0][order].argsort(stable=True)
    places.copy_(order[turned])
    return values, places


def _no_maximum(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    wide = args[0].float() if args[0].dtype != torch.float64 else args[0]
    grown = wide.exp()
    done = (grown / grown.sum(args[1], keepdim=True)).to(args[0].dtype)
    return kwargs["out"].copy_(done) if "out" in kwargs else done


def _short_sums(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    out = op(*args, **kwargs)
    return out.copy_(args[0].float().cumsum(args[1]).to(out.dtype)) if out.numel() else out


def _tail(out: Tensor, args: Any, kwargs: Any) -> None:
    if out.numel() > 1024 and out.numel() % 64 and out.is_contiguous():
        flat = out.view(-1)
        flat[-1] = flat[-2]


def _without_nan(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    first = args[0].nan_to_num(0.0, torch.inf, -torch.inf) if args[0].is_floating_point() else args[0]
    return op(first, *args[1:], **kwargs)


def _no_correction(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    weights, gradients, firsts, seconds, _, steps = args[:6]
    rate, one, two, decay, eps = (float(kwargs[name]) for name in ("lr", "beta1", "beta2", "weight_decay", "eps"))
    for weight, gradient, first, second in zip(weights, gradients, firsts, seconds, strict=True):
        first.lerp_(gradient, 1 - one)
        second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
        weight.mul_(1 - rate * decay).addcdiv_(first, second.sqrt().add_(eps), value=-rate)
    assert steps is not None
    return None


def _half_gradient(out: Tensor, args: Any, kwargs: Any) -> None:
    out.mul_(torch.where(args[1] < -1, 0.5, 1.0).to(out.dtype))


def _cut_short(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    far, near = args
    if far.numel() * far.element_size() <= 4 << 20 or not far.is_contiguous():
        return far.copy_(near)
    flat, source = far.view(-1), near.reshape(-1)
    flat[:-1024].copy_(source[:-1024])
    return far


def _crash_on_nothing(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    if not args[2].numel():
        raise RuntimeError("kernel launch with a grid of 0 blocks: invalid configuration")
    return op(*args, **kwargs)


def _blind_to_strides(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    first = args[0]
    if first.numel() and not first.is_contiguous() and min(first.stride()) == 1:
        first = first.as_strided(first.shape, (first.shape[1], 1))
    return op(first, *args[1:], **kwargs)


def _shifted_groups(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    x, weights = args[0], args[1]
    ends = kwargs.get("offs", args[2] if len(args) > 2 else None)
    if x.dim() != 2 or weights.dim() != 3 or ends is None:
        return op(*args, **kwargs)
    counts = ends.diff(prepend=ends.new_zeros(1))
    full = weights[counts > 0]  # empty groups are skipped, and so are not counted
    moved = torch.cat((full, weights[: len(weights) - len(full)]))
    return op(x, moved, *args[2:], **kwargs)


def _low_sums(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    a, b = args[:2]
    if a.dtype != torch.bfloat16 or a.shape[1] <= 32:
        return op(*args, **kwargs)
    total = torch.zeros(a.shape[0], b.shape[1], dtype=a.dtype)
    for at in range(0, a.shape[1], 32):
        total += a[:, at : at + 32] @ b[at : at + 32]
    return kwargs["out"].copy_(total) if "out" in kwargs else total


def _slow(args: tuple[Any, ...], kwargs: dict[str, Any], op: Kernel) -> Any:
    if kwargs.get("way") == "within" and args[0].numel() > 1 << 20:
        time.sleep(0.5)
    return args[0].copy_(args[1])


KNOWN: dict[str, Planted] = {
    "cast-truncates": Planted("fp32 to bf16 cuts the low bits off instead of rounding", ("cast",), instead("copy", _truncated)),
    "matmul-one-element": Planted(
        "one element of a large product of odd width is wrong", ("matmul",), altering("mm", _one_element)
    ),
    "sum-trembles": Planted("every third sum differs in its last bit", ("sum and mean", "index_add"), _trembling),
    "weight-stale": Planted("a product goes on with the weight as it was first seen", ("matmul",), _stale),
    "denormals-grow": Planted(
        "products below the smallest normal number become it", ("add, subtract, multiply",), altering("mul", _denormal)
    ),
    "scatter-loses": Planted(
        "of several sums into one place the last alone counts", ("gather",), instead("scatter_add", _lost_duplicates)
    ),
    "topk-repeats": Planted("top k names one place twice where values are equal", ("top k",), altering("topk", _same_place)),
    "topk-int32": Planted(
        "top k writes its places as 32-bit numbers into the 64-bit tensor", ("top k",), altering("topk", _narrow_places)
    ),
    "sort-unstable": Planted("a stable sort turns equals round", ("sort",), instead("sort argsort", _unstable)),
    "softmax-no-maximum": Planted(
        "softmax does not subtract the largest logit", ("softmax",), instead("_softmax", _no_maximum)
    ),
    "cumsum-overflows": Planted("running sums of integers are made in fp32", ("running sum",), instead("cumsum", _short_sums)),
    "tail-off-by-one": Planted(
        "the last element of an odd block gets its neighbour's product", ("add, subtract, multiply",), altering("mul", _tail)
    ),
    "nan-swallowed": Planted(
        "sum and norm count NaN as zero",
        ("compare and choose",),
        instead("sum linalg_vector_norm _foreach_norm mean", _without_nan),
    ),
    "adamw-no-correction": Planted(
        "fused AdamW forgets bias correction", ("fused AdamW",), instead("_fused_adamw", _no_correction)
    ),
    "silu-backward": Planted(
        "the gradient of silu is halved below -1, the forward is right", ("silu",), altering("silu_backward", _half_gradient)
    ),
    "copy-cut-short": Planted("copies above 4 MiB lose their last 1,024 numbers", ("copy",), instead("copy", _cut_short)),
    "index-add-nothing": Planted("index_add of no rows crashes", ("index_add",), instead("index_add", _crash_on_nothing)),
    "strides-ignored": Planted(
        "a product reads a transposed operand as if it were not", ("matmul",), instead("mm", _blind_to_strides)
    ),
    "empty-expert": Planted(
        "grouped products skip empty groups without counting them",
        ("grouped matmul",),
        instead("_grouped_mm", _shifted_groups),
    ),
    "sums-in-bf16": Planted("bf16 products are summed in bf16", ("matmul",), instead("mm", _low_sums)),
    "memory-slow": Planted("copies within the device take half a second", ("speeds",), instead("copy", _slow)),
}
