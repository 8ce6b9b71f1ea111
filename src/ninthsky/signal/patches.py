"""Arrays cut into patches along declared axes: what the decoder reads instead of words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ninthsky.errors import UserError
from ninthsky.signal.record import Axis

FloatArray = NDArray[np.float32]
Array = NDArray[Any]


@dataclass(frozen=True)
class Patching:
    """Patch size per axis, by name: `(("time", 16),)`, `(("row", 2), ("column", 2))`; an axis not named is one patch.

    Complex values become (re, im). With a `lag` (samples), each also brings what a receiver without a carrier looks at, along
    the last axis: envelope, frequency, and the turn over `lag` samples, once and doubled. They do not depend on the carrier's
    phase, which a linear map of (re, im) cannot see past.
    """

    sizes: tuple[tuple[str, int], ...]
    lag: int = 0

    def grid(self, axes: tuple[Axis, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """(number of patches, size of one) along each axis. Raises UserError N9-SIG-003 where they do not fit."""
        sizes = dict(self.sizes)
        if unknown := set(sizes) - {axis.name for axis in axes}:
            raise UserError(
                "N9-SIG-003",
                f"no axis is called {', '.join(sorted(unknown))}",
                "patch sizes",
                f"axes: {', '.join(axis.name for axis in axes)}",
            )
        found = []
        for axis, length in zip(axes, shape, strict=True):
            size = sizes.get(axis.name, length)
            if length % size:
                raise UserError(
                    "N9-SIG-003",
                    f"{length} samples along {axis.name} do not divide into patches of {size}",
                    "patch sizes",
                    f"choose a divisor of {length}, or cut the recording",
                )
            found.append((length // size, size))
        return tuple(found)

    def cut(self, axes: tuple[Axis, ...], array: Array) -> FloatArray:
        """[N, *axes] -> [N, patches, values]: patches in the axes' order, within one the last axis, then its views, fastest."""
        grid = self.grid(axes, array.shape[1:])
        viewed = self.views(array) if np.iscomplexobj(array) else array[..., None]
        split = viewed.reshape(len(array), *(part for pair in grid for part in pair), viewed.shape[-1])
        counts = [1 + 2 * index for index in range(len(grid))]
        sizes = [2 + 2 * index for index in range(len(grid))]
        moved = split.transpose(0, *counts, *sizes, split.ndim - 1)
        return np.ascontiguousarray(moved.reshape(len(array), math.prod(count for count, _ in grid), -1), dtype=np.float32)

    def views(self, array: Array) -> FloatArray:
        """Complex [..., T] -> [..., T, 2], or [..., T, 8] with a lag; samples before the first turn hold zeros."""
        channels = [array.real, array.imag]
        if self.lag:
            turn = np.zeros_like(array)
            turn[..., self.lag :] = array[..., self.lag :] * np.conj(array[..., : -self.lag])
            step = np.zeros_like(array)
            step[..., 1:] = array[..., 1:] * np.conj(array[..., :-1])
            # The square root brings a product of two samples back to the size of one.
            size, angle = np.sqrt(np.abs(turn)), np.angle(turn)
            channels += [
                np.abs(array) - 1,
                2 * np.angle(step),
                size * np.cos(angle),
                size * np.sin(angle),
                size * np.cos(2 * angle),
                size * np.sin(2 * angle),
            ]
        return np.stack(channels, -1).astype(np.float32)


def normalise(array: Array, recordings: list[str]) -> tuple[Array, NDArray[np.float64], NDArray[np.complex128]]:
    """Each recording with mean 0 and root mean square 1 over all its rows: (rows, scale [N], offset [N]).

    Scale and offset are handed back and not thrown away: they are what a shortcut would read (the receiver leaks into the
    label). A recording without any variation keeps scale 1.
    """
    flat = array.reshape(len(array), -1)
    offset = np.zeros(len(array), np.complex128)
    scale = np.ones(len(array))
    places: dict[str, list[int]] = {}
    for row, name in enumerate(recordings):
        places.setdefault(name, []).append(row)
    for rows in places.values():
        values = flat[rows]
        offset[rows] = values.mean()
        power = math.sqrt(float(np.mean(np.abs(values - values.mean()) ** 2)))
        scale[rows] = power if power > 0 else 1.0
    shape = (-1,) + (1,) * (array.ndim - 1)
    centre: Array = offset if np.iscomplexobj(array) else offset.real
    return (array - centre.reshape(shape)) / scale.reshape(shape), scale, offset
