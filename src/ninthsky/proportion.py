"""How sure one can be of a share that was counted: the interval printed beside every rate of the project."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion (Wilson 1927), both ends within [0, 1]; (0, 1) when nothing was counted.

    Raises ValueError when `hits` is not between 0 and `total`.
    """
    if not 0 <= hits <= total:
        raise ValueError(f"{hits} of {total} is no proportion")
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, scale = hits / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)
