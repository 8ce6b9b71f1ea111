"""What the guard is told of the rules' records: those about the loss, marked where the run inflicted it on itself."""

from __future__ import annotations

from typing import Any

import pytest

from ninthsky.evidence import Evidence, Fact
from ninthsky.guard.probe.messages import Anomaly, decode_to_agent, frame
from ninthsky.train.control.records import guard_hears
from ninthsky.train.inject import Fault


class Sent:
    generation = 3

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def send(self, message: Any) -> None:
        self.messages.append(message)


def record(rule: str, step: int = 40, onset: int = 38) -> Evidence:
    return Evidence(
        id=f"C-{step:06d}-{rule}", kind="control", subject=f"step {step}", verdict="the loss climbs", decided_by=f"rule {rule}",
        facts=(Fact("loss z", 7.0, 6.0),), ruled_out=("one batch",), remedy="rolled back", where={"step": step, "onset": onset},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "faults", "told", "injected"),
    [
        ("rise", [], True, False),
        ("spike", [Fault(0, "bad_data", 2, 40)], True, True),
        ("rise", [Fault(0, "rate", 0, 30)], True, True),
        ("rise", [Fault(0, "rate", 0, 41), Fault(1, "kill", 1, 40)], True, False),
        ("own", [], False, False),  # the guard was asked about that step before
        ("dead", [], False, False),
    ],
)
def test_who_hears_what(rule: str, faults: list[Fault], told: bool, injected: bool) -> None:
    sent = Sent()
    guard_hears(sent, faults)(record(rule))  # type: ignore[arg-type]
    assert len(sent.messages) == told
    for message in sent.messages:
        assert decode_to_agent(frame(message)[4:]) == message
        assert isinstance(message, Anomaly) and message.generation == 3 and message.injected is injected
        assert message.facts == ["loss z = 7 (threshold 6)"] and message.record.endswith(rule)
