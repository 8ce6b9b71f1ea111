"""PyTorch flight-recorder dumps of many ranks -> the ranks that held the others up.

Every rank's device stands in its oldest operation that is not finished: its *head*. It waits there for those of the operation's
ranks that are not in it: whose head is another one, whose program did not enter it, or of whom no dump is there. Followed from
rank to rank, waiting ends at the bad ones, each by a mark that a victim cannot bear:

- `device`: others have finished the operation that it still stands in;
- `program`: it did not enter what others stand in, and stands in nothing itself, or its program stopped before those of the
  ranks that do the same as it does;
- `mismatch`: it entered another operation than its peers did, under the same number;
- `missing`: it left no dump, and nobody else explains the waiting.

Never by a clock: hosts' clocks differ.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from ninthsky.evidence import Fact
from ninthsky.guard.passive.dumps import Dump, Operation, Progress


@dataclass(frozen=True)
class Suspect:
    """A rank that others waited for. `stuck`: device, program, mismatch or missing."""

    rank: int
    stuck: str
    waiting: int  # ranks that wait for it, directly or through others
    facts: tuple[Fact, ...] = field(default=())


class _Job:
    """All ranks' dumps side by side."""

    def __init__(self, dumps: Iterable[Dump]) -> None:
        self.ranks = {dump.rank: dump for dump in dumps}
        self.members = self._members()
        self.groups = self._groups()
        self.waits = {rank: self._waits(dump) for rank, dump in self.ranks.items()}
        self.waited_for: dict[int, set[int]] = defaultdict(set)  # rank -> those that wait for it themselves
        for rank, others in self.waits.items():
            for other in others:
                self.waited_for[other].add(rank)

    def _members(self) -> dict[str, tuple[int, ...]]:
        """Group -> its ranks, as the dumps tell them; gloo's do not: then those whose entries name it."""
        told = {name: ranks for dump in self.ranks.values() for name, ranks in dump.members.items()}
        seen: dict[str, set[int]] = defaultdict(set)
        for rank, dump in self.ranks.items():
            for name in dump.progress:
                seen[name].add(rank)
        return {name: tuple(sorted(ranks)) for name, ranks in seen.items()} | told

    def taking_part(self, operation: Operation) -> tuple[int, ...]:
        """The ranks of an operation."""
        return operation.ranks or self.members.get(operation.group, ())

    def _groups(self) -> dict[str, dict[int, Progress]]:
        """Group -> progress of its members. A rank with nothing open may have no entries, only numbered states: its groups are
        found by its own order of them, or else (gloo) through the number that the other members give them."""
        groups: dict[str, dict[int, Progress]] = defaultdict(dict)
        for rank, dump in self.ranks.items():
            for name, at in dump.progress.items():
                groups[name][rank] = at
        for name, known in groups.items():
            members = self.members.get(name, ())
            numbers = Counter(self.ranks[rank].number_of[name] for rank in known)
            usual = numbers.most_common(1)[0][0]
            for rank in members:
                if rank not in self.ranks or rank in known:
                    continue
                dump = self.ranks[rank]
                number = dump.number_of.get(name, "" if dump.members else usual)
                if number in dump.status:
                    known[rank] = dump.status[number]
        return groups

    def progress(self, rank: int, group: str) -> Progress | None:
        return self.groups.get(group, {}).get(rank)

    def overtaken(self, rank: int) -> dict[str, int]:
        """Group -> how many collectives others have finished there that this rank has not."""
        return {
            name: ahead
            for name, known in self.groups.items()
            if rank in known and (ahead := max(at.completed for at in known.values()) - known[rank].completed) > 0
        }

    def _waits(self, dump: Dump) -> set[int]:
        """Whom a rank's device waits for; nobody where others have finished what it stands in."""
        head = dump.head
        if head is None or head.group in self.overtaken(dump.rank) or self.past(dump.rank):
            return set()
        return {other for other in self.taking_part(head) if other != dump.rank and not self._is_in(other, head, dump.rank)}

    def past(self, rank: int) -> list[int]:
        """Of those who take part in what a rank's device stands in, the ones that stand in a collective which that rank only
        comes to later: unless the program deadlocks by itself they have finished with it, sends and receives as well."""
        dump = self.ranks[rank]
        if dump.head is None:
            return []
        later = {(operation.group, operation.number) for operation in dump.pending[1:] if not operation.pair}
        heads = {
            other: self.ranks[other].head for other in self.taking_part(dump.head) if other != rank and other in self.ranks
        }
        return [other for other, head in heads.items() if head and not head.pair and (head.group, head.number) in later]

    def _is_in(self, other: int, head: Operation, rank: int) -> bool:
        dump = self.ranks.get(other)
        if dump is None or dump.head is None:
            return False
        if head.pair:
            return dump.head.pair and dump.head.group == head.group and rank in self.taking_part(dump.head)
        return not dump.head.pair and (dump.head.group, dump.head.number) == (head.group, head.number)

    def behind(self, rank: int) -> set[int]:
        """All that wait for a rank, directly or through others."""
        found: set[int] = set()
        todo = [rank]
        while todo:
            for other in self.waited_for.get(todo.pop(), ()):
                if other not in found:
                    found.add(other)
                    todo.append(other)
        return found - {rank}


