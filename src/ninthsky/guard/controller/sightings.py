"""What hosts told of themselves, as long as it may be the reason of a fault; bounded for each host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from ninthsky.guard.controller.fleet import Window
from ninthsky.guard.judges import Verdict
from ninthsky.guard.judges.trouble import STANDING_SECONDS, Sighting, explain
from ninthsky.guard.telemetry.note import Note

KEPT = 64  # of each host
SAME_SECONDS = 2.0  # two notes of one text are the same where they are so close: agents tell again what may have been lost


class Sightings:
    """All hosts'. Times are the controller's monotonic clock."""

    def __init__(self) -> None:
        self._of_host: dict[str, deque[Sighting]] = {}

    def take(self, host: str, notes: Iterable[Note], now: float) -> list[Sighting]:
        """Those that were not known before."""
        kept = self._of_host.setdefault(host, deque(maxlen=KEPT))
        fresh = []
        for note in notes:
            at = now - max(0.0, note.age)
            if now - at > STANDING_SECONDS or any(_same(old, note, at) for old in kept):
                continue
            kept.append(Sighting(host, at, note))
            fresh.append(kept[-1])
        return fresh

    def all(self) -> Iterator[Sighting]:
        """Every one that is kept, host by host."""
        for kept in self._of_host.values():
            yield from kept

    def fresh(self, now: float) -> list[Sighting]:
        """Without those that are too old to be a reason; these are forgotten."""
        for host, kept in list(self._of_host.items()):
            while kept and now - kept[0].at > STANDING_SECONDS:
                kept.popleft()
            if not kept:
                del self._of_host[host]
        return list(self.all())

    def explain(self, verdict: Verdict, window: Window) -> Verdict:
        """The verdict with its reason, where a host told one; what was used is not told again by itself."""
        if not self._of_host or verdict.cause in {"trouble", "warning"}:
            return verdict  # these are the hosts' own word
        explained, used = explain(verdict, window, self.fresh(window.now))
        for sighting in used:
            sighting.used = True
        return explained


def _same(old: Sighting, note: Note, at: float) -> bool:
    return old.note.text == note.text and old.note.slot == note.slot and abs(old.at - at) < SAME_SECONDS
