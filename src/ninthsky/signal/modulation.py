"""Our own generator of modulated signals. Synthetic, and labelled so wherever its figures are shown.

Complex baseband at 8 samples per symbol. Digital: random symbols, root-raised-cosine pulses (GFSK: Gaussian pulses, modulation
index 0.5). Analogue: a band-limited random message. Each recording has its own gain, carrier phase, carrier frequency offset,
symbol timing, roll-off and noise. No receiver, no fading, no interference is modelled.
Pulse and modulation formulas: Proakis & Salehi, Digital Communications, 5th ed., ch. 3 and 9.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ninthsky.signal.record import Axis, Context, Labelled, Signal, Value

CLASSES = ("BPSK", "QPSK", "8PSK", "16QAM", "64QAM", "AM", "FM", "GFSK")
SNR_DB = (0.0, 5.0, 10.0, 15.0, 20.0)
SAMPLES_PER_SYMBOL = 8
SPAN = 8  # symbols on either side that a pulse reaches
RATE = 1_000_000.0  # samples per second, nominal
AXES = (Axis("time", "s", RATE),)
VALUE = Value("complex", "relative amplitude")

ComplexArray = NDArray[np.complex128]
Generator = np.random.Generator


def make_recordings(count: int, windows: int, samples: int, seed: int) -> Labelled:
    """`count` recordings, classes and SNRs in turn, each cut into `windows` rows of `samples` complex samples.

    Recording i is drawn from its own stream, so it is the same however many others are made.
    """
    signals: list[Signal] = []
    labels: list[int] = []
    ratios: list[float] = []
    for index in range(count):
        cls = index % len(CLASSES)
        snr = SNR_DB[index // len(CLASSES) % len(SNR_DB)]
        chance = np.random.default_rng([seed, index])
        received = receive(modulate(CLASSES[cls], windows * samples, chance), snr, chance)
        context = Context(recording=f"modulation-{index:05d}", origin="synthetic")
        for window in np.split(received, windows):
            signals.append(Signal(window.astype(np.complex64), AXES, VALUE, context))
            labels.append(cls)
            ratios.append(snr)
    return Labelled(tuple(signals), np.array(labels, np.int64), CLASSES, np.array(ratios))


def receive(sent: ComplexArray, snr_db: float, chance: Generator) -> ComplexArray:
    """Unit power, then frequency offset (to 1 % of the sample rate), phase, white noise at that SNR, gain (-10 to 10 dB)."""
    sent = sent / math.sqrt(float(np.mean(np.abs(sent) ** 2)))
    turns = chance.uniform(-0.01, 0.01) * np.arange(len(sent)) + chance.uniform()
    noise = chance.normal(size=(2, len(sent))) * math.sqrt(10 ** (-snr_db / 10) / 2)
    gain = 10 ** (chance.uniform(-10, 10) / 20)
    received: ComplexArray = gain * (sent * np.exp(2j * np.pi * turns) + noise[0] + 1j * noise[1])
    return received


def modulate(name: str, samples: int, chance: Generator) -> ComplexArray:
    """Complex envelope of one class, before the channel. Raises ValueError for a class that does not exist."""
    if name == "AM":
        message = _message(samples, chance)
        return (1.0 + chance.uniform(0.5, 0.9) * message).astype(np.complex128)
    if name == "FM":
        deviation = chance.uniform(0.03, 0.08)  # cycles per sample at full message
        return np.exp(2j * np.pi * np.cumsum(deviation * _message(samples, chance)))
    symbols = samples // SAMPLES_PER_SYMBOL + 2 * SPAN + 2
    start = SPAN * SAMPLES_PER_SYMBOL + int(chance.integers(SAMPLES_PER_SYMBOL))
    if name == "GFSK":
        pulses = _shaped(chance.choice([-1.0, 1.0], symbols).astype(np.complex128), gaussian(0.35)).real
        return np.exp(1j * np.pi * 0.5 * np.cumsum(pulses))[start : start + samples]
    points = constellation(name)
    shaped = _shaped(points[chance.integers(len(points), size=symbols)], root_raised_cosine(chance.uniform(0.2, 0.5)))
    return shaped[start : start + samples]


def constellation(name: str) -> ComplexArray:
    """Points of a digital modulation with mean power 1."""
    if name.endswith("PSK"):
        count = {"BPSK": 2, "QPSK": 4, "8PSK": 8}.get(name)
        if count:
            return np.exp(2j * np.pi * np.arange(count) / count)
    side = {"16QAM": 4, "64QAM": 8}.get(name)
    if side is None:
        raise ValueError(f"no modulation is called {name!r}; there are {', '.join(CLASSES)}")
    levels = np.arange(side) * 2.0 - (side - 1)
    points = (levels[:, None] + 1j * levels[None, :]).ravel()
    return (points / math.sqrt(float(np.mean(np.abs(points) ** 2)))).astype(np.complex128)


def root_raised_cosine(roll_off: float) -> NDArray[np.float64]:
    """Taps over 2 x SPAN symbols with unit energy (Proakis & Salehi, eq. 9.2-36 and its limits)."""
    t = np.arange(-SPAN * SAMPLES_PER_SYMBOL, SPAN * SAMPLES_PER_SYMBOL + 1) / SAMPLES_PER_SYMBOL
    with np.errstate(divide="ignore", invalid="ignore"):
        taps = (np.sin(np.pi * t * (1 - roll_off)) + 4 * roll_off * t * np.cos(np.pi * t * (1 + roll_off))) / (
            np.pi * t * (1 - (4 * roll_off * t) ** 2)
        )
    taps[t == 0] = 1 - roll_off + 4 * roll_off / np.pi
    edge = np.isclose(np.abs(t), 1 / (4 * roll_off))
    taps[edge] = (
        roll_off
        / math.sqrt(2)
        * ((1 + 2 / np.pi) * np.sin(np.pi / (4 * roll_off)) + (1 - 2 / np.pi) * np.cos(np.pi / (4 * roll_off)))
    )
    return taps / math.sqrt(float(np.sum(taps**2)))


def gaussian(bandwidth_time: float) -> NDArray[np.float64]:
    """GFSK frequency pulse: a Gaussian of 3 dB bandwidth x symbol time, over one symbol's box; its area is one symbol."""
    sigma = math.sqrt(math.log(2)) / (2 * math.pi * bandwidth_time) * SAMPLES_PER_SYMBOL
    reach = 2 * SAMPLES_PER_SYMBOL
    bell = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return np.convolve(bell / bell.sum(), np.ones(SAMPLES_PER_SYMBOL) / SAMPLES_PER_SYMBOL)


def _shaped(symbols: ComplexArray, taps: NDArray[np.float64]) -> ComplexArray:
    impulses = np.zeros(len(symbols) * SAMPLES_PER_SYMBOL, np.complex128)
    impulses[::SAMPLES_PER_SYMBOL] = symbols
    return np.convolve(impulses, taps, mode="same")


def _message(samples: int, chance: Generator) -> NDArray[np.float64]:
    """Band-limited noise within -1 and 1: what a voice is to a spectrum."""
    width = int(chance.integers(12, 33))
    noise = np.convolve(chance.normal(size=samples + 4 * width), np.hanning(width), mode="same")[2 * width :][:samples]
    noise = noise - noise.mean()
    message: NDArray[np.float64] = noise / np.abs(noise).max()
    return message
