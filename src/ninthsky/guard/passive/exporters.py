"""Scrapes of vendors' exporters, kept as Prometheus text -> what is wrong with which card, in one vocabulary.

One table maps every vendor's metric onto ours, with the value from which it speaks. DCGM's names are from its field identifiers
(dcgm-exporter), npu-exporter's from MindCluster's documentation, AMD's from amd-device-metrics-exporter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ninthsky.evidence import Fact

SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{([^}]*)\})?\s+([-+]?(?:\d[\d.eE+-]*|NaN|Inf))")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
CARD_LABELS = ("gpu", "id", "npuID", "npu_id", "gpu_id", "device", "card")
HOST_LABELS = ("Hostname", "hostname", "node", "instance", "host")


@dataclass(frozen=True)
class Metric:
    """What a metric means. It speaks at `least` or above (below, where `below`); `cause` as in the playbook."""

    cause: str
    says: str
    least: float
    unit: str = ""
    below: bool = False


METRICS = {
    "DCGM_FI_DEV_XID_ERRORS": Metric("", "Xid", 1),
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": Metric("gpu_ecc", "uncorrectable ECC errors", 1),
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL": Metric("gpu_ecc", "uncorrectable ECC errors, lifetime", 1),
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": Metric("gpu_ecc", "row remap failure", 1),
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": Metric("gpu_ecc", "rows remapped after uncorrectable errors", 1),
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": Metric("pcie", "PCIe replays", 1_000),
    "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": Metric("nvlink", "NVLink CRC errors", 1_000),
    "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": Metric("nvlink", "NVLink recovery errors", 1),
    "DCGM_FI_DEV_THERMAL_VIOLATION": Metric("thermal", "time throttled for heat", 1e6, "us"),
    "DCGM_FI_DEV_POWER_VIOLATION": Metric("power", "time throttled for power", 60e6, "us"),
    "DCGM_FI_DEV_GPU_TEMP": Metric("thermal", "temperature", 87, "C"),
    "DCGM_FI_DEV_MEMORY_TEMP": Metric("thermal", "memory temperature", 100, "C"),
    "npu_chip_info_health_status": Metric("gpu_fell_off_bus", "NPU health status (1 is healthy)", 1, below=True),
    "npu_chip_info_network_status": Metric("nic_link", "NPU network status (1 is healthy)", 1, below=True),
    "npu_chip_info_link_status": Metric("nic_link", "NPU link status (1 is up)", 1, below=True),
    "npu_chip_info_temperature": Metric("thermal", "temperature", 90, "C"),
    "npu_chip_info_hbm_ecc_double_bit_error_cnt": Metric("gpu_ecc", "HBM double-bit errors", 1),
    "gpu_ecc_uncorrect_total": Metric("gpu_ecc", "uncorrectable ECC errors", 1),
    "gpu_ecc_uncorrect_umc": Metric("gpu_ecc", "uncorrectable errors of the memory controller", 1),
    "gpu_junction_temperature": Metric("thermal", "junction temperature", 105, "C"),
    "gpu_health": Metric("gpu_fell_off_bus", "GPU health (1 is healthy)", 1, below=True),
    "pcie_replay_count": Metric("pcie", "PCIe replays", 1_000),
    "xgmi_link_error": Metric("nvlink", "XGMI link errors", 1),
}


@dataclass(frozen=True)
class Alarm:
    """A metric that speaks, of one card."""

    cause: str  # empty where the playbook has to read `text`
    host: str
    card: str
    text: str
    fact: Fact


def is_scrape(path: Path) -> bool:
    """Whether a file looks like Prometheus text."""
    try:
        with path.open("r", encoding="utf-8", errors="replace") as file:
            head = [file.readline(500) for _ in range(20)]
    except OSError:
        return False
    return sum(bool(SAMPLE.match(line)) or line.startswith(("# HELP", "# TYPE")) for line in head) >= 2


def alarms(path: Path) -> list[Alarm]:
    """What speaks in one scrape, in the file's order."""
    found = []
    with path.open("r", encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            sample = SAMPLE.match(line)
            metric = METRICS.get(sample[1]) if sample else None
            if sample is None or metric is None:
                continue
            value, labels = float(sample[3]), dict(LABEL.findall(sample[2] or ""))
            if not (value < metric.least if metric.below else value >= metric.least):
                continue
            host = next((labels[name] for name in HOST_LABELS if name in labels), "")
            card = next((labels[name] for name in CARD_LABELS if name in labels), "")
            text = f"{metric.says} {value:g} on card {card}"
            fact = Fact(f"{metric.says}, card {card}", value, metric.least, metric.unit, f"{path}:{number} {sample[1]}")
            found.append(Alarm(metric.cause, host, card, text, fact))
    return found
