"""Element by element, and reductions. Allowances of functions are twice the worst that a vendor states: 2 ulp, which is 4 u,
for exp, sin, cos, rsqrt (CUDA C++ Programming Guide, Mathematical Functions); add, subtract and multiply are IEEE 754's."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ninthsky.train.vet.bounds import Rule, Values
from ninthsky.train.vet.case import Case, Operator, Probe, Wrong, check_equal
from ninthsky.train.vet.draws import all_of, between, normal, spread, truth, whole

WIDE = (torch.float32, torch.float64)
TRAINED = (torch.float32, torch.bfloat16)
SINGLE = (torch.float32,)
HOST = "detour it to the host: n9 train vet --on-host NAME shows whether that mends it"
FULL = "compute in fp32"


def _size(values: Values, exact: Tensor) -> Tensor:
    return exact.abs()


def _one(values: Values, exact: Tensor) -> Tensor:
    return torch.ones_like(exact)


def _silu_back(values: Values, upstream: Tensor) -> list[Tensor | None]:
    x = values[0].detach()
    gate = x.sigmoid()
    return [upstream.abs() * gate * (1 + x.abs())]  # 1 - gate errs by u, however small it is


def _sigmoid_back(values: Values, upstream: Tensor) -> list[Tensor | None]:
    gate = values[0].detach().sigmoid()
    return [upstream.abs() * gate * (2 - gate)]


def _exp_back(values: Values, upstream: Tensor) -> list[Tensor | None]:
    return [upstream.abs() * values[0].detach().exp()]


def _log_back(values: Values, upstream: Tensor) -> list[Tensor | None]:
    return [upstream.abs() / values[0].detach().abs()]


def _turn_back(values: Values, upstream: Tensor) -> list[Tensor | None]:
    return [upstream.abs()]


def _rsqrt_back(values: Values, upstream: Tensor) -> list[Tensor | None]:
    return [upstream.abs() * values[0].detach() ** -1.5]


def _div_back(values: Values, upstream: Tensor) -> list[Tensor | None]:
    a, b = (x.detach() for x in values)
    return [upstream.abs() / b.abs(), upstream.abs() * a.abs() / b**2]


def _not_finite(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """NaN and infinity must not be swallowed: the trainer's vote on a bad gradient rests on them."""
    x = torch.randn(1000, generator=generator).to(dtype)
    for bad in (math.nan, math.inf, -math.inf):
        for at in (0, 511, 999):
            y = x.clone()
            y[at] = bad
            there = y.to(device)
            for name, got in (
                ("sum", there.sum()),
                ("norm", torch.linalg.vector_norm(there)),
                ("foreach norm", torch._foreach_norm([there])[0]),
                ("product with one", there.mul(1.0)[at]),
                ("mean", there.mean()),
            ):
                if bool(got.isfinite()):
                    raise Wrong(f"{name} of {bad} at {at} is {float(got)}")
            for name, many in (("isnan", there.isnan()), ("isfinite", ~there.isfinite())):
                if int(many.sum()) != (bad != bad if name == "isnan" else 1):
                    raise Wrong(f"{name} does not see {bad}")
    y = x.clone()
    y[13] = math.nan
    for name, value in (("amax", y.to(device).amax()), ("max", y.to(device).max()), ("clamp", y.to(device).clamp(-1, 1)[13])):
        if not math.isnan(float(value)):
            raise Wrong(f"{name} swallows NaN: {float(value)}")


