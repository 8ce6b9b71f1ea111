from __future__ import annotations

import numpy as np
import pytest

from ninthsky.errors import UserError
from ninthsky.signal.record import Axis, Context, Labelled, Signal, Value

TIME = (Axis("time", "s", 1e6),)
REAL, COMPLEX = Value("real", "volt"), Value("complex", "volt")


def one(recording: str = "r0", **more: str) -> Signal:
    return Signal(np.zeros(4, np.float32), TIME, REAL, Context(recording, "real", **more))


def test_an_axis_too_few() -> None:
    with pytest.raises(UserError, match="2 axes is described by 1"):
        Signal(np.zeros((2, 2)), TIME, REAL, Context("r0", "real"))


def test_real_is_not_complex() -> None:
    with pytest.raises(UserError, match="declared complex"):
        Signal(np.zeros(2), TIME, COMPLEX, Context("r0", "real"))
    with pytest.raises(UserError, match="declared real"):
        Signal(np.zeros(2, np.complex64), TIME, REAL, Context("r0", "real"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_every_number_is_finite(bad: float) -> None:
    with pytest.raises(UserError, match="recording r7"):
        Signal(np.array([0.0, bad]), TIME, REAL, Context("r7", "real"))


def test_rows_of_one_form_and_one_label_each() -> None:
    with pytest.raises(UserError, match="2 signals have 1 labels"):
        Labelled((one(), one()), np.array([0]), ("a",))
    longer = Signal(np.zeros(5, np.float32), TIME, REAL, Context("r1", "real"))
    with pytest.raises(UserError, match="2 different forms"):
        Labelled((one(), longer), np.array([0, 0]), ("a",))


def test_take_keeps_rows_together() -> None:
    rows = Labelled((one("a"), one("b"), one("c")), np.array([0, 1, 0]), ("x", "y"), np.array([1.0, 2.0, 3.0]))
    some = rows.take(np.array([2, 1]))
    assert [signal.context.recording for signal in some.signals] == ["c", "b"]
    assert some.labels.tolist() == [0, 1] and some.snr_db is not None and some.snr_db.tolist() == [3.0, 2.0]
