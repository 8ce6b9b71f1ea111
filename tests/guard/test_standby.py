"""Two controllers of one job: the first freezes, a rank dies, the second names it; the first wakes and is refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ninthsky.guard.controller.journal import Journal
from ninthsky.guard.job import Standby, run_job
from ninthsky.run.folder import read_json

pytestmark = pytest.mark.slow


def test_the_standby_takes_over_and_names_what_happened_meanwhile_the_first_is_refused(make_job: Any, tmp_path: Path) -> None:
    """The standby has a folder of its own: all that it knows of the job came over the wire."""
    own = tmp_path / "other-host"
    spec = msgspec.structs.replace(make_job("job", plan={"steps": 60, "work_ms": 30.0}), standby=Standby(folder=str(own)))
    folder = Path(spec.folder)
    events: list[dict[str, Any]] = []
    frozen: list[int] = []

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        if event["kind"] == "commit" and event["step"] >= 5 and not frozen:
            frozen.append((read_json(folder / "controller.json") or {})["pid"])
            os.kill(frozen[0], signal.SIGSTOP)
            places = [entry for entry in Journal(folder / "journal.jsonl", writing=False).entries if entry["kind"] == "places"]
            os.kill(places[-1]["places"][2][2], signal.SIGKILL)
        if event["kind"] == "fault.repaired":
            os.kill(frozen[0], signal.SIGCONT)

    result = run_job(spec, on_event)
    leaders = [(event["controller"], event["term"]) for event in events if event["kind"] == "controller.leads"]
    assert leaders == [("controller", 1), ("standby", 2)]
    (fault,) = result.faults
    assert (fault.cause, fault.rank, fault.state, fault.committed_steps_lost) == ("exit", 2, "repaired", 0)
    assert "SIGKILL" in fault.evidence.verdict, "its agent told of the end again"
    assert [event["generation"] for event in events if event["kind"] == "generation"] == [1, 2]
    assert "standby leads now" in (folder / "logs" / "controller.log").read_text()
    assert (read_json(own / "result.json") or {})["ok"] and not (folder / "result.json").exists()
