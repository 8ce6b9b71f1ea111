"""Which note is the reason of which verdict: by card, by time, by what it can explain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ninthsky.guard.judges import Verdict
from ninthsky.guard.judges.trouble import Sighting, explain, judge_trouble
from ninthsky.guard.telemetry.note import Note
from tests.guard.test_judges import LIMITS, window


def seen(
    host: str = "host-1", slot: int = 0, before: float = 2.0, weight: Any = "hard", cause: str = "gpu_fell_off_bus", **more: Any
) -> Sighting:
    """At 100 s, when the windows are of; `before` seconds earlier."""
    return Sighting(
        host, 100.0 - before, Note(more.pop("source", "kernel"), weight, cause, slot, more.pop("text", cause), **more)
    )


HANG = Verdict("frozen", (2,), "process is frozen", (), confidence=0.9)


def test_the_culprits_own_card_first_then_its_host() -> None:
    w = window()
    own, host, other = seen(), seen(slot=-1, cause="host_memory", weight="warning"), seen(slot=1)
    verdict, used = explain(HANG, w, [host, other, own])
    assert used == [own, host] and verdict.playbook == "gpu_fell_off_bus" and verdict.hard
    assert verdict.ranks == (2,) and verdict.cause == "frozen" and verdict.facts[0].value == "gpu_fell_off_bus"


@pytest.mark.parametrize(
    "sighting",
    [
        seen(host="host-0"),
        seen(before=-3.0),  # it came after: what ending a process leaves behind
        seen(before=500.0),
        seen(cause="thermal"),  # heat stops nobody
        seen(cause="", weight="said"),
        seen(cause="host_oom", weight="said"),
        seen(cause="user_code", weight="said"),
    ],
)
def test_no_reason(sighting: Sighting) -> None:
    assert explain(HANG, window(), [sighting]) == (HANG, [])


def test_the_time_is_that_of_the_faults_beginning() -> None:
    late = Verdict("frozen", (2,), "process is frozen", (), onset=60.0)
    assert not explain(late, window(), [seen(before=50.0)])[1]
    assert explain(late, window(), [seen(before=61.0)])[1]


def test_a_figure_of_an_exporter_may_be_older_and_later() -> None:
    slow = Verdict("slow", (2,), "own work takes longer", (), confidence=0.75)
    verdict, used = explain(slow, window(), [seen(cause="thermal", weight="said", source="exporter", before=700.0)])
    assert used and verdict.playbook == "thermal" and not verdict.hard and verdict.confidence == 0.75
    assert explain(slow, window(), [seen(cause="thermal", source="exporter", before=-10.0)])[1]


def test_memory_that_ran_out_explains_a_kill_only() -> None:
    oom = seen(cause="host_oom", weight="said")
    assert not explain(Verdict("exit", (2,), "process ended with status 1", ()), window(), [oom])[1]
    assert explain(Verdict("exit", (2,), "process ended by SIGKILL (signal 9)", ()), window(), [oom])[1]


def test_a_lost_host_by_its_own_last_words() -> None:
    lost = Verdict("host", (2, 3), "host is lost", (), host="host-1")
    verdict, _ = explain(lost, window(), [seen(slot=-1, cause="power", weight="warning")])
    assert verdict.playbook == "power" and verdict.host == "host-1"


def test_nobody_blamed_and_one_card_told_of_itself() -> None:
    nobody = Verdict("unknown", (), "every rank entered the same collective", (), confidence=0.5)
    verdict, used = explain(nobody, window(), [seen(), seen(weight="warning", slot=1)])
    assert (verdict.cause, verdict.ranks, len(used)) == ("trouble", (2,), 1)
    verdict, used = explain(nobody, window(), [seen(), seen(host="host-0")])
    assert (verdict.cause, verdict.ranks, len(used)) == ("unknown", (), 2)
    verdict, _ = explain(nobody, window(), [seen(slot=-1)])
    assert verdict.ranks == () and verdict.facts[0].name == "kernel log", "of the host, and no card is named"
    assert explain(nobody, window(), [seen(before=90.0)]) == (nobody, [])


def test_alone() -> None:
    w = window()
    assert not judge_trouble(w, [seen(before=1.0), seen(weight="said", before=50.0)], LIMITS), (
        "what is fresh may yet be a reason"
    )
    (finding,) = judge_trouble(w, [seen(before=20.0), seen(before=19.0)], LIMITS)
    assert (finding.verdict.cause, finding.verdict.ranks, len(finding.sightings)) == ("trouble", (2,), 2)
    (finding,) = judge_trouble(w, [seen(before=20.0, weight="warning", cause="thermal")], LIMITS)
    assert (finding.verdict.cause, finding.verdict.ranks) == ("warning", (2,))
    (finding,) = judge_trouble(w, [seen(before=20.0, slot=7)], LIMITS)
    assert (finding.verdict.cause, finding.verdict.ranks, finding.verdict.host) == ("warning", (), "host-1"), "no rank is on it"
    used = seen(before=20.0)
    used.used = True
    assert not judge_trouble(w, [used], LIMITS)


def test_thousands_of_ranks() -> None:
    w = window(18_432, 8, quiet=np.full(18_432, 0.1))
    found = judge_trouble(w, [seen(host=f"host-{n}", before=20.0) for n in range(100)], LIMITS)
    assert [finding.verdict.ranks[0] for finding in found] == [8 * n for n in range(100)]
