"""Numbers that cases are made of: always drawn on the host in fp64 or int64, so that every device is asked the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

Source = Callable[[Generator], Tensor]


def normal(*shape: int, times: float = 1.0) -> Source:
    """Standard normal numbers times `times`."""
    return lambda g: torch.randn(shape, dtype=torch.float64, generator=g) * times


def between(low: float, high: float, *shape: int) -> Source:
    """Uniform numbers."""
    return lambda g: torch.rand(shape, dtype=torch.float64, generator=g) * (high - low) + low


def spread(low: float, high: float, *shape: int) -> Source:
    """Positive numbers of all sizes from 10^low to 10^high."""
    return lambda g: 10.0 ** (torch.rand(shape, dtype=torch.float64, generator=g) * (high - low) + low)


def whole(high: int, *shape: int) -> Source:
    """Integers from 0 to `high`, which is left out: with more places than integers, many come twice."""
    return lambda g: torch.randint(0, high, shape, generator=g)


def small(size: int, *shape: int) -> Source:
    """Whole numbers from -`size` to `size`, as floats."""
    return lambda g: torch.randint(-size, size + 1, shape, generator=g).double()


def order(count: int) -> Source:
    """0 to `count` - 1 in a drawn order."""
    return lambda g: torch.randperm(count, generator=g)


def truth(*shape: int) -> Source:
    """Booleans, half of them True."""
    return lambda g: torch.rand(shape, generator=g) < 0.5


def given(*values: int) -> Source:
    """These integers."""
    return lambda g: torch.tensor(values)


def all_of(*sources: Source) -> Callable[[Generator], Sequence[Tensor]]:
    """One input from each source."""
    return lambda g: [source(g) for source in sources]
