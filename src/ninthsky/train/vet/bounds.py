"""How far a floating-point answer may lie from the exact one, per operator and dtype: derived, never fitted.

u is the unit roundoff of a dtype (half its epsilon), and gamma(n) = n u / (1 - n u). An inner product of n terms, added in
whatever order and tree, errs by at most gamma(n) sum |x_i y_i| (Higham, Accuracy and Stability of Numerical Algorithms, 2nd
ed., 2002, sections 3.1 and 4.2). 16-bit dtypes are held to products and sums in fp32 with one rounding at the end, which is
what matrix units of every vendor promise; so their bound is gamma(n) of fp32 plus u of the dtype itself. Where every rounding
is to nearest, n roundings add up like sqrt(n) of them: gamma(8 sqrt(n)) is exceeded with a chance below 2 n exp(-32) (Higham
and Mary 2019, theorem 3.1), and is asked of fp32. The longest sums are asked in whole numbers, too: exact in any order.

The signed mean is judged beside the maximum. Rounding to nearest errs to both sides alike, so over M elements the mean of the
last rounding stays within 5 standard deviations of zero, each at most ulp / sqrt(12) (Higham and Mary 2019, A new approach to
probabilistic rounding error analysis). What truncates, or loses a carry always the same way, is seen there first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST = 500  # elements from which a mean is judged
UNLUCKY = 8.0
DEVIATIONS = 5.0  # two-sided chance of 6e-7 per mean


@dataclass(frozen=True)
class Units:
    """Roundoffs of a dtype as inputs and outputs have it, and of the arithmetic within."""

    dtype: torch.dtype

    @property
    def own(self) -> float:
        """Unit roundoff of the dtype."""
        return torch.finfo(self.dtype).eps / 2

    @property
    def inner(self) -> float:
        """Unit roundoff of the arithmetic within: fp32 for 16-bit dtypes. fp64 is its own reference, which errs as much."""
        return 2.0**-24 if self.low else self.own * (2 if self.dtype == torch.float64 else 1)

    @property
    def low(self) -> bool:
        """Whether the dtype has 16 bits."""
        return self.dtype in (torch.bfloat16, torch.float16)

    @property
    def floor(self) -> float:
        """What underflow may cost: flushing to zero, which fp16 alone cannot afford."""
        info = torch.finfo(self.dtype)
        return info.smallest_normal * info.eps if self.dtype == torch.float16 else info.smallest_normal

    def gamma(self, roundings: float, own: bool = False) -> float:
        """n u / (1 - n u)."""
        nu = roundings * (self.own if own else self.inner)
        return nu / (1 - nu) if nu < 0.5 else math.inf

    def around(self, exact: Tensor, scale: Tensor, roundings: float, own: bool = False, unbiased: bool = False) -> Tensor:
        """Largest error of an answer of `roundings` roundings relative to `scale`, the sum of its terms' sizes."""
        if unbiased and not self.low:
            roundings = min(roundings, UNLUCKY * math.sqrt(roundings))
        within = self.gamma(roundings, own) * scale
        last = self.own * (exact.abs() + within) if self.low else 0.0
        return within + last + self.floor * max(roundings, 1)

    def mean(self, exact: Tensor, scale: Tensor, roundings: float, own: bool, unbiased: bool) -> float:
        """Largest size of the mean error of an answer whose last rounding, or each if `unbiased`, is to nearest."""
        rounded = self.own * 2 / math.sqrt(12)
        if unbiased and not self.low:
            deviation = rounded * scale * math.sqrt(max(roundings, 1)) * (2 if self.dtype == torch.float64 else 1)
            return DEVIATIONS * float(deviation.square().sum().sqrt()) / exact.numel() + self.floor
        within = self.gamma(roundings, own) * float(scale.mean())
        last = DEVIATIONS * rounded * float(exact.square().sum().sqrt()) / exact.numel() if self.low else 0.0
        return within + last + self.floor


Values = Sequence[Tensor]
Scale = Callable[[Values, Tensor], Tensor]  # (inputs, exact answer) in fp64 -> sum of the sizes of its terms
BackScale = Callable[[Values, Tensor], Sequence[Tensor | None]]  # (inputs, upstream gradient) -> the same for each input


@dataclass(frozen=True)
class Rule:
    """The bound of an operator. Without `scale` it is a sum of products, whose sizes are the operator's own answer to the
    absolute values of its inputs; gradients likewise with `back_scale`.

    `roundings` counts those that follow one upon another in one element; `back` in its gradients, for all inputs or each.
    `own`: sums are kept in the dtype itself (scatter-like operators). `unbiased`: every rounding is to nearest.
    """

    roundings: float
    back: float | tuple[float, ...] = 0.0
    scale: Scale | None = None
    back_scale: BackScale | None = None
    own: bool = False
    unbiased: bool = False


@dataclass(frozen=True)
class Error:
    """An answer's errors as shares of what its bound allows: up to 1 is well."""

    largest: float
    mean: float
    note: str = ""

    @property
    def good(self) -> bool:
        """Within both bounds, and finite where it should be."""
        return not self.note and self.largest <= 1 and self.mean <= 1


def judge(answer: Tensor, exact: Tensor, scale: Tensor, units: Units, rule: Rule, roundings: float, mean: bool = True) -> Error:
    """Errors of `answer` (the device's, on the host) against the `exact` one, both of any shape; `mean` judges that too."""
    if answer.shape != exact.shape:
        return Error(math.inf, math.inf, f"shape {list(answer.shape)} where {list(exact.shape)} is right")
    if not exact.numel():
        return Error(0.0, 0.0)
    got = answer.double()
    finite = exact.isfinite() & (exact.abs() <= torch.finfo(units.dtype).max)
    off = got - exact
    if not bool(got[finite].isfinite().all()):
        return Error(math.inf, math.inf, f"{int((~got[finite].isfinite()).sum())} elements are not finite where they should be")
    off, size, where = off[finite], scale[finite], exact[finite]
    if not off.numel():
        return Error(0.0, 0.0)
    largest = float((off.abs() / units.around(where, size, roundings, rule.own, rule.unbiased)).max())
    if off.numel() < FEWEST or not mean:
        return Error(largest, 0.0)
    allowed = units.mean(where, size, roundings, rule.own, rule.unbiased)
    tilt = max(abs(float(off.mean())), abs(float((off * where.sign()).mean())))
    return Error(largest, tilt / allowed)
