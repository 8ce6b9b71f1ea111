"""What a carrier draws, in units of an idle carrier's power. Assumed, and printed with every saving; never kWh without a meter.

Load: EARTH's linear model for a 20 W macro transceiver (Auer et al. 2011: P0 = 130 W, slope 4.7, 20 W at full load), so
full over idle is 1 + 4.7 x 20 / 130 = 1.72. Sleep: a stated share of idle power (setting `sleep_power`). Waking and going to
sleep: TR 38.864 v18.1.0 table 5.1-5 gives category 2 a deep-sleep transition of 10 s; half a minute of idle power each is
charged here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ninthsky.radio.kernels import Floats

EARTH_SLOPE = 4.7 * 20 / 130
TRANSITION_HOURS = 30 / 3600


@dataclass(frozen=True)
class Power:
    """Power of one carrier in units of its idle power. Carriers are equal, so moving load between them costs nothing."""

    slope: float = EARTH_SLOPE
    sleep: float = 0.10
    transition: float = TRANSITION_HOURS  # idle-hours per switch, off or on

    def site_energy(self, load: Floats, carriers: NDArray[np.int64], asleep: NDArray[np.int64]) -> NDArray[np.float64]:
        """Idle-hours [..., n, 24] of a site that carries `load` (in carriers) with `asleep` of its carriers sleeping.

        Load beyond what is on is not carried and draws nothing.
        """
        awake = carriers[:, None] - asleep
        return awake + self.sleep * asleep + self.slope * np.minimum(load, awake)

    def text(self) -> str:
        """The assumptions in a line."""
        return (
            f"power relative to an idle carrier: full load {1 + self.slope:.2f} (EARTH macro), "
            f"asleep {self.sleep:.2f} (assumed), {self.transition * 3600:.0f} s of idle power per switch"
        )


def asleep_by_hour(mask: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Carriers asleep in each hour [n, 24] from the sleepers' masks [n, sleepers]."""
    bits = (mask[:, :, None] >> np.arange(24, dtype=np.uint32)) & np.uint32(1)
    return bits.sum(axis=1).astype(np.int64)


def switches(mask: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Times a day that a site's carriers are switched off or on again [n]; at midnight a plan begins and ends awake."""
    padded = mask.astype(np.uint64) << np.uint64(1)
    changes = padded ^ (padded >> np.uint64(1))
    bits = (changes[:, :, None] >> np.arange(26, dtype=np.uint64)) & np.uint64(1)
    return bits.sum(axis=(1, 2)).astype(np.int64)
