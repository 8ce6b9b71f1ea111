"""PyTorch's flight-recorder dumps, read: NCCL's recorder and gloo's (torch 2.13), pickles or JSON. No class is ever loaded."""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
