"""A case is one operator on one set of inputs; it is put to a device in each dtype and each way of lying in memory."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ninthsky.train.vet.bounds import Error, Rule, Units, judge

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NEEDED = (torch.float32, torch.bfloat16)  # what the trainer works in; others count only where the device offers them
LAYOUTS = ("plain", "transposed", "gapped")
ENOUGH = 8  # terms in a gradient's sums from which its mean is judged

Answer = Literal["pass", "fail", "unknown"]
Draw = Callable[[torch.Generator], Sequence[Tensor]]  # fp64 numbers and integers, on the host


@dataclass(frozen=True)
class Case:
    """`run(*inputs)` is any expression of the operator; its first output counts. Floats are differentiated if `back`."""

    name: str
    draw: Draw
    run: Callable[..., Any]
    rule: Rule | None = None  # None: equal to the bit, to the host's answer in the same dtype
    back: bool = False
    dtypes: tuple[torch.dtype, ...] = FLOATS
    layouts: tuple[str, ...] = LAYOUTS
    whole: bool = False  # whole numbers, whose sums fp32 holds in any order: equal to fp64's answer, rounded once


@dataclass(frozen=True)
class Probe:
    """A behaviour that no bound describes: ties, order, extremes, repeats. Raises Wrong with what was seen."""

    name: str
    run: Callable[[torch.device, torch.dtype, torch.Generator], None]
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)


class Wrong(Exception):
    """The device's answer is not the right one; the message says how."""


@dataclass(frozen=True)
class Operator:
    """An operator under the name people know it by. `covers` are torch's names (aten, without overload and underscore)."""

    name: str
    covers: tuple[str, ...]
    tests: tuple[Case | Probe, ...]
    workaround: str
    setting: str = ""  # where the house has a setting for the workaround


@dataclass(frozen=True)
class Finding:
    """One case in one dtype: its errors as shares of the bound; `problem` is empty where all is well."""

    operator: str
    case: str
    dtype: str
    largest: float = 0.0
    mean: float = 0.0
    problem: str = ""
    offered: bool = True  # False: a dtype that the trainer does not need and the device does not have


@dataclass(frozen=True)
class Verdict:
    """What is thought of one operator (or of the golden run, or the speeds), and on what grounds."""

    name: str
    answer: Answer
    problem: str = ""  # the first that was found
    workaround: str = ""
    setting: str = ""  # of run.toml, where the house has one
    tests: int = 0
    largest: float = 0.0  # error as a share of its bound, over all tests that were well
    mean: float = 0.0
    not_offered: tuple[str, ...] = ()  # dtypes that the trainer does not need
    findings: tuple[Finding, ...] = field(default=(), repr=False)


def short(dtype: torch.dtype) -> str:
    """fp32, bf16 ..."""
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}.get(name := str(dtype)[6:], name)


_LACKING = re.compile(r"not implemented|n.t support|not support|unsupported", re.IGNORECASE)


def lacking(raised: Exception) -> bool:
    """Whether a device says that it does not have something, which is no fault; anything else that it raises is one."""
    return isinstance(raised, NotImplementedError) or _LACKING.search(str(raised)) is not None


def put(operator: Operator, test: Case | Probe, dtype: torch.dtype, device: torch.device, seed: int) -> Finding:
    """Puts one test to the device in one dtype. An operator that raises is a finding too, and never stops the others."""
    generator = torch.Generator().manual_seed(seed)
    finding = Finding(operator.name, test.name, short(dtype))
    try:
        if isinstance(test, Probe):
            test.run(device, dtype, generator)
            return finding
        error, where = _put(test, dtype, device, generator)
    except Wrong as wrong:
        return replace(finding, largest=math.inf, problem=str(wrong))
    except Exception as raised:  # whatever a young back end throws is its answer
        text = str(raised).strip().splitlines()[0][:160] if str(raised).strip() else ""
        absent = dtype not in NEEDED and lacking(raised)
        return replace(finding, largest=math.inf, problem=f"{type(raised).__name__}: {text}", offered=not absent)
    problem = ""
    if not error.good:
        problem = error.note or (
            f"largest error {error.largest:.3g} x the bound"
            if error.largest > 1
            else f"mean error {error.mean:.3g} x the bound"
        )
        problem = f"{where}: {problem}"
    return replace(finding, largest=error.largest, mean=error.mean, problem=problem)


def _put(case: Case, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> tuple[Error, str]:
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in case.draw(generator)]
    worst, where = Error(0.0, 0.0), ""
    for layout in case.layouts:
        there = [lie(x, layout, device) for x in inputs]
        for part, error in _errors(case, inputs, there, dtype, generator):
            if max(error.largest, error.mean) > max(worst.largest, worst.mean) or (error.note and not worst.note):
                worst, where = error, f"{part}, {layout}"
            if not error.good:
                return error, f"{part}, {layout}"
    return worst, where


