"""How often which kind of fault comes: from a table of interruptions of a real fleet, where one is at hand.

$NINTHSKY_DATA/guard/failure_model_18432.csv (columns cause, expected_per_day_at_18432) is read at run time; without it the
weights of kinds.toml hold, which are ours, proportioned after the counts of Llama 3's 54 days (arXiv 2407.21783, table 5).
Kinds that such tables do not have (two at once, innocent neighbours, drift ...) keep a share of their own.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import msgspec

from ninthsky.guard.drill.scenario import Scenario

SHARE = 0.6  # of all faults, those that the table is about
# How a cause shows in the records: our reading, no table says it.
SHOWS: dict[str, dict[str, float]] = {
    "faulty GPU (incl NVLink)": {"kill": 0.4, "stuck": 0.3, "hung_driver": 0.3},
    "GPU HBM3 memory": {"kill": 0.5, "error": 0.5},
    "software bug": {"error": 0.6, "stuck": 0.3, "mismatch": 0.1},
    "network switch/cable": {"link": 0.6, "rack": 0.2, "host_cut": 0.2},
    "host maintenance (unplanned)": {"host_cut": 1.0},
    "GPU SRAM": {"nan": 0.5, "kill": 0.5},
    "GPU system processor (GSP)": {"hung_driver": 1.0},
    "NIC": {"link": 0.5, "host_cut": 0.5},
    "NCCL watchdog timeout": {"stuck": 1.0},
    "silent data corruption": {"nan": 1.0},
    "GPU thermal interface/sensor": {"slow_work": 0.5, "slow_duty": 0.5},
    "SSD": {"error": 1.0},
    "power supply": {"host_cut": 1.0},
    "server chassis": {"host_cut": 1.0},
    "IO expansion board": {"host_cut": 1.0},
    "dependency": {"error": 1.0},
    "CPU": {"freeze": 0.5, "slow_work": 0.5},
    "system memory": {"kill": 1.0},
}


def table() -> Path | None:
    """The table, where $NINTHSKY_DATA has one."""
    path = Path(os.environ.get("NINTHSKY_DATA", "")) / "guard" / "failure_model_18432.csv"
    return path if "NINTHSKY_DATA" in os.environ and path.is_file() else None


def weighed(scenario: Scenario, path: Path) -> Scenario:
    """The scenario with the weights of those kinds that the table is about replaced."""
    weights: dict[str, float] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for kind, share in SHOWS.get(row["cause"], {}).items():
                weights[kind] = weights.get(kind, 0.0) + share * float(row["expected_per_day_at_18432"])
    here = {fault.name for fault in scenario.fault} & set(weights)
    others = sum(fault.weight for fault in scenario.fault if fault.name not in here)
    counted = sum(weights[name] for name in here)
    if not counted:
        return scenario
    scale = SHARE / (1 - SHARE) * others / counted if others else 1.0
    faults = [
        msgspec.structs.replace(fault, weight=weights[fault.name] * scale) if fault.name in here else fault
        for fault in scenario.fault
    ]
    return msgspec.structs.replace(scenario, fault=faults)
