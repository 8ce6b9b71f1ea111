"""Scrapes one after the other: what is news, what is history, and what is noise."""

from __future__ import annotations

from typing import Any

import pytest

from ninthsky.guard.playbook.book import shipped as playbook
from ninthsky.guard.telemetry.note import Note
from ninthsky.guard.telemetry.readings import AGAIN_SECONDS, Readings
from ninthsky.guard.telemetry.scrape import samples
from ninthsky.guard.telemetry.table import shipped


def page(**values: Any) -> list[str]:
    """Prometheus text: of card 0 each, or of `{card: value}`."""
    lines = ["# HELP x y", "# TYPE x gauge"]
    for name, given in values.items():
        for card, value in (given if isinstance(given, dict) else {0: given}).items():
            lines.append(f'{name}{{gpu="{card}",pci_bus_id="00000000:{16 + card:02X}:00.0",Hostname="x"}} {value}')
    return lines


def run(*pages: list[str], slots: int = 8, every: float = 10.0) -> list[list[Note]]:
    """The notes of each scrape."""
    readings = Readings(slots)
    return [readings.take(text, number * every) for number, text in enumerate(pages)]


def test_the_table_speaks_of_causes_that_the_playbook_has() -> None:
    table, causes = shipped(), playbook().causes
    named = {metric.cause for metric in table.metrics.values()} | {row.cause for row in table.kernel}
    assert named - {""} <= set(causes)
    for name, metric in table.metrics.items():
        if metric.kind not in {"code", "bits"} and metric.apart is None:
            assert metric.warn is not None or metric.hard is not None, name
        assert metric.says and metric.lasts >= 1 and metric.factor > 0


def test_counters_speak_by_what_is_added() -> None:
    notes = run(*[page(DCGM_FI_DEV_ECC_DBE_AGG_TOTAL=value) for value in (7, 7, 8, 8, 0, 0)])
    assert [len(found) for found in notes] == [0, 0, 1, 0, 0, 0], "seven of another life are history; a restart starts at zero"
    assert (notes[2][0].weight, notes[2][0].cause, notes[2][0].slot, notes[2][0].value) == ("hard", "gpu_ecc", 0, 1.0)


def test_errors_must_come_on_and_on_where_one_burst_says_nothing() -> None:
    assert not any(run(*[page(DCGM_FI_DEV_PCIE_REPLAY_COUNTER=value) for value in (0, 500, 500, 501)]))
    notes = run(*[page(DCGM_FI_DEV_PCIE_REPLAY_COUNTER=value) for value in (0, 500, 1000, 1500, 2000)])
    assert [len(found) for found in notes] == [0, 0, 1, 0, 0]


def test_codes_that_are_new() -> None:
    name = "DCGM_FI_DEV_XID_ERRORS"
    notes = run(page(**{name: 43}), page(**{name: 43}), page(**{name: 79}), page(**{name: 79}), page(**{name: 13}))
    assert [[note.weight for note in found] for found in notes] == [[], [], ["hard"], [], ["said"]]
    assert (notes[2][0].text, notes[2][0].cause) == ("Xid 79", "gpu_fell_off_bus")
    first = run(page(DCGM_FI_DEV_GPU_TEMP=50), page(DCGM_FI_DEV_GPU_TEMP=50, **{name: 94}))
    assert [note.weight for note in first[1]] == ["warning"], "an exporter shows the series from a card's first error on"
    ascend = run(*[page(npu_chip_info_error_code=value) for value in (0, 0x80E01801)])
    assert (ascend[1][0].weight, ascend[1][0].text) == ("hard", "NPU error code 0x80e01801")


def test_heat_must_last_and_is_told_once_until_it_was_cool() -> None:
    heat = [60, 90, 60, 90, 91, 92, 93, 60, 60, 90, 91]
    notes = run(*[page(DCGM_FI_DEV_GPU_TEMP=value) for value in heat])
    assert [len(found) for found in notes] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    later = run(*[page(DCGM_FI_DEV_GPU_TEMP=value) for value in heat], every=AGAIN_SECONDS)
    assert [len(found) for found in later] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]


