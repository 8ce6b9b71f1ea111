"""Along a dimension: softmax, sums, means, norms, running sums."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ninthsky.train.vet.bounds import Rule, Values
from ninthsky.train.vet.case import Case, Operator, Probe, Wrong, check_equal
from ninthsky.train.vet.draws import all_of, normal, small, whole

WIDE = (torch.float32, torch.float64)
TRAINED = (torch.float32, torch.bfloat16)
SINGLE = (torch.float32,)
HOST = "detour it to the host: n9 train vet --on-host NAME shows whether that mends it"


def _size(values: Values, exact: Tensor) -> Tensor:
    return exact.abs()


def _norm_back(values: Values, upstream: Tensor) -> list[Tensor | None]:
    x = values[0].detach()
    return [upstream.abs() * x.abs() / x.norm(dim=-1, keepdim=True)]


def _softmax_scale(values: Values, exact: Tensor) -> Tensor:
    x = values[0].detach()
    return exact * (1 + (x - x.amax(-1, keepdim=True)).abs())


def _softmax_back(values: Values, upstream: Tensor) -> list[Tensor | None]:
    x = values[0].detach()
    chances = x.softmax(-1)
    grad = upstream.abs()
    size = chances * (grad + (chances * grad).sum(-1, keepdim=True))
    return [size * (1 + (x - x.amax(-1, keepdim=True)).abs().clamp(max=700))]


def _softmax(name: str, rows: int, columns: int, times: float = 1.0) -> tuple[Case, Case]:
    """Its gradient takes the rounded probabilities, in 16 bits as in 32: there the few roundings of the dtype count."""
    draw = all_of(normal(rows, columns, times=times))
    deep = Rule(columns + 8, 2 * columns + 8, _softmax_scale, _softmax_back)
    shallow = Rule(3, 6, _softmax_scale, _softmax_back, own=True)
    soft = lambda x: x.softmax(-1)  # noqa: E731
    low = (torch.bfloat16, torch.float16)
    return Case(name, draw, soft, deep, True, WIDE), Case(f"{name} in 16 bits", draw, soft, shallow, True, low)


def _softmax_extremes(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """Logits beyond exp's range, and rows that see one place only: nothing may overflow."""
    big = torch.tensor([[3e4, 2e4, -3e4], [-3e4, -3e4, -3e4], [500.0, 500.0, -math.inf]], dtype=dtype)
    got = big.to(device).softmax(-1).cpu().float()
    wanted = torch.tensor([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]])
    if not torch.allclose(got, wanted, rtol=8 * torch.finfo(dtype).eps, atol=0):
        raise Wrong(f"softmax of large logits gives {got.tolist()}")


def _whole_numbers(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """Sums that the dtype could not hold on the way, but fp32 can, and that end where it can again."""
    count = 4096
    ones = torch.ones(4, count, dtype=dtype)
    check_equal(ones.to(device).sum(1), torch.full((4,), float(count), dtype=dtype), "sum of 4096 ones")
    check_equal(ones.to(device).mean(), torch.ones((), dtype=dtype), "mean of ones")
    check_equal(ones.float().to(device).sum(dtype=torch.float64), torch.tensor(4.0 * count, dtype=torch.float64), "fp64 sum")


def _counts(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """Running sums of how many rows each expert gets, int64 to int32, up to the largest int32."""
    for counts in (
        torch.randint(0, 5000, (97,), generator=generator),
        torch.tensor([2**24, 1, 1, 2**30, 3, 5]),
        torch.tensor([2**31 - 1, 0, 0]),
        torch.full((70_000,), 1),
        torch.empty(0, dtype=torch.int64),
    ):
        check_equal(counts.to(device).cumsum(0, dtype=torch.int32), counts.cumsum(0, dtype=torch.int32), "int32 running sum")
        check_equal(counts.to(device).cumsum(0), counts.cumsum(0), "int64 running sum")


OPERATORS = (
    Operator(
        "softmax",
        ("_softmax", "_softmax_backward_data", "softmax"),
        (
            *_softmax("53 x 129", 53, 129),
            *_softmax("large logits", 11, 300, times=60.0),
            *_softmax("long rows", 3, 5003),
            Probe("extremes", _softmax_extremes, TRAINED),
        ),
        "write it as exp(x - max(x)) over its sum, in fp32",
    ),
    Operator(
        "sum and mean",
        ("sum", "mean", "_local_scalar_dense"),
        (
            Case("all of 100,003", all_of(normal(100_003)), lambda x: x.sum(), Rule(100_003, 1), back=True, dtypes=TRAINED),
            Case("rows of 4,099", all_of(normal(601, 4099)), lambda x: x.sum(-1), Rule(4099, unbiased=True), dtypes=TRAINED),
            Case("columns", all_of(normal(129, 1003)), lambda x: x.sum(0), Rule(129, 1, unbiased=True), back=True),
            Case("mean of rows", all_of(normal(601, 513)), lambda x: x.mean(-1), Rule(516, 4, unbiased=True), back=True),
            Case("whole numbers, 100,003 of them", all_of(small(100, 100_003)), lambda x: x.sum(), dtypes=TRAINED, whole=True),
            Case(
                "whole numbers, long rows and columns",
                all_of(small(100, 35, 3001)),
                lambda x: torch.cat((x.sum(0), x.sum(1))),
                dtypes=TRAINED,
                whole=True,
            ),
            Case("of nothing", all_of(normal(0, 5)), lambda x: x.sum(0), dtypes=SINGLE),
            Probe("sums that the dtype cannot hold on the way", _whole_numbers, TRAINED),
        ),
        "sum in fp32: x.sum(dtype=torch.float32)",
    ),
    Operator(
        "norm",
        ("linalg_vector_norm", "_foreach_norm"),
        (
            Case(
                "of rows",
                all_of(normal(301, 517)),
                lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
                Rule(520, 1040, _size, _norm_back),
                back=True,
                dtypes=WIDE,
            ),
            Case(
                "of rows in 16 bits",
                all_of(normal(301, 517)),
                lambda x: torch.linalg.vector_norm(x, dim=-1),
                Rule(520, scale=_size),
                dtypes=(torch.bfloat16,),
            ),
            Case(
                "foreach",
                all_of(normal(40_001), normal(3, 5)),
                lambda a, b: torch.stack(torch._foreach_norm([a, b])),
                Rule(40_010, scale=_size),
                dtypes=TRAINED,
            ),
        ),
        "square and sum in fp32",
    ),
    Operator(
        "running sum",
        ("cumsum",),
        (Probe("of counts", _counts),),
        "sum the counts on the host: there is one per expert",
    ),
    Operator(
        "running maximum",
        ("cummax",),
        (
            Case("of whole numbers", all_of(whole(1000, 7, 301)), lambda x: x.cummax(1).values, dtypes=SINGLE),
            Case("places", all_of(normal(5, 97)), lambda x: x.cummax(1).indices, dtypes=SINGLE),
        ),
        HOST,
    ),
)
