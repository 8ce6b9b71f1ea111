"""Calls people: faults as Alertmanager tells them, by HTTP POST, tried again for a while.

An address that ends in /api/v2/alerts is an Alertmanager's own and gets its list of alerts; any other gets what Alertmanager
sends to its webhook receivers (version 4). Sources: prometheus.io/docs/alerting/latest/configuration (webhook_config),
Alertmanager's api/v2/openapi.yaml.
"""

from __future__ import annotations

import datetime
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ninthsky.errors import UserError

ANSWER_SECONDS = 5.0
TRIES = 6
FIRST_WAIT = 0.5  # doubled after each try: all tries within about 16 s, and the time of their answers
NEVER = "0001-01-01T00:00:00Z"


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert. Times in RFC 3339."""

    status: str  # firing or resolved
    labels: dict[str, str]
    annotations: dict[str, str]
    startsAt: str
    endsAt: str
    generatorURL: str = ""
    fingerprint: str = ""


def alert_of(event: dict[str, Any], job: str, began: dict[str, float]) -> Alert | None:
    """The alert that an event of events.jsonl is, or None where nobody need be called. `began` keeps when each fault began, so
    that its end carries the labels' times of its beginning."""
    kind, at = event["kind"], float(event["time"])
    if kind in {"fault.named", "fault.repaired", "fault.advised"}:
        name = event["fault"]
        began.setdefault(name, at)
        text = {
            "fault.named": f"{event.get('subject')}: {event.get('verdict')}",
            "fault.repaired": f"training again; {event.get('was') or 'nobody'} was replaced by {event.get('now') or 'nobody'}",
            "fault.advised": f"waits for a person: {event.get('remedy')}",
        }[kind]
        severity = "critical" if kind == "fault.advised" else "warning"
        labels = {"alertname": "NinthskyFault", "job": job, "fault": name}
        annotations = {"summary": text, "severity": severity}
        for key in ("cause", "host", "card", "rank", "step", "injected"):
            if event.get(key) not in (None, ""):
                annotations[key] = str(event[key])
        if event.get("facts"):
            annotations["evidence"] = "; ".join(event["facts"])[:2000]
        if event.get("remedy"):
            annotations["remedy"] = str(event["remedy"])[:1000]
        over = kind == "fault.repaired"
        return _alert(labels, annotations, began.pop(name) if over else began[name], at if over else None)
    if kind == "job.failed":
        labels = {"alertname": "NinthskyJobFailed", "job": job}
        return _alert(labels, {"summary": str(event["reason"])[:2000], "severity": "critical"}, at, None)
    if kind == "card.kept_out":
        labels = {"alertname": "NinthskyCardKeptOut", "job": job, "card": str(event["card"])}
        return _alert(labels, {"summary": str(event["reason"])[:1000], "severity": "warning"}, at, None)
    return None


def _alert(labels: dict[str, str], annotations: dict[str, str], start: float, end: float | None) -> Alert:
    return Alert(
        status="firing" if end is None else "resolved",
        labels=labels,
        annotations=annotations,
        startsAt=_moment(start),
        endsAt=NEVER if end is None else _moment(end),
    )


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat().replace("+00:00", "Z")


def body_of(alert: Alert, url: str) -> bytes:
    """What is sent for one alert to this address."""
    if urlsplit(url).path.rstrip("/").endswith("/api/v2/alerts"):
        sent = {"labels": alert.labels, "annotations": alert.annotations, "startsAt": alert.startsAt}
        if alert.status == "resolved":
            sent["endsAt"] = alert.endsAt
        return msgspec.json.encode([sent])
    return msgspec.json.encode(
        {
            "version": "4",
            "groupKey": "{}:{" + ", ".join(f'{key}="{value}"' for key, value in sorted(alert.labels.items())) + "}",
            "truncatedAlerts": 0,
            "status": alert.status,
            "receiver": "ninthsky",
            "groupLabels": alert.labels,
            "commonLabels": alert.labels,
            "commonAnnotations": alert.annotations,
            "externalURL": "",
            "alerts": [msgspec.to_builtins(alert)],
        }
    )


def check_url(url: str) -> None:
    """Raises UserError N9-CFG-012 for what is no http or https address."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UserError("N9-CFG-012", f"no http address: {url!r}", "[guard] webhook", 'webhook = "https://..."')


def send(url: str, body: bytes, *, first_wait: float = FIRST_WAIT, tries: int = TRIES) -> Callable[[threading.Event], bool]:
    """A call for a Calls queue: posts until it is taken, `tries` times at most. Answers of 4xx are final, except 408 and 429.

    N9_WEBHOOK_TOKEN in the environment goes along as a bearer token.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "ninthsky-guard"}
    if token := os.environ.get("N9_WEBHOOK_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"

    def call(ending: threading.Event) -> bool:
        wait = first_wait
        for number in range(tries):
            if number and (ending.wait(wait) or ending.is_set()):
                return False
            wait *= 2 if number else 1
            try:
                request = urllib.request.Request(url, body, headers, method="POST")
                with _opener.open(request, timeout=ANSWER_SECONDS) as answer:
                    return 200 <= answer.status < 300
            except urllib.error.HTTPError as error:
                error.close()
                if 400 <= error.code < 500 and error.code not in {408, 429}:
                    return False
            except OSError:  # no such host, refused, timed out: tried again
                continue
        return False

    return call


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A call with a token goes where it was sent, and nowhere else."""

    def redirect_request(self, *args: Any, **named: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)
