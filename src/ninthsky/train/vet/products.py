"""Matrix products, experts' grouped products, and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ninthsky.train.vet.bounds import Rule, Units, Values
from ninthsky.train.vet.case import FLOATS, Case, Operator, Probe, Wrong
from ninthsky.train.vet.draws import all_of, given, normal, small

TRAINED = (torch.float32, torch.bfloat16)
MATRIX = (torch.float32, torch.bfloat16, torch.float16)

ACCUMULATE = (
    "ask the back end for products that are exact for their dtype and summed in fp32 (its switches for reduced-precision sums, "
    "TF32, HF32: off); else detour the operator to the host"
)


def _mm(rows: int, inner: int, columns: int, dtypes: tuple[torch.dtype, ...] = FLOATS, layouts: int = 3) -> Case:
    return Case(
        f"{rows} x {inner} x {columns}",
        all_of(normal(rows, inner), normal(inner, columns)),
        torch.mm,
        Rule(inner, (columns, rows), unbiased=True),
        back=rows > 0,
        dtypes=dtypes,
        layouts=("plain", "transposed", "gapped")[:layouts],
    )


def _weights_moved(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """A weight that changed in place must be the one that multiplies: some back ends keep a packed copy."""
    x, weight = (torch.randn(64, 64, generator=generator).to(dtype) for _ in range(2))
    there, moved = x.to(device), weight.to(device, copy=True)
    for round_ in range(3):
        got = F.linear(there, moved).cpu().double()
        exact = F.linear(x.double(), weight.double())
        allowed = Units(dtype).around(exact, F.linear(x.double().abs(), weight.double().abs()), 64)
        if bool(((got - exact).abs() > allowed).any()):
            raise Wrong(f"after {round_} changes in place the product is not the new weight's")
        change = torch.randn(64, 64, generator=generator).to(dtype)
        weight.copy_(change)
        moved.copy_(change)


def _not_finite(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """One NaN or infinity in a row must come out in all of that row's products, and nowhere else."""
    for bad in (math.nan, math.inf):
        x = torch.randn(33, 65, generator=generator).to(dtype)
        x[7, 50] = bad
        got = torch.mm(x.to(device), torch.rand(65, 31, generator=generator).add(0.5).to(dtype).to(device)).cpu()
        if not bool((~got[7].isfinite()).all()) or not bool(got[torch.arange(33) != 7].isfinite().all()):
            raise Wrong(f"a {bad} in one row: {int((~got.isfinite()).sum())} of 31 products are not finite")


def grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows [N, K] in groups that end at `ends`, each times its matrix [experts, K, M]; in fp64 by a loop, the reference."""
    if x.dtype != torch.float64:
        return F.grouped_mm(x, weight, offs=ends.to(torch.int32))
    starts = [0, *ends.tolist()[:-1]]
    parts = [x[start:end] @ weight[at] for at, (start, end) in enumerate(zip(starts, ends.tolist(), strict=True))]
    return torch.cat(parts)


def _experts(name: str, counts: Sequence[int], inner: int = 64, columns: int = 96) -> Case:
    ends = torch.tensor(counts).cumsum(0).tolist()
    return Case(
        name,
        all_of(normal(ends[-1], inner), normal(len(counts), inner, columns), given(*ends)),
        grouped,
        Rule(inner, (columns, max(counts) + 1), unbiased=True),
        back=ends[-1] > 0,
        dtypes=MATRIX,
        layouts=("plain",),  # grouped products want rows that lie together
    )


def _whole(name: str, run: object, *sources: object, layouts: int = 3) -> Case:
    return Case(name, all_of(*sources), run, dtypes=MATRIX[:2], layouts=("plain", "transposed", "gapped")[:layouts], whole=True)  # type: ignore[arg-type]


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def _prefix_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    places = torch.arange(q.shape[2], device=q.device)
    mask = (places[None, :] <= places[:, None]) | (places < q.shape[2] // 3)[None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def _parts(values: Values, prefix: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values with one key per query head; probabilities; how much an error of a score weighs."""
    q, k, v = values[0].detach(), values[1].detach(), values[2].detach()
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    places = torch.arange(q.shape[2])
    seen = places[None, :] <= places[:, None]
    if prefix:
        seen = seen | (places < q.shape[2] // 3)[None, :]
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
    sizes = (q.abs() @ k.abs().mT / math.sqrt(q.shape[-1])).masked_fill(~seen, 0.0)
    return q, k, v, scores.softmax(-1), 1 + 2 * sizes.amax(-1, keepdim=True)


def _attention_case(name: str, shape: tuple[int, int, int, int, int], prefix: bool, low: bool) -> Case:
    """A score errs by gamma(dim) |q||k|, a probability by that and the softmax's own roundings; 16-bit back ends may round
    scores, probabilities and their gradients once each, which then weighs more than all of fp32's roundings."""
    batch, heads, kv_heads, length, dim = shape

    def scale(values: Values, exact: Tensor) -> Tensor:
        _, _, v, chances, weight = _parts(values, prefix)
        return chances @ v.abs() * weight

    def back(values: Values, upstream: Tensor) -> list[Tensor | None]:
        q, k, v, chances, weight = _parts(values, prefix)
        grad = upstream.abs()
        into = chances * (grad @ v.abs().mT)
        into = (into + chances * into.sum(-1, keepdim=True)) * weight / math.sqrt(dim)
        group = (batch, kv_heads, heads // kv_heads, length, dim)
        back_k, back_v = (x.view(group).sum(2) for x in (into.mT @ q.abs(), (chances * weight).mT @ grad))
        return [into @ k.abs(), back_k, back_v]

    roundings = 6.0 if low else dim + length + 8.0
    return Case(
        name,
        all_of(*(normal(batch, count, length, dim) for count in (heads, kv_heads, kv_heads))),
        _prefix_attention if prefix else _attention,
        Rule(roundings, roundings, scale, back, own=low),
        back=True,
        dtypes=(torch.bfloat16, torch.float16) if low else (torch.float32,),
        layouts=("plain", "transposed"),
    )


_ATTENTIONS = tuple(
    _attention_case(f"{name}{' in 16 bits' if low else ''}", shape, prefix, low)
    for low in (False, True)
    for name, shape, prefix in (
        ("causal, odd length", (2, 2, 2, 37, 16), False),
        ("grouped queries", (1, 4, 2, 64, 32), False),
        ("prefix mask", (2, 4, 2, 45, 16), True),
    )
)

OPERATORS = (
    Operator(
        "matmul",
        ("mm", "addmm"),
        (
            *(_mm(*sizes) for sizes in ((1, 1, 1), (7, 13, 5), (64, 64, 64), (0, 8, 3))),
            *(_mm(*sizes, dtypes=MATRIX) for sizes in ((33, 4099, 17), (257, 129, 65))),
            _mm(515, 513, 511, TRAINED, layouts=1),
            Case(
                "added to",
                all_of(normal(33, 17), normal(33, 129), normal(129, 17)),
                lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2.0),
                Rule(132, unbiased=True),
                dtypes=MATRIX,
            ),
            _whole("whole numbers, 129 x 4099 x 65", torch.mm, small(8, 129, 4099), small(8, 4099, 65)),
            Probe("weight changed in place", _weights_moved, TRAINED),
            Probe("NaN and infinity", _not_finite, TRAINED),
        ),
        ACCUMULATE,
    ),
    Operator(
        "linear",
        ("linear", "t"),
        (
            Case(
                "3 x 19 x 70 -> 45",
                all_of(normal(3, 19, 70), normal(45, 70)),
                F.linear,
                Rule(70, (45, 57), unbiased=True),
                back=True,
            ),
        ),
        ACCUMULATE,
    ),
    Operator(
        "batched matmul",
        ("bmm", "baddbmm"),
        (
            Case(
                "5 of 17 x 130 x 9",
                all_of(normal(5, 17, 130), normal(5, 130, 9)),
                torch.bmm,
                Rule(130, (9, 17), unbiased=True),
                back=True,
            ),
            Case(
                "added to",
                all_of(normal(3, 17, 31), normal(3, 17, 65), normal(3, 65, 31)),
                lambda c, a, b: torch.baddbmm(c, a, b, beta=0.5, alpha=2.0),
                Rule(68, unbiased=True),
                dtypes=MATRIX,
            ),
            _whole("whole numbers, 7 of 33 x 515 x 17", torch.bmm, small(8, 7, 33, 515), small(8, 7, 515, 17)),
            Case("none of them", all_of(normal(0, 4, 8), normal(0, 8, 4)), torch.bmm, Rule(8)),
        ),
        ACCUMULATE,
    ),
    Operator(
        "matrix times vector",
        ("mv",),
        (
            Case("701 x 333", all_of(normal(701, 333), normal(333)), torch.mv, Rule(333, (2, 701), unbiased=True), back=True),
            _whole("whole numbers, 65 x 5003", torch.mv, small(8, 65, 5003), small(8, 5003)),
        ),
        ACCUMULATE,
    ),
    Operator(
        "grouped matmul",
        ("_grouped_mm",),
        (
            _experts("even groups", (32, 32, 32, 32)),
            _experts("odd groups", (1, 17, 5, 101)),
            _experts("empty groups", (0, 23, 0, 0, 41, 7, 0)),
            _experts("all rows to one expert", (0, 0, 77, 0)),
            _experts("no rows at all", (0, 0, 0)),
            _whole("whole numbers", grouped, small(8, 131, 512), small(8, 5, 512, 48), given(17, 17, 90, 91, 131), layouts=1),
        ),
        "multiply expert by expert: a loop over the groups in place of F.grouped_mm in model/experts.py",
    ),
    Operator(
        "attention",
        (
            "scaled_dot_product_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward",
            "_safe_softmax",
        ),
        _ATTENTIONS,
        "attention by plain products: torch.nn.attention.sdpa_kernel(SDPBackend.MATH) around the run",
    ),
)
