"""Faults as files: faults/F-0001.json holds the evidence, the times, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from ninthsky.evidence import Evidence, Fact
from ninthsky.guard.judges import Verdict
from ninthsky.guard.judges.verdict import BEHIND
from ninthsky.guard.spec import Injected
from ninthsky.run.folder import write_json

State = Literal["open", "repaired", "advised", "stopped"]

_INJECTED_AS = {
    "exit": ("kill",),
    "frozen": ("freeze",),
    "nonfinite": ("nan", "flip_gradient"),
    "corrupt": ("flip_gradient", "flip_weight", "wrong_matmul", "bad_card"),
    "slow": ("slow",),
    "outlier": ("bad_card", "bad_data"),
}


class Places(Protocol):
    """Where ranks are: the controller's window of the fleet, or what a watch from outside knows."""

    @property
    def generation(self) -> int: ...

    @property
    def hosts(self) -> tuple[str, ...]:
        """Of each rank."""

    def place(self, rank: int) -> str:
        """`host-1/0`: the card that holds the rank."""


class Timeline(msgspec.Struct, omit_defaults=True):
    """Unix seconds by the controller's clock. `began` is reckoned back from the evidence (age of the last heartbeat, say)."""

    began: float | None = None
    noticed: float | None = None  # the evidence reached the controller
    named: float | None = None  # the verdict was told
    aborted: float | None = None  # survivors were told to let go
    assigned: float | None = None  # places were given out
    joined: float | None = None  # every rank joined the new generation
    trained: float | None = None  # every rank passed the first gate after the fault


class Fault(msgspec.Struct, kw_only=True):
    """One fault, from its first sign to the first step after it."""

    id: str
    cause: str
    state: State
    injected: bool
    generation: int
    resumed_generation: int | None = None
    resume_step: int | None = None
    step: int
    rank: int | None
    host: str
    card: str
    replaced_by: str = ""
    steps_redone: int = 0
    committed_steps_lost: int = 0
    timeline: Timeline
    evidence: Evidence

    def named(self) -> dict[str, Any]:
        """The fields of the event that names it."""
        e = self.evidence
        return {
            "fault": self.id, "cause": self.cause, "subject": e.subject, "verdict": e.verdict, "injected": self.injected,
            "host": self.host, "card": self.card, "rank": self.rank, "step": self.step, "generation": self.generation,
            "facts": [str(fact) for fact in e.facts], "ruled_out": list(e.ruled_out), "remedy": e.remedy,
            "confidence": e.confidence, "seconds": self.seconds("named"),
        }  # fmt: skip

    def repaired(self) -> dict[str, Any]:
        """The fields of the event that tells of its repair."""
        return {
            "fault": self.id, "cause": self.cause, "rank": self.rank, "was": self.card or self.host, "now": self.replaced_by,
            "seconds": self.seconds("trained"), "named_seconds": self.seconds("named"), "steps_redone": self.steps_redone,
            "committed_steps_lost": self.committed_steps_lost, "remedy": self.evidence.remedy, "injected": self.injected,
        }  # fmt: skip

    def __str__(self) -> str:
        return f"{self.id}: {self.evidence.subject}: {self.evidence.verdict}"

    def seconds(self, mark: str) -> float | None:
        """From its beginning to `named`, `joined`, `trained`..."""
        end, began = getattr(self.timeline, mark), self.timeline.began
        return None if end is None or began is None else round(end - began, 4)


def read_faults(folder: Path) -> list[Fault]:
    """Faults of a job's folder, in order."""
    return [msgspec.json.decode(path.read_bytes(), type=Fault) for path in sorted(folder.glob("F-*.json"))]


