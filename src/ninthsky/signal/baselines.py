"""The rivals: majority, a few classical classifiers, and the shortcut control that sees only what the signal is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ninthsky.proportion import wilson
from ninthsky.signal.modulation import SAMPLES_PER_SYMBOL
from ninthsky.signal.patches import Array
from ninthsky.signal.tasks import Prepared

Features = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """Accuracy over n test rows and the mean of the classes' recalls (balanced accuracy), with a Wilson 95 % interval.

    The interval counts recordings, not rows: rows of one recording are right or wrong together.
    """

    accuracy: float
    low: float
    high: float
    balanced: float
    n: int
    recordings: int


def score(right: NDArray[np.bool_], data: Prepared) -> Score:
    """`right` [n] tells which of the test rows were answered rightly."""
    labels = data.rows.labels[data.test]
    recordings = len({data.rows.signals[row].context.recording for row in data.test})
    accuracy = float(right.mean())
    low, high = wilson(round(accuracy * recordings), recordings)
    recalls = [float(right[labels == cls].mean()) for cls in np.unique(labels)]
    return Score(accuracy, low, high, float(np.mean(recalls)), len(right), recordings)


def majority(data: Prepared) -> Score:
    """Always the class that is commonest in training."""
    commonest = int(np.bincount(data.rows.labels[data.train]).argmax())
    return score(data.rows.labels[data.test] == commonest, data)


def cumulants(iq: Array) -> Features:
    """Statistics that tell modulations apart, per row of [N, T] complex samples of unit power -> [N, 15].

    Moments of the envelope, the instantaneous frequency, and the strongest spectral line of the signal's powers, which is
    where a constellation's symmetry shows (Swami & Sadler 2000; Dobre et al. 2007).
    """
    envelope = np.abs(iq)
    turn = iq[:, 1:] * np.conj(iq[:, :-1])
    symbol_turn = iq[:, SAMPLES_PER_SYMBOL:] * np.conj(iq[:, :-SAMPLES_PER_SYMBOL])
    frequency = np.angle(turn)
    lines = [np.abs(np.fft.fft(iq**power, axis=1)).max(1) / iq.shape[1] for power in (1, 2, 4, 8)]
    moments = [np.abs((iq**2).mean(1)), np.abs((iq**4).mean(1)), (envelope**4).mean(1), (envelope**6).mean(1), envelope.std(1)]
    turns = [
        frequency.std(1),
        np.abs(frequency).mean(1),
        (frequency**4).mean(1) / (frequency**2).mean(1) ** 2,
        np.abs((turn**2).mean(1)),
        np.abs((symbol_turn**2).mean(1)),
        np.abs((symbol_turn**4).mean(1)),
    ]
    return np.stack([*lines, *moments, *turns], 1).astype(np.float64)


def features(data: Prepared) -> Features:
    """What the classical classifiers read: statistics of complex signals, the plain values of real ones."""
    if np.iscomplexobj(data.normalised):
        return cumulants(data.normalised)
    return data.normalised.reshape(len(data.normalised), -1).astype(np.float64)


def shortcut(data: Prepared) -> Features:
    """Power and mean alone, as they were before normalising: no form, no order. A label that these tell leaks."""
    return np.stack([np.log(data.scale), data.offset.real, data.offset.imag, np.abs(data.offset)], 1)


def classify(data: Prepared, make: Callable[[Prepared], Features], models: dict[str, object]) -> dict[str, NDArray[np.bool_]]:
    """Trains each scikit-learn model on the train rows; per model, which test rows it got right."""
    table, labels = make(data), data.rows.labels
    answers: dict[str, NDArray[np.bool_]] = {}
    for name, model in models.items():
        model.fit(table[data.train], labels[data.train])  # type: ignore[attr-defined]
        answers[name] = np.asarray(model.predict(table[data.test]) == labels[data.test])  # type: ignore[attr-defined]
    return answers


def rivals(data: Prepared, seed: int) -> dict[str, NDArray[np.bool_]]:
    """Logistic regression, nearest neighbours and a random forest on `features`."""
    return classify(data, features, _models(seed))


def control(data: Prepared, seed: int) -> NDArray[np.bool_]:
    """A random forest on `shortcut`."""
    return classify(data, shortcut, {"shortcut": _models(seed)["random forest"]})["shortcut"]


def _models(seed: int) -> dict[str, object]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
        "nearest neighbours": make_pipeline(StandardScaler(), KNeighborsClassifier(5)),
        "random forest": RandomForestClassifier(100, random_state=seed, n_jobs=1),
    }
