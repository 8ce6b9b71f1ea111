from __future__ import annotations

import numpy as np
import pytest

from ninthsky.signal import modulation
from ninthsky.signal.modulation import CLASSES, SAMPLES_PER_SYMBOL, SNR_DB, SPAN


@pytest.mark.parametrize("name", ["BPSK", "QPSK", "8PSK", "16QAM", "64QAM"])
def test_constellations_have_unit_power_and_their_number_of_points(name: str) -> None:
    points = modulation.constellation(name)
    assert len(np.unique(points.round(9))) == {"BPSK": 2, "QPSK": 4, "8PSK": 8, "16QAM": 16, "64QAM": 64}[name]
    assert np.mean(np.abs(points) ** 2) == pytest.approx(1) and abs(points.mean()) < 1e-12


def test_a_class_that_does_not_exist() -> None:
    for name in ("32APSK", "XPSK"):
        with pytest.raises(ValueError, match=name):
            modulation.constellation(name)


@pytest.mark.parametrize("roll_off", [0.2, 0.25, 0.35, 0.5])
def test_root_raised_cosine_has_no_intersymbol_interference(roll_off: float) -> None:
    """Through transmitter and matched receiver the pulse is 1 at its symbol and about 0 at all others (Nyquist)."""
    taps = modulation.root_raised_cosine(roll_off)
    assert np.isfinite(taps).all() and np.allclose(taps, taps[::-1])
    both = np.convolve(taps, taps)
    at_symbols = both[len(both) // 2 % SAMPLES_PER_SYMBOL :: SAMPLES_PER_SYMBOL]
    centre = at_symbols.argmax()
    assert at_symbols[centre] == pytest.approx(1, abs=1e-9)
    others = np.delete(at_symbols, centre)
    assert np.abs(others[SPAN // 2 : -SPAN // 2]).max() < 0.02


def test_gaussian_pulse_turns_by_a_quarter_per_symbol() -> None:
    assert modulation.gaussian(0.35).sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ["FM", "GFSK"])
def test_frequency_modulations_keep_their_envelope(name: str) -> None:
    sent = modulation.modulate(name, 512, np.random.default_rng(0))
    assert len(sent) == 512 and np.allclose(np.abs(sent), 1)


def test_am_is_real_and_never_overmodulated() -> None:
    sent = modulation.modulate("AM", 512, np.random.default_rng(0))
    assert np.allclose(sent.imag, 0) and sent.real.min() > 0


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_is_as_strong_as_said(snr_db: float) -> None:
    sent = np.ones(200_000, np.complex128)
    received = modulation.receive(sent, snr_db, np.random.default_rng(0))
    spectrum = np.abs(np.fft.fft(received)) ** 2
    line = spectrum.argmax()
    near = np.arange(line - 200, line + 201) % len(spectrum)
    signal, noise = spectrum[near].sum(), np.delete(spectrum, near).sum()
    assert 10 * np.log10(signal / noise) == pytest.approx(snr_db, abs=0.3)


def test_a_recording_does_not_depend_on_how_many_are_made() -> None:
    few, many = (modulation.make_recordings(count, 2, 64, 7) for count in (8, 24))
    assert np.array_equal(few.array, many.array[:16])
    assert not np.array_equal(few.array, modulation.make_recordings(8, 2, 64, 8).array)


def test_classes_and_ratios_are_balanced_and_windows_share_their_recording() -> None:
    rows = modulation.make_recordings(len(CLASSES) * len(SNR_DB), 2, 64, 7)
    assert np.bincount(rows.labels).tolist() == [2 * len(SNR_DB)] * len(CLASSES)
    assert rows.snr_db is not None and sorted(set(rows.snr_db)) == sorted(SNR_DB)
    names = [signal.context.recording for signal in rows.signals]
    assert names[0::2] == names[1::2] and len(set(names)) == len(names) // 2
    assert {signal.context.origin for signal in rows.signals} == {"synthetic"}
