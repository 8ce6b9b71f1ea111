"""What the controller does besides watching: draws the fleet, calls people, orders drains, takes approvals from the page.

All of it may fail without harm: nothing here waits, and what could not be done is counted and told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ninthsky.guard.controller.state import JobState
from ninthsky.guard.faults import Fault
from ninthsky.guard.out.calls import Calls
from ninthsky.guard.out.drain import advice, drain, scheduler_here
from ninthsky.guard.out.webhook import alert_of, body_of, check_url, send
from ninthsky.guard.page.acts import path_of, read_acts_from
from ninthsky.guard.picture import Painter

ORDERS_EVERY = 1.0
END_SECONDS = 3.0


class Outward:
    """`heard` takes each event of the job, `tick` comes ten times a second, `close` at the end."""

    def __init__(self, state: JobState, approve: Callable[[str, float | None, str], bool]) -> None:
        self._state, self._approve = state, approve
        self._painter = Painter(state)
        watch = state.watch
        if watch.webhook:
            check_url(watch.webhook)
        self._calls = Calls("n9-calls") if watch.webhook else None
        self._drains = Calls("n9-drains") if watch.drain != "advise" else None
        self._began: dict[str, float] = {}
        self._said: deque[tuple[str, bool, str]] = deque()  # by the drains' thread: host, done, what was said
        self._drained: set[str] = set()
        self._acts = path_of(Path(state.spec.folder))
        # Approvals of before this start were answered, or nothing waits for them any more.
        self._offset = self._acts.stat().st_size if self._acts.exists() else 0
        self._next_look = 0.0

    def heard(self, event: dict[str, Any]) -> None:
        """An event, after it was written."""
        if self._calls is not None:
            alert = alert_of(event, self._state.spec.run_id, self._began)
            if alert is not None:
                self._calls.put(send(self._state.watch.webhook, body_of(alert, self._state.watch.webhook)))
        if event["kind"] == "card.kept_out":
            host = str(event["card"]).split("/")[0]
            self._drain(host, f"card {event['card']}: {event['reason']}", self._newest(host))
        elif event["kind"] == "fault.named" and event["cause"] == "host":
            for host in event["host"].split(", "):  # a rack is one fault of several hosts
                self._drain(host, event["verdict"], self._newest(event["host"]))

    def tick(self) -> None:
        """Nothing in it waits."""
        queues = [calls for calls in (self._calls, self._drains) if calls is not None]
        self._painter.tick(sum(calls.waiting for calls in queues), sum(calls.lost for calls in queues))
        while self._said:
            host, done, text = self._said.popleft()
            self._state.tell("drain.done" if done else "drain.failed", host=host, text=text)
        now = self._state.clock()
        if now >= self._next_look:
            self._next_look = now + ORDERS_EVERY
            self._take_approvals()

    def close(self) -> None:
        """The last picture, and a little time for the last calls."""
        queues = [calls for calls in (self._calls, self._drains) if calls is not None]
        for calls in queues:
            calls.close(END_SECONDS)
        self.tick()
        self._painter.write(0, sum(calls.lost for calls in queues))

    def _take_approvals(self) -> None:
        acts, self._offset = read_acts_from(self._acts, self._offset)
        for act in acts:
            if act.act == "approve":
                done = self._approve(act.fault, act.named, act.who)
                self._state.tell("approval.done" if done else "approval.useless", fault=act.fault, who=act.who)
            elif act.act == "selftest":
                self._state.suspects.ordered(act.who, act.order, act.time)

    def _newest(self, host: str) -> Fault | None:
        return next((fault for fault in reversed(self._state.book.faults) if fault.host == host), None)

    def _drain(self, host: str, reason: str, fault: Fault | None) -> None:
        if host in self._drained:
            return
        self._drained.add(host)
        node = next((spec.node or spec.name for spec in self._state.spec.hosts if spec.name == host), host)
        setting = self._state.watch.drain
        if setting == "advise" or self._drains is None:
            text = advice(node, reason, scheduler_here())
        else:
            taken = self._drains.put(drain(setting, node, reason, lambda done, said: self._said.append((host, done, said))))
            text = f"{setting} was told to drain node {node}" if taken else f"advised: drain node {node} (too many orders wait)"
        if fault is not None:
            self._state.book.remedy(fault, text)