def _denormals(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """Numbers below the smallest normal one are kept or flushed to zero, nothing else; normal ones beside them are kept."""
    info = torch.finfo(dtype)
    tiny = torch.tensor([info.smallest_normal * share for share in (0.75, 0.5, 0.25, -0.5)], dtype=torch.float64).to(dtype)
    normal_ = torch.full((3,), info.smallest_normal * 4, dtype=dtype)
    x = torch.cat((tiny, normal_))
    for name, run in (("times one", lambda v: v * 1.0), ("half", lambda v: v * 0.5), ("sum with zero", lambda v: v + 0.0),
                      ("twice", lambda v: v * 2.0)):  # fmt: skip
        got, wanted = run(x.to(device)).cpu(), run(x)
        if not bool(((got == wanted) | ((got == 0) & (wanted.abs() <= 2 * info.smallest_normal))).all()):
            raise Wrong(f"{name}: {got.tolist()} where {wanted.tolist()} (or zero for the smallest) is right")


def _in_place(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """In place means the storage itself, seen through every view of it, and no byte beside it."""
    x = torch.randn(9, 11, generator=generator).to(dtype)
    far = x.to(device, copy=True)
    view, row = far.t(), far[4]
    far[:, 3].zero_()
    row.add_(1.0)
    view[5].mul_(-2.0)
    far[2:4, ::2].fill_(7.0)
    y = x.clone()
    y[:, 3].zero_()
    y[4].add_(1.0)
    y.t()[5].mul_(-2.0)
    y[2:4, ::2].fill_(7.0)
    for name, got, wanted in (("tensor", far, y), ("transposed view", view, y.t()), ("row", row, y[4])):
        check_equal(got, wanted.contiguous(), name)


def _exact(name: str, run: object, *sources: object, dtypes: tuple[torch.dtype, ...] = TRAINED) -> Case:
    return Case(name, all_of(*sources), run, dtypes=dtypes)  # type: ignore[arg-type]


_A, _B = normal(37, 41), normal(37, 41)

OPERATORS = (
    Operator(
        "add, subtract, multiply",
        ("add", "sub", "mul", "neg", "square", "abs", "_foreach_add", "_foreach_mul", "lerp"),
        (
            _exact("a + b", torch.add, _A, _B, dtypes=(*TRAINED, torch.float16, torch.float64)),
            _exact("a - b", torch.sub, _A, _B),
            _exact("a b", torch.mul, _A, _B, dtypes=(*TRAINED, torch.float16, torch.float64)),
            _exact("row + column", lambda a, b: a[:, :1] + b[:1], _A, _B),
            _exact("2 a - 1, -a, a squared", lambda a: torch.stack((a * 2.0 - 1.0, -a, a.square(), a.abs())), _A),
            _exact("foreach", lambda a, b: torch.cat(torch._foreach_mul(torch._foreach_add([a, b], [b, a]), 0.5)), _A, _B),
            Case(
                "a + b (c - a)",
                all_of(_A, between(0, 1, 37, 41), _B),
                lambda a, w, b: torch.lerp(a, b, w),
                Rule(6, scale=lambda v, e: v[0].abs() + v[2].abs()),
                dtypes=TRAINED,
            ),
            Probe("in place, through views", _in_place, TRAINED),
            Probe("denormals", _denormals, TRAINED),
        ),
        HOST,
    ),
    Operator(
        "divide",
        ("div", "reciprocal", "floor_divide", "remainder"),
        (
            Case(
                "a / b",
                all_of(normal(50, 33), spread(-3, 3, 50, 33)),
                torch.div,
                Rule(3, (3, 6), _size, _div_back),
                back=True,
                dtypes=WIDE,
            ),
            Case(
                "a / b in 16 bits",
                all_of(normal(50, 33), spread(-2, 2, 50, 33)),
                torch.div,
                Rule(3, scale=_size),
                dtypes=(torch.bfloat16, torch.float16),
            ),
            Case("1 / a", all_of(spread(-4, 4, 2001)), torch.reciprocal, Rule(3, scale=_size), dtypes=TRAINED),
            Case("a / 7", all_of(_A), lambda a: a / 7.0, Rule(3, scale=_size)),
            _exact(
                "whole numbers, rounded down",
                lambda a: torch.stack((a // 7, a.div(32, rounding_mode="floor"), a % 7)),
                whole(10_000, 999),
                dtypes=SINGLE,
            ),
        ),
        HOST,
    ),
    Operator(
        "multiply and add",
        ("addcmul",),
        (
            Case(
                "a - b c",
                all_of(_A, _B, normal(37, 41)),
                lambda a, b, c: a.addcmul(b, c, value=-1.0),
                Rule(
                    4,
                    4,
                    lambda v, e: v[0].abs() + (v[1] * v[2]).abs(),
                    lambda v, g: [g.abs(), (g * v[2].detach()).abs(), (g * v[1].detach()).abs()],
                ),
                back=True,
            ),
        ),
        "write it as a product and a sum",
    ),
    Operator(
        "exp and log",
        ("exp", "log", "logsumexp", "_log_softmax"),
        (
            Case("exp", all_of(between(-80, 10, 4001)), torch.exp, Rule(4, 8, _size, _exp_back), back=True, dtypes=WIDE),
            Case(
                "exp in 16 bits",
                all_of(between(-8, 10, 401)),
                torch.exp,
                Rule(4, scale=_size),
                dtypes=(torch.bfloat16, torch.float16),
            ),  # too few for a mean: of 16-bit numbers this large there are few that differ
            Case("log", all_of(spread(-30, 30, 4001)), torch.log, Rule(4, 4, _size, _log_back), back=True, dtypes=WIDE),
            Case("log near 1", all_of(between(0.9, 1.1, 2001)), torch.log, Rule(4, scale=_size), dtypes=WIDE),
            Case(
                "log of a sum of exps",
                all_of(normal(9, 301, times=20)),
                lambda x: x.logsumexp(-1),
                Rule(310, scale=lambda v, e: 1 + e.abs()),
                dtypes=WIDE,
            ),
            Case(
                "log softmax",
                all_of(normal(9, 301, times=5)),
                lambda x: x.log_softmax(-1),
                Rule(310, scale=lambda v, e: 1 + e.abs() + v[0].abs().amax(-1, keepdim=True)),
                dtypes=WIDE,
            ),
        ),
        HOST,
    ),
    Operator(
        "sine and cosine",
        ("sin", "cos", "pow"),
        (
            Case(
                "angles up to 32,768",
                all_of(between(-32_768, 32_768, 8001)),
                lambda x: torch.stack((x.sin(), x.cos())),
                Rule(4, scale=_one),
                dtypes=WIDE,
            ),
            Case("gradient", all_of(between(-100, 100, 2001)), torch.sin, Rule(4, 6, _one, _turn_back), back=True, dtypes=WIDE),
            Case(
                "10,000 to the power of x",
                all_of(between(0, 1, 2001)),
                lambda x: 10_000.0**x,
                Rule(16, scale=_size),
                dtypes=WIDE,
            ),
            Case("x squared, cubed", all_of(_A), lambda x: torch.stack((x**2, x**3)), Rule(4, scale=_size), dtypes=WIDE),
        ),
        "make the table of positions on the host and copy it: Decoder._rope",
    ),
    Operator(
        "roots",
        ("rsqrt", "sqrt"),
        (
            Case(
                "1 / root", all_of(spread(-12, 12, 4001)), torch.rsqrt, Rule(4, 12, _size, _rsqrt_back), back=True, dtypes=WIDE
            ),
            Case("root", all_of(spread(-12, 4, 4001)), torch.sqrt, Rule(3, scale=_size), dtypes=WIDE),
        ),
        FULL,
    ),
    Operator(
        "sigmoid",
        ("sigmoid", "sigmoid_backward"),
        (
            Case(
                "scores",
                all_of(normal(301, 17, times=3)),
                torch.sigmoid,
                Rule(8, 12, _size, _sigmoid_back),
                back=True,
                dtypes=WIDE,
            ),
            Case(
                "far out",
                all_of(between(-85, 85, 1001)),
                torch.sigmoid,
                Rule(8, 12, _size, _sigmoid_back),
                back=True,
                dtypes=WIDE,
            ),
        ),
        FULL,
    ),
    Operator(
        "silu",
        ("silu", "silu_backward"),
        (
            Case(
                "gates", all_of(normal(99, 70, times=3)), torch.nn.functional.silu, Rule(10, 14, _size, _silu_back), back=True
            ),
            Case(
                "far out",
                all_of(between(-60, 60, 1001)),
                torch.nn.functional.silu,
                Rule(10, 14, _size, _silu_back),
                back=True,
                dtypes=TRAINED,
            ),
        ),
        "write it as x sigmoid(x)",
    ),
    Operator(
        "compare and choose",
        (
            "where",
            "masked_fill",
            "clamp",
            "clamp_min",
            "sign",
            "amax",
            "max",
            "argmax",
            "any",
            "all",
            "eq",
            "ne",
            "le",
            "lt",
            "ge",
            "gt",
            "bitwise_and",
            "bitwise_or",
            "bitwise_not",
            "__and__",
            "__or__",
            "triu",
            "tril",
            "isnan",
            "isfinite",
            "is_nonzero",
        ),
        (
            _exact("where", torch.where, truth(37, 41), _A, _B),
            _exact("masked fill", lambda m, a: a.masked_fill(m, -torch.inf), truth(37, 41), _A),
            _exact(
                "clamp, sign, largest",
                lambda a: torch.cat((a.clamp(-0.5, 0.5), a.clamp_min(0.0), a.sign(), a.amax(1, True).expand_as(a))),
                _A,
            ),
            _exact("place of the largest", lambda a: a.argmax(-1), normal(53, 301), dtypes=SINGLE),
            _exact("place of the first among equals", lambda a: a.argmax(-1), whole(7, 53, 301), dtypes=SINGLE),
            _exact(
                "comparisons",
                lambda a, b: torch.stack((a < b, a <= b, a >= b, a != b, (a == b) | (a > 3) & (b < 2), ~(a > b))),
                whole(5, 999),
                whole(5, 999),
                dtypes=SINGLE,
            ),
            _exact("any, all", lambda a: torch.stack((a.any(), a.all(), a[:0].any(), a[:0].all())), truth(999), dtypes=SINGLE),
            _exact("triangles", lambda a: torch.stack((a.triu(1), a.tril(-1))), normal(33, 33)),
            Probe("NaN and infinity are not swallowed", _not_finite, TRAINED),
        ),
        HOST,
    ),
)
