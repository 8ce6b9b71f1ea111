"""Calls to people, against a real HTTP server on this machine."""

from __future__ import annotations

import json
import threading
import time

import pytest

from ninthsky.errors import UserError
from ninthsky.guard.out.calls import Calls
from ninthsky.guard.out.webhook import alert_of, body_of, check_url, send
from tests.guard.out.receiver import Receiver

NAMED = {
    "time": 1_700_000_000.0, "kind": "fault.named", "fault": "F-0001", "cause": "exit", "subject": "card a/0 (rank 1)",
    "verdict": "process ended", "injected": False, "host": "a", "card": "a/0", "rank": 1, "step": 7,
    "facts": ["exit status = 9"], "remedy": "regrouped",
}  # fmt: skip


def body(url: str) -> bytes:
    alert = alert_of(NAMED, "job-1", {})
    assert alert is not None
    return body_of(alert, url)


def test_a_fault_arrives_as_alertmanager_would_tell_it(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N9_WEBHOOK_TOKEN", "secret")
    assert send(receiver.url, body(receiver.url))(threading.Event())
    ((path, headers, told),) = receiver.taken
    assert path == "/hook" and headers["Authorization"] == "Bearer secret"
    assert (told["version"], told["status"], told["receiver"]) == ("4", "firing", "ninthsky")
    (alert,) = told["alerts"]
    assert alert["labels"] == {"alertname": "NinthskyFault", "job": "job-1", "fault": "F-0001"}
    assert alert["annotations"]["summary"] == "card a/0 (rank 1): process ended"
    assert (alert["annotations"]["card"], alert["annotations"]["evidence"]) == ("a/0", "exit status = 9")
    assert (alert["startsAt"], alert["endsAt"]) == ("2023-11-14T22:13:20Z", "0001-01-01T00:00:00Z")


def test_the_end_has_the_beginnings_labels_and_time() -> None:
    began: dict[str, float] = {}
    first = alert_of(NAMED, "j", began)
    end = {
        "time": 1_700_000_060.0,
        "kind": "fault.repaired",
        "fault": "F-0001",
        "was": "a/0",
        "now": "b/2",
        "remedy": "regrouped",
    }
    last = alert_of(end, "j", began)
    assert first is not None and last is not None
    assert (last.labels, last.startsAt) == (first.labels, first.startsAt) and last.status == "resolved"
    assert last.endsAt == "2023-11-14T22:14:20Z" and not began
    own = json.loads(body_of(last, "http://x/api/v2/alerts"))
    assert [set(sent) for sent in own] == [{"labels", "annotations", "startsAt", "endsAt"}]
    assert alert_of({"time": 1.0, "kind": "commit", "step": 1}, "j", began) is None
    failed = alert_of({"time": 1.0, "kind": "job.failed", "reason": "x"}, "j", began)
    assert failed is not None and failed.annotations["severity"] == "critical"


def test_it_is_tried_again_until_it_is_taken_and_not_against_a_refusal(receiver: Receiver) -> None:
    receiver.answers = [503, 429, 500]
    assert send(receiver.url, body(receiver.url), first_wait=0.01)(threading.Event())
    assert len(receiver.taken) == 4
    receiver.answers = [400]
    assert not send(receiver.url, body(receiver.url), first_wait=0.01)(threading.Event())
    receiver.answers = [302]
    assert not send(receiver.url, body(receiver.url), first_wait=0.01, tries=1)(threading.Event())
    assert [path for path, _, _ in receiver.taken] == ["/hook"] * 6, "never sent elsewhere"


def test_nobody_there_holds_up_nobody_and_what_is_lost_is_counted() -> None:
    calls = Calls("t", waiting=2)
    nowhere = "http://127.0.0.1:9/"
    call = send(nowhere, body(nowhere), first_wait=30.0)
    begun = time.monotonic()
    taken = [calls.put(call)]
    while calls.waiting:
        time.sleep(0.001)
    taken += [calls.put(call) for _ in range(4)]
    assert taken == [True, True, True, False, False]
    calls.close(0.0)
    assert time.monotonic() - begun < 20.0, "it must not have waited for its thirty seconds"
    assert (calls.done, calls.lost) == (0, 5)


def test_an_address_is_checked_before_the_job_starts() -> None:
    check_url("https://example.org/x")
    for url in ("file:///etc/passwd", "example.org", "ftp://x/", "http://"):
        with pytest.raises(UserError):
            check_url(url)
