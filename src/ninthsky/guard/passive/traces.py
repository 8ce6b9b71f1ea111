"""PyTorch flight-recorder dumps of many ranks -> the ranks that held the others up.

A dump lists, for each process group, the last collective that a rank enqueued and the last that its device completed. Two
things give a bad rank away, both only against the other members of the same group, never by a clock: it has not *enqueued*
what others stand in (its program is stuck), or it has not *completed* what others have (its device is stuck; its program may
have run on). A victim does neither: it stands at its groups' front.
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
BESIDE = 0.5  # of the worst rank's share of groups: from there on a rank is named beside it


class DumpError(ValueError):
    """A file that is no flight-recorder dump, or one that asks for classes."""


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
    number_of: dict[str, str]  # group -> its number here, where an entry tells it
    waiting_in: str = ""  # the oldest collective that it enqueued and never finished


@dataclass(frozen=True)
class Suspect:
    """A rank that others waited for."""

    rank: int
    share: float  # of the groups it is in, those in which it is behind
    stuck: str  # "program" (did not enqueue) or "device" (enqueued and did not complete)
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
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise DumpError(f"no flight-recorder dump: {type(error).__name__}: {error}") from error


def is_dump(path: Path) -> bool:
    """Whether a file may be a dump, by its first bytes and name."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return NAME.search(path.name) is not None and (head[:1] == b"\x80" or (head[:1] == b"{" and b"pg_config" in head))


def _dump(rank: int, tree: Any) -> Dump:
    entries, config = tree["entries"], tree["pg_config"]
    members = {name: tuple(ast.literal_eval(group["ranks"])) for name, group in config.items()}
    kinds = {name: group.get("desc", "") for name, group in config.items()}
    number_of: dict[str, str] = {}  # group -> this rank's own number of it
    seen: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    waiting = ""
    for entry in entries:
        name = entry["process_group"][0]
        done = entry["state"] == "completed"
        if not entry.get("is_p2p"):  # each rank counts its own sends and receives: those numbers cannot be compared
            number_of[name] = str(entry["pg_id"])
            seen[name].append((entry["collective_seq_id"], done))
        if not done and not waiting:
            waiting = f"{entry['profiling_name']} of {kinds.get(name) or name}"
    status = {
        number: Progress(at["last_enqueued_collective"], at["last_completed_collective"])
        for number, at in tree.get("pg_status", {}).items()
    }
    progress = {}
    for name, numbers in seen.items():
        pending = [number for number, done in numbers if not done]
        last = max(number for number, _ in numbers)
        progress[name] = status.get(number_of[name], Progress(last, min(pending) - 1 if pending else last))
    return Dump(rank, members, kinds, progress, status, number_of, waiting)


def suspects(dumps: Iterable[Dump]) -> list[Suspect]:
    """The worst first; empty where nobody is behind the others."""
    by_rank = {dump.rank: dump for dump in dumps}
    groups = _groups(by_rank)
    behind: dict[int, list[tuple[str, int, int, int]]] = defaultdict(
        list
    )  # rank -> (group, enqueued behind, completed behind, waiting)
    inside: dict[int, int] = defaultdict(int)
    for name, known in groups.items():
        if len(known) < 2:
            continue
        front = max(at.enqueued for at in known.values())
        finished = max(at.completed for at in known.values())
        waiting = sum(at.enqueued == front and at.completed < front for at in known.values())
        for rank, at in known.items():
            inside[rank] += waiting > 0
            late, undone = front - at.enqueued, finished - at.completed
            if waiting and (late or undone):
                behind[rank].append((name, late, undone, waiting))
    found = [_suspect(rank, places, inside[rank], by_rank[rank]) for rank, places in behind.items()]
    found.sort(key=lambda suspect: (-suspect.share, -len(behind[suspect.rank]), suspect.rank))
    return [suspect for suspect in found if suspect.share >= BESIDE * found[0].share]


def _groups(by_rank: dict[int, Dump]) -> dict[str, dict[int, Progress]]:
    """Group -> progress of its members. A rank with nothing open has no entries, only numbered states: its groups are found
    through the numbers that the other members give them, since all members form their groups in the same order."""
    groups: dict[str, dict[int, Progress]] = defaultdict(dict)
    for rank, dump in by_rank.items():
        for name, at in dump.progress.items():
            groups[name][rank] = at
    for name, known in groups.items():
        members = by_rank[next(iter(known))].members.get(name, ())
        numbers = Counter(by_rank[rank].number_of[name] for rank in known)
        number = numbers.most_common(1)[0][0]
        for rank in members:
            if rank in by_rank and rank not in known and number in by_rank[rank].status:
                known[rank] = by_rank[rank].status[number]
    return groups


def _suspect(rank: int, places: list[tuple[str, int, int, int]], inside: int, dump: Dump) -> Suspect:
    late = max(place[1] for place in places)
    undone = max(place[2] for place in places)
    name, _, _, waiting = max(places, key=lambda place: (place[1], place[2]))
    kind = dump.kinds.get(name) or name
    source = f"flight recorder, {kind}"
    facts = [Fact("groups in which it is behind", float(len(places)), 0.0, f"of {inside}", "flight recorders of all ranks")]
    if late:
        facts.append(
            Fact("collectives not entered that others stand in", float(late), 0.0, source=f"{source}: {waiting} ranks wait")
        )
    if undone:
        facts.append(Fact("collectives not completed that others have", float(undone), 0.0, source=source))
    if dump.waiting_in:
        facts.append(Fact("it stands in", dump.waiting_in, source="its recorder"))
    return Suspect(rank, len(places) / max(inside, 1), "program" if not dump.waiting_in else "device", tuple(facts))
