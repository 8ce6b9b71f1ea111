"""Arrays cut into patches along declared axes: what the decoder reads instead of words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ninthsky.errors import UserError
from ninthsky.signal.record import Axis

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Patching:
    """Patch size per axis, by name: `{"time": 16}`, `{"row": 2, "column": 2}`. An axis not named is one patch wide."""

    sizes: tuple[tuple[str, int], ...]

    def grid(self, axes: tuple[Axis, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """(number of patches, size of one) along each axis. Raises UserError N9-SIG-003 where they do not fit."""
        sizes = dict(self.sizes)
        if unknown := set(sizes) - {axis.name for axis in axes}:
            raise UserError("N9-SIG-003", f"no axis is called {', '.join(sorted(unknown))}", "patch sizes",
                            f"axes: {', '.join(axis.name for axis in axes)}")
        found = []
        for axis, length in zip(axes, shape, strict=True):
            size = sizes.get(axis.name, length)
            if length % size:
                raise UserError("N9-SIG-003", f"{length} samples along {axis.name} do not divide into patches of {size}", "patch sizes",
                                f"choose a divisor of {length}, or cut the recording")
            found.append((length // size, size))
        return tuple(found)

    def cut(self, axes: tuple[Axis, ...], array: NDArray[np.generic]) -> FloatArray:
        """[N, *axes] -> [N, patches, values]: patches in the axes' order, the last axis fastest; complex as (re, im)."""
        grid = self.grid(axes, array.shape[1:])
        if np.iscomplexobj(array):
            array = np.stack([array.real, array.imag], -1)
        else:
            array = array[..., None]
        split = array.reshape(len(array), *(part for pair in grid for part in pair), array.shape[-1])
        counts = [1 + 2 * index for index in range(len(grid))]
        sizes = [2 + 2 * index for index in range(len(grid))]
        moved = split.transpose(0, *counts, *sizes, split.ndim - 1)
        return np.ascontiguousarray(moved.reshape(len(array), math.prod(count for count, _ in grid), -1), dtype=np.float32)


def normalise(array: NDArray[np.generic], recordings: list[str]) -> tuple[NDArray[np.generic], NDArray[np.float64], NDArray[np.complex128]]:
    """Each recording with mean 0 and root mean square 1 over all its rows: (rows, scale [N], offset [N]).

    Scale and offset are handed back and not thrown away: they are what a shortcut would read (trap: the receiver leaks into
    the label). A recording without any variation keeps scale 1.
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
    centre = offset if np.iscomplexobj(array) else offset.real
    return (array - centre.reshape(shape)) / scale.reshape(shape), scale, offset
