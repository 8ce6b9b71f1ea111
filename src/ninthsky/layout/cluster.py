"""Cards and how they are joined. Every figure has a source and says how certain it is; nothing is filled in silently."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ninthsky.errors import UserError

Certainty = Literal["sure", "likely", "uncertain", "assumed"]


@dataclass(frozen=True)
class Chip:
    """One card. Bandwidths are per card and per direction."""

    name: str
    tflops: float  # dense matrix multiplication in the precision it trains in, peak
    achievable: float  # share of the peak that large matrix multiplications reach
    memory_gb: float  # 10^9 bytes
    memory_tbs: float  # 10^12 bytes/s
    link_gbs: float  # 10^9 bytes/s to a card of its own host
    network_gbs: float  # 10^9 bytes/s to a card of another host
    certainty: Certainty
    source: str
    attention: float = 0.34  # share of the peak that fused attention reaches: 335 of 989 TFLOP/s on h100, 0.5 to 0.73 on a100
    # (FlashAttention-2, arXiv 2307.08691); assumed for all others
    latency_us: float = 10.0  # of one collective per doubling of its group; assumed for every card
    computes_in: int = 2  # bytes of a number in forward and backward


_SHEET = "vendor data sheet; achievable share: stas00/ml-engineering, achievable matmul FLOP/s"
# fmt: off
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # One core of a laptop, so that the same run.toml is cut alike everywhere; `n9 layout --measure` prints this one's.
        Chip("cpu", 0.05, 0.9, 2.0, 0.01, 2.0, 1.25, "assumed", "stand-in: 50 GFLOP/s fp32, 10 Gbit/s network", 0.34, 100.0, 4),
        Chip("a100-40gb", 312, 0.869, 40, 1.555, 300, 25, "sure", _SHEET, 0.6),
        Chip("a100-80gb", 312, 0.869, 80, 2.0, 300, 25, "sure", _SHEET, 0.6),
        Chip("h100", 989, 0.803, 80, 3.35, 450, 50, "sure", _SHEET),
        Chip("h800", 989, 0.803, 80, 3.35, 200, 50, "likely", "vendor; link: arXiv 2412.19437; achievable share of h100"),
        Chip("h200", 989, 0.803, 141, 4.8, 450, 50, "sure", _SHEET),
        Chip("b200", 2250, 0.776, 180, 8.0, 900, 50, "sure", _SHEET),
        Chip("mi300x", 1307, 0.514, 192, 5.3, 448, 50, "sure", _SHEET),
        Chip("ascend-910b", 376, 0.80, 64, 1.6, 196, 25, "uncertain", "secondary, 354 to 376 TFLOP/s; share assumed"),
        Chip("ascend-910c", 752, 0.80, 128, 3.2, 392, 50, "uncertain", "secondary: CloudMatrix paper; share assumed"),
    )
}
# fmt: on


@dataclass(frozen=True)
class Cluster:
    """Equal hosts of equal cards."""

    hosts: int
    ranks_per_host: int
    chip: Chip
    memory_gb: float  # that a rank may use, 10^9 bytes

    @property
    def ranks(self) -> int:
        return self.hosts * self.ranks_per_host


def chip_named(name: str) -> Chip:
    """Raises UserError N9-LAY-001 for a card that is not in the table."""
    try:
        return CHIPS[name]
    except KeyError:
        raise UserError(
            "N9-LAY-001", f"no card {name!r} in the table", "[layout] chip", f"one of: {', '.join(CHIPS)}"
        ) from None


@dataclass(frozen=True)
class Measured:
    """What this machine's one thread does now. Never part of a lasting output: it differs from minute to minute."""

    gflops: float  # fp32 matrix multiplication, 10^9/s
    copy_gbs: float  # 10^9 bytes read and written per second


def measure(size: int = 512, repeats: int = 5) -> Measured:
    """Best of a few short runs of numpy on this machine (as many threads as its BLAS takes). About 0.1 s."""
    left = np.full((size, size), 0.5, np.float32)
    block = np.zeros(4_000_000, np.float32)
    target = np.empty_like(block)
    multiply, copy = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        left @ left
        middle = time.perf_counter()
        np.copyto(target, block)
        multiply.append(middle - begin)
        copy.append(time.perf_counter() - middle)
    return Measured(2.0 * size**3 / min(multiply) / 1e9, 2.0 * block.nbytes / min(copy) / 1e9)
