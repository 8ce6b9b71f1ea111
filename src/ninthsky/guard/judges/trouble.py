"""What hosts told of themselves (exporter, kernel log): the reason behind another judge's verdict, or a verdict by itself.

A card that fell off the bus shows as an exit or a hang some seconds later: that is one fault, and the host's word is its first
evidence. By itself a note is advice, and moves nobody; only what is a card's fault in any case (table.toml: hard) does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ninthsky.evidence import Fact
from ninthsky.guard.controller.fleet import Window
from ninthsky.guard.judges.verdict import BEHIND, Limits, Verdict
from ninthsky.guard.playbook.book import shipped
from ninthsky.guard.telemetry.note import HOST_WIDE, Note

BEFORE_SECONDS = 120.0  # a reason comes so long before the fault at most
STANDING_SECONDS = 900.0  # an exporter's figure is told once and may hold on: so long
AFTER_SECONDS = 1.0  # and hardly after it: ending a process leaves traces in the kernel's log, too
SCRAPE_SECONDS = 15.0  # an exporter's figure is seen so much later than it came
UNBLAMED_SECONDS = 60.0  # before a hang in which nobody is behind: a card's own fault may name it
HOLD_SECONDS = 10.0  # a warning waits for a verdict that it may be the reason of
SHOWN = 3  # notes among a verdict's facts
_ORDER = {"hard": 0, "warning": 1, "said": 2}

_STOPS = frozenset({"exit", "frozen", "stuck", "unknown", "host", "trouble"})
_WRONG = frozenset({"nonfinite", "outlier", "corrupt"})
# What a cause of the playbook can be the reason of; those not named here, of an exit.
EXPLAINS: dict[str, frozenset[str]] = {
    "gpu_ecc": _STOPS | _WRONG,
    "gpu_sdc": _WRONG,
    "gpu_fell_off_bus": _STOPS,
    "nvlink": _STOPS | {"slow"},
    "fabric_manager": _STOPS,
    "pcie": _STOPS | {"slow"},
    "iommu_acs": _STOPS | _WRONG,
    "thermal": frozenset({"slow", "exit", "host"}),
    "power": frozenset({"slow", "exit", "host"}),
    "hw_straggler": frozenset({"slow"}),
    "host_memory": _STOPS | _WRONG,
    "nic_link": _STOPS | {"slow"},
    "switch": _STOPS | {"slow"},
    "driver": _STOPS,
    "disk_io": frozenset({"exit", "stuck", "frozen", "host", "data"}),
    "filesystem_stall": frozenset({"exit", "stuck", "frozen", "host", "data"}),
    "dataloader": frozenset({"exit", "data"}),
    "": _STOPS,
}
_EXIT = frozenset({"exit"})


@dataclass(eq=False)
class Sighting:
    """A note as the controller holds it: when it came about by the controller's clock, and whether it was told already."""

    host: str
    at: float
    note: Note
    used: bool = False

    @property
    def card(self) -> str:
        return "" if self.note.slot == HOST_WIDE else f"{self.host}/{self.note.slot}"

    def fact(self, began: float) -> Fact:
        """As evidence of something that began at that time."""
        note, gap = self.note, began - self.at
        place = f"card {self.card}" if self.card else f"host {self.host}"
        when = f"{abs(gap):.1f} s {'before' if gap >= 0 else 'after'} it began"
        times = f", {note.count} times" if note.count > 1 else ""
        boot = f", {note.uptime:.1f} s after boot" if note.uptime >= 0 else ""
        return Fact(
            "kernel log" if note.source == "kernel" else "exporter", note.text, note.limit, "", f"{place}, {when}{boot}{times}"
        )


@dataclass(frozen=True)
class Finding:
    """A verdict of judge_trouble and the sightings that it rests on."""

    verdict: Verdict
    sightings: tuple[Sighting, ...]


def explain(verdict: Verdict, window: Window, sightings: Iterable[Sighting]) -> tuple[Verdict, list[Sighting]]:
    """The verdict with what the hosts told about it as its first evidence, and the sightings that belong to it."""
    began = window.now - verdict.onset
    if not verdict.ranks and verdict.cause == "unknown":
        return _name_unblamed(verdict, window, sightings, began)
    hosts = set(verdict.host.split(", ")) if verdict.host else {window.hosts[rank] for rank in verdict.ranks}
    cards = set() if verdict.cause == "host" else {window.place(rank) for rank in verdict.ranks}
    found = [
        sighting
        for sighting in sightings
        if sighting.host in hosts
        and (not sighting.card or not cards or sighting.card in cards)
        and is_reason(sighting, verdict.cause, verdict.text, began)
    ]
    if not found:
        return verdict, []
    ranked = sorted(found, key=lambda sighting: (_ORDER[sighting.note.weight], not sighting.card, abs(sighting.at - began)))
    return _with_reason(verdict, ranked, began), ranked