class FaultBook:
    """All faults of a job; each change is written at once."""

    def __init__(self, folder: Path, injected: list[Injected]) -> None:
        self.folder = folder
        self.faults: list[Fault] = read_faults(folder)
        self._injected = list(injected)
        for fault in self.faults:
            if fault.injected:
                self._match(fault.cause, fault.rank, fault.step)

    def open(self, verdict: Verdict, window: Places, step: int, wall: float) -> Fault:
        """A new fault. `wall` is the time now, in Unix seconds."""
        number = f"F-{len(self.faults) + 1:04d}"
        rank = verdict.ranks[0] if verdict.ranks else None
        host = verdict.host or (window.hosts[rank] if rank is not None else "")
        card = window.place(rank) if rank is not None and verdict.cause != "host" else ""
        injected = self._match(verdict.cause, rank, step)
        where: dict[str, str | int | float] = {"generation": window.generation, "step": step}
        where |= {"host": host} if host else {}
        where |= {"playbook": verdict.playbook} if verdict.playbook else {}
        where |= {"hard": 1} if verdict.hard else {}
        where |= {"card": card} if card else {}
        where |= {"rank": rank} if rank is not None and verdict.cause != "host" else {}
        hosts = f"hosts {host}" if ", " in host else f"host {host}"
        subject = (card and f"card {card} (rank {rank})") or (host and hosts) or "the job"
        evidence = Evidence(
            id=number,
            kind="fault",
            subject=subject,
            verdict=verdict.text + (" (injected by this run)" if injected else ""),
            facts=verdict.facts,
            ruled_out=verdict.ruled_out,
            confidence=verdict.confidence,
            decided_by=verdict.judge,
            where=where,
        )
        fault = Fault(
            id=number,
            cause=verdict.cause,
            state="open",
            injected=injected,
            generation=window.generation,
            step=step,
            rank=rank,
            host=host,
            card=card,
            timeline=Timeline(began=wall - verdict.onset, noticed=wall, named=wall),
            evidence=evidence,
        )
        self.faults.append(fault)
        self.save(fault)
        return fault

    def amend(self, fault: Fault, verdict: Verdict) -> None:
        """More evidence came: the verdict is replaced, the fault stays the same."""
        fault.evidence = msgspec.structs.replace(
            fault.evidence,
            verdict=verdict.text + (" (injected by this run)" if fault.injected else ""),
            facts=verdict.facts,
            ruled_out=verdict.ruled_out,
            confidence=verdict.confidence,
            where=fault.evidence.where | ({"playbook": verdict.playbook} if verdict.playbook else {}),
        )
        self.save(fault)

    def turn_into(self, fault: Fault, verdict: Verdict, window: Places, step: int, wall: float) -> None:
        """What was a warning has become a fault: the same number, its own beginning."""
        rank = verdict.ranks[0]
        fault.cause, fault.generation, fault.step, fault.rank = verdict.cause, window.generation, step, rank
        fault.host, fault.card = window.hosts[rank], window.place(rank)
        fault.timeline = Timeline(began=wall - verdict.onset, noticed=wall, named=wall)
        where = {**fault.evidence.where, "generation": window.generation, "step": step, "card": fault.card, "rank": rank}
        told = f"told as a warning before ({fault.evidence.verdict})"
        fault.evidence = msgspec.structs.replace(
            fault.evidence,
            subject=f"card {fault.card} (rank {rank})",
            where={**where, "playbook": verdict.playbook},
            decided_by=verdict.judge,
            remedy=told,
        )
        self.amend(fault, verdict)

    def explain(self, fault: Fault, fact: Fact, playbook: str, title: str, *, hard: bool) -> None:
        """A reason came after the fault was named: it is the first evidence. `hard` ones take a lesser reason's place."""
        evidence = fault.evidence
        where = {**evidence.where, "playbook": playbook} | ({"hard": 1} if hard else {})
        verdict = f"{evidence.verdict.split(BEHIND)[0]}{BEHIND}{title}"
        facts = (fact, *evidence.facts)
        fault.evidence = msgspec.structs.replace(evidence, verdict=verdict, facts=facts, where=where)
        self.save(fault)

    def add(self, fault: Fault, fact: Fact) -> None:
        """Evidence that was sought after the fault was named."""
        fault.evidence = msgspec.structs.replace(fault.evidence, facts=(*fault.evidence.facts, fact))
        self.save(fault)

    def remedy(self, fault: Fault, text: str) -> None:
        """Adds a rung of the ladder to what was done."""
        before = fault.evidence.remedy
        fault.evidence = msgspec.structs.replace(fault.evidence, remedy=f"{before}; then {text}" if before else text)
        self.save(fault)

    def save(self, fault: Fault) -> None:
        write_json(self.folder / f"{fault.id}.json", msgspec.to_builtins(fault))

    def open_ones(self) -> Iterator[Fault]:
        return (fault for fault in self.faults if fault.state == "open")

    def _match(self, cause: str, rank: int | None, step: int) -> bool:
        """Whether this is a fault that the job inflicted on itself; each injection explains one fault."""
        for injected in self._injected:
            near = step - injected.step
            if (
                injected.kind in _INJECTED_AS.get(cause, ())
                and injected.rank == rank
                and near >= -1
                and (near <= 2 or cause in {"slow", "corrupt"})
            ):
                self._injected.remove(injected)
                return True
        return False
