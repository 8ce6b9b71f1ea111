from __future__ import annotations

import numpy as np
import pytest

from ninthsky.errors import UserError
from ninthsky.signal.patches import Patching, normalise
from ninthsky.signal.record import Axis

IMAGE = (Axis("row", "pixel"), Axis("column", "pixel"))
TIME = (Axis("time", "s", 1e6),)


def test_image_patches_are_the_squares_in_reading_order() -> None:
    image = np.arange(16.0).reshape(1, 4, 4)
    patches = Patching((("row", 2), ("column", 2))).cut(IMAGE, image)
    assert patches[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_an_axis_not_named_is_one_patch() -> None:
    image = np.arange(8.0).reshape(1, 2, 4)
    assert Patching((("row", 1),)).cut(IMAGE, image)[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_complex_becomes_pairs() -> None:
    patches = Patching((("time", 2),)).cut(TIME, np.array([[1 + 2j, 3 + 4j, 5 + 6j, 7 + 8j]]))
    assert patches[0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_views_do_not_see_the_carrier_phase() -> None:
    draw = np.random.default_rng(0)
    iq = draw.normal(size=(3, 32)) + 1j * draw.normal(size=(3, 32))
    patching = Patching((("time", 8),), lag=4)
    plain, turned = (patching.cut(TIME, x).reshape(3, 4, 8, 8) for x in (iq, iq * np.exp(1j)))
    assert np.allclose(plain[..., 2:], turned[..., 2:], atol=1e-4)
    assert not np.allclose(plain[..., :2], turned[..., :2], atol=1e-1)


def test_the_turn_over_a_lag_by_hand() -> None:
    iq = np.array([[1.0, 2j, -3.0, 1.0]])
    views = Patching((), lag=2).views(iq)[0]
    # sample 2 against sample 0: product -3, size sqrt(3), angle pi; doubled angle 0
    assert views[2].tolist() == pytest.approx([-3, 0, 2, 2 * np.pi / 2, -np.sqrt(3), 0, np.sqrt(3), 0], abs=1e-5)
    assert views[0, 4:].tolist() == [0, 0, 0, 0]


def test_patches_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="10 samples along time do not divide into patches of 4"):
        Patching((("time", 4),)).cut(TIME, np.zeros((1, 10)))
    with pytest.raises(UserError, match="no axis is called range"):
        Patching((("range", 4),)).cut(TIME, np.zeros((1, 8)))


def test_normalising_is_per_recording_and_hands_back_what_it_took() -> None:
    draw = np.random.default_rng(1)
    array = draw.normal(size=(4, 50)) * np.array([[1], [1], [9], [9]]) + np.array([[0], [0], [5], [5]])
    done, scale, offset = normalise(array, ["a", "a", "b", "b"])
    for rows in (slice(0, 2), slice(2, 4)):
        assert done[rows].mean() == pytest.approx(0, abs=1e-9) and (done[rows] ** 2).mean() == pytest.approx(1)
    assert scale[0] == scale[1] != scale[2] == scale[3]
    assert np.allclose(done * scale[:, None] + offset.real[:, None], array)


def test_a_flat_recording_stays_finite() -> None:
    done, scale, _ = normalise(np.full((1, 8), 3.0), ["a"])
    assert done.tolist() == [[0.0] * 8] and scale[0] == 1
