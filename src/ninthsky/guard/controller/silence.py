"""Hosts that say nothing: one that does not answer in a regroup holds up all others, and with none left a person is called."""

from __future__ import annotations

from ninthsky.evidence import Fact
from ninthsky.guard.controller.regroup import Regroup
from ninthsky.guard.controller.remedies import Remedies
from ninthsky.guard.controller.state import JobState
from ninthsky.guard.faults import Fault
from ninthsky.guard.judges import Verdict
from ninthsky.guard.judges.host import maybe_deaf

ALL_FACTOR = 5.0  # of `host_seconds`, after which it is told that no host at all reports
UNHEARD_FACTOR = 2.0  # likewise, after which a silent host for which nobody waits is told: by then a lost one is a fault
DOUBTFUL = 1.0  # seconds without a report, or four of its periods: then the judge of hosts is waited for


class Silence:
    """`tick` comes ten times a second. While training goes on, the judge of hosts names those that others wait for."""

    def __init__(self, state: JobState, remedies: Remedies, regroup: Regroup) -> None:
        self._state, self._remedies, self._regroup = state, remedies, regroup
        self._alone: Fault | None = None
        self._unheard: set[str] = set()
        self._next = 0.0

    @property
    def doubtful(self) -> bool:
        """Whether a host has been silent for so long that what breaks now may be its end, which its judge has yet to tell."""
        silence = self._of_all().values()
        limit = max(DOUBTFUL, 4 * self._state.spec.report_seconds)
        return any(limit < seconds < self._state.watch.host_seconds + limit for seconds in silence)

    def tick(self) -> None:
        state = self._state
        if state.clock() < self._next:
            return
        self._next = state.clock() + state.spec.report_seconds / 2
        silence = self._of_all()
        silent = [host for host, seconds in silence.items() if seconds > state.watch.host_seconds]
        longest = max(silence.values(), default=0.0)
        deaf = maybe_deaf(len(silent), len(silence), longest, state.watch.host_seconds)
        if state.stage in {"collect", "wait"} and not deaf and silent and len(silent) < len(silence):
            self._lose(silent, longest)
        if state.stage == "run" and not deaf and len(silent) < len(silence):
            self._tell_unheard(silence)
        if state.stage in {"collect", "wait", "form", "run"}:
            self._tell_if_alone(min(silence.values(), default=0.0))

    def _of_all(self) -> dict[str, float]:
        now, hosts = self._state.clock(), self._state.roster.hosts
        return {host: now - hosts[host].heard for host in self._state.roster.live()}

    def _tell_unheard(self, silence: dict[str, float]) -> None:
        """Its ranks train on, or others would wait for them: its agent, or its line to here. Nobody is moved for that."""
        state = self._state
        limit = UNHEARD_FACTOR * state.watch.host_seconds
        for host, seconds in silence.items():
            if seconds > limit and host not in self._unheard:
                self._unheard.add(host)
                reason = "training goes on with its ranks: look at its agent, and at the network between it and the controller"
                state.tell("host.unheard", host=host, seconds=round(seconds, 1), reason=reason)
            elif seconds < state.watch.host_seconds and host in self._unheard:
                self._unheard.discard(host)
                state.tell("host.heard", host=host)

    def _lose(self, hosts: list[str], longest: float) -> None:
        state = self._state
        names = ", ".join(hosts)
        ranks = tuple(rank for rank, proc in enumerate(state.roster.places) if proc.host in hosts)
        if not ranks or state.watch.action == "advise":  # nobody's place is to be filled, or a person has allowed the regroup
            for host in hosts:
                state.lose(host)
            self._regroup.begin(f"host {names} went silent during a regroup")
            return
        facts = (Fact("no report from its agent", longest, state.watch.host_seconds, "s", "controller"),)
        text = "host is lost or cut off: its agent did not answer in a regroup, other hosts did"
        self._remedies.fault(Verdict("host", ranks, text, facts, (), 0.9, host=names, onset=longest))

    def _tell_if_alone(self, shortest: float) -> None:
        """The controller cannot know whether they are gone or it is: it tells, and does nothing to the job."""
        state, limit = self._state, ALL_FACTOR * self._state.watch.host_seconds
        if shortest <= limit:
            if self._alone is not None and self._alone.state == "advised":
                self._remedies.close(self._alone)
            self._alone = None
        elif self._alone is None:
            facts = (Fact("no report from any host", shortest, limit, "s", "controller"),)
            text = "no host reports: all are lost, or the controller is cut off from all"
            verdict = Verdict("host", (), text, facts, (), 0.5, onset=shortest)
            step = max(state.fleet.step(), state.resume_step + 1)
            self._alone = fault = state.book.open(verdict, state.fleet.window(state.clock()), step, state.wall())
            fault.state = "advised"
            state.book.remedy(fault, "nothing done: look at the network between controller and hosts, then at the hosts")
            state.tell("fault.named", **fault.named())
            state.tell("fault.advised", fault=fault.id, remedy=fault.evidence.remedy)
