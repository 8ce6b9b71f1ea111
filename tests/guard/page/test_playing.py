from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ninthsky.evidence import Fact
from ninthsky.guard.faults import Fault, Timeline
from ninthsky.guard.page.playing import cause_of, steps_of
from ninthsky.guard.playbook.book import shipped
from tests.guard.page.job_files import JobFiles


def changed(fault: Fault, **evidence: Any) -> Fault:
    return msgspec.structs.replace(fault, evidence=msgspec.structs.replace(fault.evidence, **evidence))


@pytest.mark.parametrize(
    ("cause", "evidence", "entry"),
    [
        ("slow", {}, "hw_straggler"),
        ("mismatch", {}, "hang_collective_mismatch"),
        ("nonfinite", {"remedy": "step redone"}, "unknown"),
        ("nonfinite", {"remedy": "step redone; then regrouped, another card takes the place of rank 3"}, "gpu_sdc"),
        ("nonfinite", {"verdict": "gradient not finite on another card too: the data"}, "nan_loss"),
        ("exit", {"facts": (Fact("exit status", "SIGKILL"),)}, "unknown"),
        ("exit", {"facts": (Fact("last line of its log", "torch.OutOfMemoryError: CUDA out of memory. Tried"),)}, "cuda_oom"),
        ("host", {"facts": (Fact("no report from its agent", 4.2),)}, "unknown"),
    ],
)
def test_a_fault_of_the_ladder_finds_its_entry_or_none(
    tmp_path: Path, cause: str, evidence: dict[str, Any], entry: str
) -> None:
    assert cause_of(changed(JobFiles(tmp_path).fault(cause=cause), **evidence), shipped()) == entry


def test_steps_are_done_waited_for_and_left_to_a_person(tmp_path: Path) -> None:
    timeline = Timeline(began=10.0, named=11.0, aborted=11.2)
    fault = JobFiles(tmp_path).fault(timeline=timeline)
    steps = [
        (step.state, step.text) for step in steps_of(changed(fault, remedy="regrouped; then advised: scontrol x"), shipped())
    ]
    assert ("done", "the card was named") in steps and ("done", "regrouped") in steps
    assert ("waiting", "every rank joined the new generation") in steps
    assert ("person", "advised: scontrol x") in steps
    assert steps[-1] == ("person", shipped().causes["hw_straggler"].person)
    assert steps_of(fault, shipped())[0].seconds == 1.0
    repaired = msgspec.structs.replace(fault, state="repaired")
    assert "waiting" not in {step.state for step in steps_of(repaired, shipped())}
