"""Who is there: hosts with their agents, the processes in their card slots, and which of them holds which rank."""

from __future__ import annotations

from dataclasses import dataclass

from ninthsky.guard.controller.placement import Card
from ninthsky.guard.spec import JobSpec


@dataclass(slots=True)
class Host:
    """An agent as the controller knows it. `events`: number of its last event; `heard`, `asked`: controller's clock."""

    registered: bool = False
    address: str = ""
    port: int = 0
    events: int = 0
    heard: float = 0.0
    asked: float = 0.0


@dataclass(slots=True)
class Proc:
    """A process in a card slot. `out`: it was replaced, and never counts again."""

    host: str
    slot: int
    pid: int
    ready: bool = False
    out: bool = False

    @property
    def card(self) -> str:
        return f"{self.host}/{self.slot}"


class Roster:
    """`places[rank]` is the process that holds the rank, also after it ended, until the next generation."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.hosts = {host.name: Host() for host in spec.hosts}
        self.processes: dict[tuple[str, int], Proc] = {}  # (host, pid) -> those that live
        self._of_host: dict[str, list[Proc]] = {host.name: [] for host in spec.hosts}
        self._places: list[Proc] = []
        self._rank_of: dict[int, int] = {}  # by the process object's identity
        self.lost: set[str] = set()
        self.kept_out: set[str] = set()  # cards
        self.suspected: set[str] = set()  # cards that are tested before they may hold a rank again

    def process(self, host: str, slot: int, pid: int) -> Proc:
        """The process, made known if it was not."""
        proc = self.processes.get((host, pid))
        if proc is None:
            proc = self.processes[host, pid] = Proc(host, slot, pid)
            self._of_host[host].append(proc)
        return proc

    def ended(self, host: str, pid: int) -> Proc | None:
        """The process lives no more; None where it was not known."""
        proc = self.processes.pop((host, pid), None)
        if proc is not None:
            self._of_host[host].remove(proc)
        return proc

    def of_host(self, host: str) -> list[Proc]:
        return list(self._of_host[host])

    def lose(self, host: str) -> None:
        """The host and all its processes count no more."""
        self.lost.add(host)
        for proc in self.of_host(host):
            proc.out = True
            self.ended(host, proc.pid)

    @property
    def places(self) -> list[Proc]:
        return self._places

    @places.setter
    def places(self, places: list[Proc]) -> None:
        self._places = places
        self._rank_of = {id(proc): rank for rank, proc in enumerate(places)}

    def rank_of(self, proc: Proc) -> int | None:
        return self._rank_of.get(id(proc))

    def holds_rank(self, host: str, pid: int) -> bool:
        proc = self.processes.get((host, pid))
        return proc is not None and self.rank_of(proc) is not None

    def live(self) -> list[str]:
        """Hosts that have an agent and were not lost."""
        return [name for name, host in self.hosts.items() if name not in self.lost and host.registered]

    def alive(self, proc: Proc) -> bool:
        return not proc.out and (proc.host, proc.pid) in self.processes

    def candidates(self) -> list[Card]:
        """Cards with a ready process that may hold a rank."""
        barred = self.kept_out | self.suspected
        return [
            Card(proc.host, proc.slot, proc.pid)
            for proc in self.processes.values()
            if proc.ready and not proc.out and proc.host not in self.lost and not (barred and proc.card in barred)
        ]

    def spares(self) -> int:
        """Ready processes without a rank."""
        return len(self.candidates()) - sum(self.alive(proc) for proc in self.places)

    def usable_cards(self, without: set[str] | None = None) -> int:
        """Cards that have, or may get, a process; `without`: hosts that are not counted."""
        gone = self.lost | (without or set())
        kept_out = sum(card.split("/")[0] not in gone for card in self.kept_out)
        return sum(host.slots + host.spares for host in self.spec.hosts if host.name not in gone) - kept_out

    def rank_hosts(self) -> list[str]:
        """Host of each rank."""
        return [proc.host for proc in self.places]

    def table(self) -> list[tuple[str, int, int]]:
        """(host, slot, pid) of each rank."""
        return [(proc.host, proc.slot, proc.pid) for proc in self.places]
