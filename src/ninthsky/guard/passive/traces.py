"""PyTorch flight-recorder dumps of many ranks -> the ranks that held the others up.

Every rank's device stands in its oldest operation that is not finished: its *head*. It waits there for those of the operation's
ranks that are not in it: whose head is another one, whose program did not enter it, or of whom no dump is there. Followed from
rank to rank, waiting ends at the bad ones, each by a mark that a victim cannot bear:

- `device`: others have finished the operation that it still stands in;
- `program`: it did not enter what others stand in, and stands in nothing itself, or its program stopped before those of the
  ranks that do the same as it does;
- `mismatch`: it entered another operation than its peers did, under the same number;
- `missing`: it left no dump, and nobody else explains the waiting.

Never by a clock: hosts' clocks differ. NCCL's recorder and gloo's (torch 2.13), as pickles or JSON.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ninthsky.evidence import Fact

LARGEST = 256 << 20  # bytes of one dump
NAME = re.compile(r"(?:^|[^0-9])(\d+)(?:\.(?:pkl|pickle|json))?$")
POINT_TO_POINT = re.compile(r"(?:send|recv)\D*(\d+)(->|<-)(\d+)")  # nccl:send 0->3, nccl:recv 3<-0: places in the group


class DumpError(ValueError):
    """A file that is no flight-recorder dump, or one that asks for classes."""


@dataclass(frozen=True)
class Operation:
    """What a rank's program handed to its device. `number` counts collectives of the group; those of sends are its own."""

    group: str
    number: int
    name: str
    shape: str
    ranks: tuple[int, ...]  # who takes part
    pair: bool

    def __str__(self) -> str:
        return f"{self.name} of {self.group}" + ("" if self.pair else f", number {self.number}")


@dataclass(frozen=True)
class Progress:
    """How far one rank came in one group."""

    enqueued: int
    completed: int


@dataclass(frozen=True)
class Dump:
    """One rank's recorder."""

    rank: int
    members: dict[str, tuple[int, ...]]  # group -> its ranks
    kinds: dict[str, str]  # group -> what it is for
    progress: dict[str, Progress]  # of the groups that its entries name
    status: dict[str, Progress]  # of all groups, under this rank's own numbers
    number_of: dict[str, str]  # group -> its number here, where an entry or the groups' order tells it
    operations: tuple[Operation, ...]  # collectives that the ring still holds, oldest first
    pending: tuple[Operation, ...]  # not finished, oldest first

    @property
    def head(self) -> Operation | None:
        """What its device stands in."""
        return self.pending[0] if self.pending else None


@dataclass(frozen=True)
class Suspect:
    """A rank that others waited for. `stuck`: device, program, mismatch or missing."""

    rank: int
    stuck: str
    waiting: int  # ranks that wait for it, directly or through others
    facts: tuple[Fact, ...] = field(default=())


class _Plain(pickle.Unpickler):
    """Dumps are plain lists, dicts, strings and numbers; anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_dump(path: Path) -> Dump:
    """One dump; its rank is the number that its name ends with. Raises DumpError."""
    named = NAME.search(path.name)
    if named is None:
        raise DumpError("its name does not end with a rank's number")
    try:
        if path.stat().st_size > LARGEST:
            raise DumpError(f"larger than {LARGEST >> 20} MiB")
        raw = path.read_bytes()
        tree = json.loads(raw) if raw[:1] == b"{" else _Plain(io.BytesIO(raw)).load()
        return _dump(int(named[1]), tree)
    except DumpError:
        raise
    except (Exception, RecursionError) as error:  # a damaged pickle may raise nearly anything
        raise DumpError(f"no flight-recorder dump: {type(error).__name__}: {error}") from error


def is_dump(path: Path) -> bool:
    """Whether a file may be a dump, by its first bytes and name."""
    if NAME.search(path.name) is None:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    told = (b'"pg_config"', b'"comm_lib_version"', b'"nccl_version"', b'"collective_seq_id"')
    return head[:1] == b"\x80" or (head[:1] == b"{" and any(word in head for word in told))


def _dump(rank: int, tree: Any) -> Dump:
    entries, config = tree["entries"], tree["pg_config"]
    members = {name: ranks for name, group in config.items() if (ranks := _ranks(group["ranks"]))}
    kinds = {name: group.get("desc", "") for name, group in config.items()}
    number_of: dict[str, str] = {}  # group -> this rank's own number of it
    seen: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    operations, pending = [], []
    for entry in entries:
        # gloo never says "completed"; what is done is retired.
        name, done = str(entry["process_group"][0]), entry["state"] == "completed" or bool(entry.get("retired"))
        kinds.setdefault(name, str(entry["process_group"][1]))
        operation = _operation(entry, name, members.get(name, ()))
        if not operation.pair:
            number_of[name] = str(entry["pg_id"])
            seen[name].append((operation.number, done))
            operations.append(operation)
        if not done:
            pending.append(operation)
    status = {
        str(number): Progress(int(at["last_enqueued_collective"]), int(at["last_completed_collective"]))
        for number, at in tree.get("pg_status", {}).items()
    }
    progress = {}
    for name, numbers in seen.items():
        open_ones = [number for number, done in numbers if not done]
        last = max(number for number, _ in numbers)
        progress[name] = status.get(number_of[name], Progress(last, min(open_ones) - 1 if open_ones else last))
    number_of = _in_order(list(config), status, number_of)
    return Dump(rank, members, kinds, progress, status, number_of, tuple(operations), tuple(pending))


def _in_order(names: list[str], status: dict[str, Progress], told: dict[str, str]) -> dict[str, str]:
    """A rank numbers its groups as it forms them; torch's names count all groups of the job, so their order is the same.
    Other names stand in the order of forming unless they were sorted. Where an entry contradicts, only entries are believed."""
    if all(name.isdecimal() for name in names):
        names = sorted(names, key=int)
    elif len(names) > 1 and names == sorted(names):
        return told
    numbers = sorted(status, key=int)
    if len(numbers) != len(names):
        return told
    found = dict(zip(names, numbers, strict=True))
    return found if all(found.get(name) == number for name, number in told.items()) else told


def _ranks(told: Any) -> tuple[int, ...]:
    return tuple(int(rank) for rank in (ast.literal_eval(told) if isinstance(told, str) else told))


def _operation(entry: dict[str, Any], group: str, members: tuple[int, ...]) -> Operation:
    name, ranks = str(entry["profiling_name"]), members
    pair = bool(entry.get("is_p2p"))
    if pair and (found := POINT_TO_POINT.search(name)) is not None:
        places = (int(found[1]), int(found[3]))
        ranks = tuple(members[place] for place in places if place < len(members))
    shape = f"{entry.get('input_sizes')} -> {entry.get('output_sizes')}"
    return Operation(group, int(entry["collective_seq_id"]), name, shape, ranks, pair)


# -- who waits for whom -----------------------------------------------------------------------------------------------


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