def suspects(dumps: Iterable[Dump]) -> list[Suspect]:
    """Those most waited for first; empty where nobody bears a mark."""
    job = _Job(dumps)
    if not any(job.waits.values()) and not any(map(job.overtaken, job.ranks)):
        return [] if not (odd := _mismatches(job)) else _told(job, odd)
    found = _mismatches(job)
    for rank, dump in job.ranks.items():
        if rank in found:
            continue
        if dump.head is not None and not job.waits[rank] and (ahead := job.overtaken(rank)):
            name, most = max(ahead.items(), key=lambda item: item[1])
            source = f"flight recorder, {dump.kinds.get(name) or name}"
            fact = Fact("collectives not completed that others have", float(most), 0.0, source=source)
            found[rank] = ("device", (fact, Fact("it stands in", str(dump.head), source="its recorder")))
        elif past := job.past(rank):
            facts = (
                Fact("rank that has finished with it", float(past[0])),
                Fact("it stands in", str(dump.head), source="its recorder"),
            )
            found[rank] = ("device", facts)
        elif dump.head is None and job.waited_for.get(rank):
            found[rank] = ("program", _late(job, rank))
    for rank in _stopped(job, set(found)):
        found[rank] = ("program", _late(job, rank))
    missing = {rank for rank in job.waited_for if rank not in job.ranks}
    if missing and not found:
        found = dict.fromkeys(_first_missing(job, missing), ("missing", (Fact("its dump", "is not there"),)))
    return _told(job, found)


Marks = dict[int, tuple[str, tuple[Fact, ...]]]  # rank -> how it is stuck, and what shows it
Told = dict[tuple[str, int], dict[int, tuple[str, str]]]  # (group, number) -> rank -> (operation, shape)


def _told(job: _Job, found: Marks) -> list[Suspect]:
    told = []
    for rank, (stuck, facts) in found.items():
        waiting = len(job.behind(rank))
        fact = Fact("ranks that wait for it", float(waiting), source="flight recorders")
        told.append(Suspect(rank, stuck, waiting, (fact, *facts)))
    return sorted(told, key=lambda suspect: (-suspect.waiting, suspect.rank))


def _late(job: _Job, rank: int) -> tuple[Fact, ...]:
    """Collectives that others stand in and it did not enter."""
    missed = []
    for name, known in job.groups.items():
        if rank in known and (front := max(at.enqueued for at in known.values())) > known[rank].enqueued:
            kind = next(iter(job.ranks.values())).kinds.get(name) or name
            less = float(front - known[rank].enqueued)
            missed.append(Fact("collectives not entered that others entered", less, 0.0, source=kind))
    return tuple(missed[:2])


def _stopped(job: _Job, marked: set[int]) -> list[int]:
    """Ranks whose device waits for another and whose program has stopped too: of all that stand in the same operation and do
    the same from there on, its program came least far."""
    found = []
    for rank, dump in job.ranks.items():
        if rank in marked or dump.head is None or dump.head.pair:
            continue
        own = [_like(operation) for operation in dump.pending]
        further = [
            len(job.ranks[other].pending) - len(own)
            for other in job.taking_part(dump.head)
            if other != rank
            and other in job.ranks
            and job.ranks[other].head == dump.head
            and (theirs := [_like(operation) for operation in job.ranks[other].pending])
            and own[: len(theirs)] == theirs[: len(own)]
        ]
        if further and min(further) > 0:
            found.append(rank)
    return found


def _like(operation: Operation) -> tuple[str, str, bool]:
    """What is the same for ranks that do the same: without places and groups."""
    return re.sub(r"\d+", "", operation.name), operation.shape, operation.pair


def _mismatches(job: _Job) -> Marks:
    """Ranks that entered another operation under a number than most of their group, or than most groups of the same kind."""
    told: Told = defaultdict(dict)
    for rank, dump in job.ranks.items():
        for operation in dump.operations:
            told[operation.group, operation.number][rank] = (operation.name, operation.shape)
    found: Marks = {}
    for (group, number), said in sorted(told.items(), key=lambda item: item[0][1]):
        if len(set(said.values())) < 2 or len(said) < 2:
            continue
        (usual, most), *_ = Counter(said.values()).most_common()
        odd = [rank for rank, operation in said.items() if operation != usual]
        if 2 * most <= len(said):
            odd = _odd_beside_sisters(job, told, group, number)
        for rank in odd:
            if rank not in found and len({name for name, _ in said.values()}) > 1:
                fact = Fact("it entered", said[rank][0], usual[0], source=f"flight recorder, {group}, number {number}")
                found[rank] = ("mismatch", (fact,))
        if odd:
            break  # what comes after the first is its echo
    return found


def _odd_beside_sisters(job: _Job, told: Told, group: str, number: int) -> list[int]:
    """Where a group is split in halves: who differs from what groups of the same kind entered under that number."""
    kinds = {name: kind for dump in job.ranks.values() for name, kind in dump.kinds.items()}
    said = told[group, number]
    others = Counter(
        operation
        for (name, at), there in told.items()
        if at == number and name != group and kinds.get(name) == kinds.get(group)
        for operation in there.values()
    )
    if not others:
        return []
    usual = others.most_common(1)[0][0]
    odd = [rank for rank, operation in said.items() if operation != usual]
    return odd if len(odd) < len(said) else []


def _first_missing(job: _Job, missing: set[int]) -> list[int]:
    """Of the ranks without a dump those that are no victims themselves: in the smallest group that one shares with others, all
    others stand and wait for it. A victim's peers stand elsewhere, where it will stand as well."""
    found = []
    for rank in missing:
        own = [name for name, ranks in job.members.items() if rank in ranks and len(ranks) > 1]
        for name in sorted(own, key=lambda name: len(job.members[name])):
            peers = [other for other in job.members[name] if other in job.ranks]
            there = [other for other in peers if (head := job.ranks[other].head) is not None and head.group == name]
            if peers and len(there) == len(peers) and any(rank in job.waits[other] for other in there):
                found.append(rank)
            if peers:
                break
    return found or [rank for rank in missing if any(job.waits[one] <= missing for one in job.waited_for[rank])]