def lie(x: Tensor, layout: str, device: torch.device) -> Tensor:
    """The same numbers on the device: plain, with the last two dimensions swapped in memory, or with gaps of NaN between."""
    if layout == "transposed" and x.dim() >= 2:
        return x.transpose(-1, -2).contiguous().to(device).transpose(-1, -2)
    if layout == "gapped" and x.dim() >= 1 and x.is_floating_point():
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 3), torch.nan, dtype=x.dtype)
        wide[..., 3::2] = x
        return wide.to(device)[..., 3::2]
    return x.to(device)


def _errors(
    case: Case, inputs: Sequence[Tensor], there: Sequence[Tensor], dtype: torch.dtype, generator: torch.Generator
) -> list[tuple[str, Error]]:
    units = Units(dtype)
    if case.rule is None:
        got = first(case.run(*there))
        if case.whole:
            wanted = first(case.run(*[x.double() if x.is_floating_point() else x for x in inputs])).to(got.dtype)
        else:
            wanted = first(case.run(*[x.clone() for x in inputs]))
        return [("forward", equal(got.cpu(), wanted))]
    exact_inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    if not case.back:
        exact = first(case.run(*exact_inputs))
        got = first(case.run(*there)).cpu()
        return [("forward", _judge(case, got, exact, exact_inputs, units))]
    exact_leaves, leaves = leaf(exact_inputs), leaf(there)
    exact = first(case.run(*exact_leaves))
    got = first(case.run(*leaves))
    upstream = torch.randn(exact.shape, dtype=torch.float64, generator=generator).to(got.dtype)
    exact.backward(upstream.double())
    got.backward(upstream.to(got.device))
    errors = [("forward", _judge(case, got.detach().cpu(), exact.detach(), exact_inputs, units))]
    floats = [at for at, x in enumerate(inputs) if x.is_floating_point()]
    scales = _back_scales(case, exact_inputs, upstream.double())
    for place, at in enumerate(floats):
        right, found = exact_leaves[at].grad, leaves[at].grad
        if right is None:
            continue
        if found is None:
            errors.append((f"gradient {place}", Error(math.inf, math.inf, "no gradient")))
            continue
        back = case.rule.back[place] if isinstance(case.rule.back, tuple) else case.rule.back
        scale = scales[at]
        assert scale is not None
        alike = case.rule.unbiased and back >= ENOUGH  # an outer product's elements share too few numbers to be independent
        errors.append((f"gradient {place}", judge(found.cpu(), right, scale, units, case.rule, back, mean=alike)))
    return errors


def _judge(case: Case, got: Tensor, exact: Tensor, inputs: Sequence[Tensor], units: Units) -> Error:
    assert case.rule is not None
    with torch.no_grad():
        if case.rule.scale is not None:
            scale = case.rule.scale(inputs, exact)
        else:
            scale = first(case.run(*[x.abs() if x.is_floating_point() else x for x in inputs]))
    return judge(got, exact, scale.expand(exact.shape), units, case.rule, case.rule.roundings)


def _back_scales(case: Case, inputs: Sequence[Tensor], upstream: Tensor) -> Sequence[Tensor | None]:
    assert case.rule is not None
    if case.rule.back_scale is not None:
        return case.rule.back_scale(inputs, upstream)
    sizes = leaf([x.abs() if x.is_floating_point() else x for x in inputs])
    first(case.run(*sizes)).backward(upstream.abs())
    return [x.grad for x in sizes]


def leaf(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs, cut off from where they came from; gradients are kept for the floats among them."""
    return [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]


def first(out: Any) -> Tensor:
    """The output that counts."""
    tensor: Tensor = out[0] if isinstance(out, (tuple, list)) else out
    return tensor


def equal(got: Tensor, wanted: Tensor) -> Error:
    """Equal to the bit, -0 and NaN included."""
    if got.dtype != wanted.dtype or got.shape != wanted.shape:
        note = f"{short(got.dtype)} {list(got.shape)} where {short(wanted.dtype)} {list(wanted.shape)} is right"
        return Error(math.inf, math.inf, note)
    differs = bits(got) != bits(wanted)
    if wanted.is_floating_point():
        differs &= ~(got.isnan() & wanted.isnan())
    if wrong := int(differs.sum()):
        at = int(differs.flatten().nonzero()[0])
        pair = f"{got.flatten()[at].item()!r} where {wanted.flatten()[at].item()!r} is right"
        return Error(math.inf, math.inf, f"{wrong} of {wanted.numel()} elements differ; element {at} is {pair}")
    return Error(0.0, 0.0)


def bits(x: Tensor) -> Tensor:
    """A tensor's bytes as integers of its width."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.contiguous().view(width) if x.is_floating_point() else x


def check_equal(got: Tensor, wanted: Tensor, what: str = "") -> None:
    """Raises Wrong unless equal to the bit."""
    error = equal(got.detach().cpu(), wanted)
    if error.note:
        raise Wrong(f"{what}: {error.note}" if what else error.note)