def is_reason(sighting: Sighting, cause: str, text: str, began: float) -> bool:
    """Whether a note can be the reason of a fault of this cause (and words) that began then."""
    note = sighting.note
    if note.cause == "" and note.weight == "said":
        return False
    if cause not in EXPLAINS.get(note.cause, _EXIT):
        return False
    if note.cause == "host_oom" and "SIGKILL" not in text:
        return False
    exporter = note.source == "exporter"
    before, after = (STANDING_SECONDS, SCRAPE_SECONDS) if exporter else (BEFORE_SECONDS, AFTER_SECONDS)
    return -after <= began - sighting.at <= before


def judge_trouble(window: Window, sightings: Sequence[Sighting], limits: Limits) -> list[Finding]:
    """What hosts told and no other verdict took up: a card's own fault (cause `trouble`), or advice (cause `warning`)."""
    groups: dict[tuple[str, str, str], list[Sighting]] = {}
    for sighting in sightings:
        if not sighting.used and sighting.note.weight != "said":
            groups.setdefault((sighting.host, sighting.card, sighting.note.cause), []).append(sighting)
    rank_of = {window.place(rank): rank for rank in range(window.ranks)}
    findings = []
    for (host, card, cause), found in groups.items():
        rank = rank_of.get(card)
        hard = any(sighting.note.weight == "hard" for sighting in found)
        grace = limits.hang_seconds + 1.0 if hard and rank is not None else HOLD_SECONDS
        first = min(sighting.at for sighting in found)
        if window.now - first < grace:
            continue
        found.sort(key=lambda sighting: (_ORDER[sighting.note.weight], sighting.at))
        text = f"{title_of(cause)}: {found[0].note.text}"
        facts = tuple(sighting.fact(first) for sighting in found[:SHOWN])
        onset = window.now - first
        if hard and rank is not None:
            ruled_out = ("a fault of the program: the host itself tells of the card",)
            verdict = Verdict("trouble", (rank,), text, facts, ruled_out, 0.9, onset=onset, playbook=cause, hard=True)
        else:
            still = ("that it stopped anybody: no rank ended, hung or was slow because of it so far",)
            ranks = () if rank is None else (rank,)
            verdict = Verdict("warning", ranks, text, facts, still, None, host=host, onset=onset, playbook=cause)
        findings.append(Finding(verdict, tuple(found)))
    return findings


def title_of(cause: str) -> str:
    """`gpu_fell_off_bus (the card is gone from the bus)`."""
    known = shipped().causes.get(cause)
    return f"{cause} ({known.title})" if known else "the host tells of trouble that the playbook does not know"


def _with_reason(verdict: Verdict, ranked: list[Sighting], began: float) -> Verdict:
    best = ranked[0].note
    hard = best.weight == "hard"
    return replace(
        verdict,
        text=f"{verdict.text}{BEHIND}{title_of(best.cause)}",
        facts=tuple(sighting.fact(began) for sighting in ranked[:SHOWN]) + verdict.facts,
        confidence=max(verdict.confidence or 0.0, 0.95 if hard else 0.0) or verdict.confidence,
        playbook=best.cause,
        hard=hard,
    )


def _name_unblamed(
    verdict: Verdict, window: Window, sightings: Iterable[Sighting], began: float
) -> tuple[Verdict, list[Sighting]]:
    """Nobody is behind, all stand in the same collective: one card whose host told of its own fault is the one."""
    hard = [
        sighting
        for sighting in sightings
        if sighting.note.weight == "hard" and -AFTER_SECONDS <= began - sighting.at <= UNBLAMED_SECONDS
    ]
    rank_of = {window.place(rank): rank for rank in range(window.ranks)}
    ranks = {rank_of[sighting.card] for sighting in hard if sighting.card in rank_of}
    if not hard:
        return verdict, []
    hard.sort(key=lambda sighting: abs(sighting.at - began))
    told = _with_reason(verdict, hard, began)
    if len(ranks) != 1 or any(sighting.card not in rank_of for sighting in hard):
        return replace(told, confidence=verdict.confidence, hard=False), hard  # evidence, and no name
    (rank,) = ranks
    ruled_out = (*verdict.ruled_out, "another card: no other host told of one")
    return replace(told, cause="trouble", ranks=(rank,), ruled_out=ruled_out, confidence=0.85), hard
