"""The quick test of a card, a few seconds long, for a guard that must decide whether to keep it: `n9 train vet --quick`.

Two questions whose right answers are known to the bit. Products of whole numbers small enough that every sum is exact in fp32
whatever the order: their digest is the same on every sound device, so two cards can be compared without a third. And memory:
a pattern that depends on the address, then its complement, written and read back in blocks.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch
import xxhash
from torch import Tensor

from ninthsky.train.step.device import synchronize

FORMAT = 1  # of the digests: other numbers, another format
ROWS, INNER, COLUMNS = 509, 512, 515  # odd, so that no block comes out even
BLOCK = 16 << 20  # bytes
BLOCKS = 4


@dataclass(frozen=True)
class Quick:
    """The answer. `digests` are (device's, right one) for each dtype; `problem` is empty on a sound card."""

    format: int
    device: str
    good: bool
    problem: str
    digests: dict[str, tuple[str, str]]
    products: int
    memory_bytes: int
    seconds: float

    def line(self) -> dict[str, object]:
        """As one JSON object."""
        return asdict(self)


def quick(device: torch.device, seconds: float = 2.0) -> Quick:
    """Products for about `seconds`, then 64 MiB of memory four ways. Whatever the device raises is its answer, too."""
    begin = time.perf_counter()
    digests: dict[str, tuple[str, str]] = {}
    done, problem, checked = 0, "", 0
    try:
        done, problem = _products(device, seconds, digests)
        if not problem:
            checked, problem = _memory(device)
    except Exception as raised:  # a card that cannot do this has answered
        problem = f"{type(raised).__name__}: {str(raised).splitlines()[0][:160] if str(raised) else ''}"
    return Quick(FORMAT, str(device), not problem, problem, digests, done, checked, round(time.perf_counter() - begin, 3))


def digest(x: Tensor) -> str:
    """xxh3 of the bytes."""
    return xxhash.xxh3_128_hexdigest(x.contiguous().view(-1).view(torch.uint8).numpy().data)


def _products(device: torch.device, seconds: float, digests: dict[str, tuple[str, str]]) -> tuple[int, str]:
    generator = torch.Generator().manual_seed(FORMAT)
    a, b = (torch.randint(-8, 9, shape, generator=generator) for shape in ((ROWS, INNER), (INNER, COLUMNS)))
    exact = a.double() @ b.double()  # at most 512 x 64: whole numbers far below 2^53
    done = 0
    for dtype in (torch.float32, torch.bfloat16):
        x, y, right = a.to(dtype).to(device), b.to(dtype).to(device), exact.to(dtype)
        first = torch.mm(x, y)
        name = str(dtype).removeprefix("torch.")
        digests[name] = (digest(first.cpu()), digest(right))
        if digests[name][0] != digests[name][1]:
            return done, f"a product of whole numbers in {name} is wrong in {int((first.cpu() != right).sum())} places"
        reference = right.to(device)
        end = time.perf_counter() + seconds / 2
        while time.perf_counter() < end:
            wrong = sum((torch.mm(x, y) != reference).sum() for _ in range(8))
            done += 8
            if int(wrong):
                return done, f"the same product in {name} came out otherwise within {done} times"
    synchronize(device)
    return done, ""


def _memory(device: torch.device) -> tuple[int, str]:
    address = torch.arange(BLOCK // 8, dtype=torch.int64) * 0x9E3779B97F4A7C  # every byte of a word depends on where it lies
    blocks = [(address + number).to(device, copy=True) for number in range(BLOCKS)]
    for inverted in (False, True):
        if inverted:
            for block in blocks:
                block.bitwise_not_()
        for number, block in enumerate(blocks):
            wanted = ~(address + number) if inverted else address + number
            back = block.cpu()
            if not torch.equal(back, wanted):
                at = int((back != wanted).nonzero()[0])
                return (
                    number * BLOCK,
                    f"memory: word {at} of block {number} is {int(back[at]):#x} where {int(wanted[at]):#x} was written",
                )
    return BLOCK * BLOCKS, ""