def test_what_was_so_before_the_job_is_advice() -> None:
    (note,) = run(page(DCGM_FI_DEV_ROW_REMAP_FAILURE=1))[0]
    assert note.weight == "warning"
    notes = run(page(DCGM_FI_DEV_ROW_REMAP_FAILURE=0), page(DCGM_FI_DEV_ROW_REMAP_FAILURE=1))
    assert [note.weight for note in notes[1]] == ["hard"]


def test_rates_are_by_time() -> None:
    name = "DCGM_FI_DEV_THERMAL_VIOLATION"
    slow = run(*[page(**{name: 5e5 * step}) for step in range(5)], every=10.0)
    fast = run(*[page(**{name: 5e5 * step}) for step in range(5)], every=1.0)
    assert not any(slow) and [len(found) for found in fast] == [0, 0, 1, 0, 0]


def test_bits_that_matter() -> None:
    name = "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"
    assert not any(run(*[page(**{name: value}) for value in (0, 1, 4, 5)])), "idle, and the power cap of every day"
    assert [note.cause for found in run(*[page(**{name: 0x40})] * 3) for note in found] == ["thermal"]


def test_one_hot_card_among_its_hosts_is_said_not_told() -> None:
    usual = {card: 60 + card % 3 for card in range(8)}
    notes = run(*[page(DCGM_FI_DEV_GPU_TEMP={**usual, 5: 78})] * 5)
    assert [[(note.slot, note.weight) for note in found] for found in notes] == [[], [], [(5, "said")], [], []]
    assert not any(run(*[page(DCGM_FI_DEV_GPU_TEMP={0: 50, 1: 78})] * 5)), "of two, nobody knows which one is usual"


def test_cards_by_number_and_by_address() -> None:
    readings = Readings(2)
    readings.take(page(DCGM_FI_DEV_GPU_TEMP={0: 50, 1: 50, 2: 50}), 0.0)
    assert readings.buses == {"0000:10:00": 0, "0000:11:00": 1}
    notes = readings.take(page(DCGM_FI_DEV_ECC_DBE_VOL_TOTAL={2: 0}), 1.0) + readings.take(
        page(DCGM_FI_DEV_ECC_DBE_VOL_TOTAL={2: 1}), 2.0
    )
    assert [note.slot for note in notes] == [-1], "a card that is not of this job is said of the host"


@pytest.mark.parametrize("value", ["NaN", "2147483632", "9223372036854775792", "140737488355328", "1e400", "-Inf", "x"])
def test_values_that_are_none(value: str) -> None:
    names = ("DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL")
    assert not any(run(page(**dict.fromkeys(names, 0)), *[page(**dict.fromkeys(names, value))] * 3))


def test_lines_that_are_no_samples_are_passed_over() -> None:
    text = ["", "}{", 'a{b="', 'DCGM_FI_DEV_GPU_TEMP{gpu="0"} 1e', "DCGM_FI_DEV_GPU_TEMP 95 1700000000000", "\x00\xff"]
    assert [(sample.name, sample.value, sample.card) for sample in samples(text)] == [("DCGM_FI_DEV_GPU_TEMP", 95.0, "")]


@pytest.mark.parametrize(
    ("lines", "cause", "weight"),
    [
        (['npu_chip_info_health_status{id="3"} 0'], "gpu_fell_off_bus", "hard"),
        (['npu_chip_info_network_status{id="3",pcie_bus_info="0000:C1:00.0"} 0'], "nic_link", "warning"),
        (['gpu_health{gpu_id="3",hostname="x"} 0'], "gpu_fell_off_bus", "hard"),
        (['gpu_junction_temperature{gpu_id="3"} 108'], "thermal", "warning"),
        (['gpu_violation_socket_thermal_residency_percentage{gpu_id="3"} 42'], "thermal", "warning"),
    ],
)
def test_other_vendors(lines: list[str], cause: str, weight: str) -> None:
    calm = [line.rsplit(" ", 1)[0] + (" 1" if weight == "hard" or "status" in line else " 5") for line in lines]
    notes = run(calm, lines, lines)
    assert [(note.cause, note.weight, note.slot) for note in notes[2]] == [(cause, weight, 3)] and not notes[1]
