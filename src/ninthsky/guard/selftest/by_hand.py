"""`n9 guard selftest`: this machine's card at once, or cards and links of a running job through its controller."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ninthsky.errors import FAILED, OK, PARTIAL, UserError
from ninthsky.guard.page.acts import Acts
from ninthsky.guard.selftest.card import SECONDS, command_of, examine
from ninthsky.guard.spec import load_spec
from ninthsky.guard.watch import line_of

POLL_SECONDS = 0.2
HEARD_SECONDS = 15.0  # until the controller has taken the order
_ENDS = frozenset({"selftest.done", "selftest.failed", "link.done", "link.failed"})


def here(json_: bool) -> int:
    """Tests the card that torch sees on this machine, with no job. Status as of `n9 train vet`; 3 where it could not be run."""
    outcome = asyncio.run(examine(command_of(()), dict(os.environ), SECONDS))
    word = {True: "passed", False: "failed", None: "could not be run"}[outcome.passed]
    if json_:
        tree = {"outcome": word, "problem": outcome.problem, "device": outcome.device, "figures": outcome.figures}
        print(json.dumps(tree))
    else:
        figures = ", ".join(f"{name} {value:g}" for name, value in outcome.figures.items())
        print(f"self-test of {outcome.device or 'this card'}: {word}" + (f": {outcome.problem or figures}"))
    return PARTIAL if outcome.passed is None else OK if outcome.passed else FAILED


def in_job(folder: Path, hosts: tuple[str, ...], link: tuple[str, ...], json_: bool) -> int:
    """Orders tests of a running job's cards, or of a link, and shows how they end. Raises UserError N9-GRD-070."""
    spec = load_spec(folder / "job.json")
    known = [host.name for host in spec.hosts]
    for name in (*hosts, *link):
        if name not in known:
            raise UserError("N9-GRD-070", f"the job has no host {name!r}", str(folder), f"its hosts: {', '.join(known[:20])}")
    if link and (len(link) != 2 or link[0] == link[1]):
        raise UserError("N9-GRD-070", "a link has two ends", "--link", "n9 guard selftest FOLDER --link host-0 --link host-1")
    events = _new_events(folder / "events.jsonl")
    next(events)
    order = ":".join(link) if link else " ".join(hosts)
    act = Acts(folder).record(getpass.getuser(), "the command line", "selftest", order=order)
    return _follow(events, act.time, folder, json_)


def _follow(events: Iterator[dict[str, Any] | None], asked: float, folder: Path, json_: bool) -> int:
    wanted: set[int] | None = None
    status = OK
    deadline = time.monotonic() + HEARD_SECONDS
    for event in events:
        if event is None:
            if time.monotonic() > deadline:
                said = "did not take the order: the job is not running" if wanted is None else "told no more of the tests"
                raise UserError("N9-GRD-070", f"the controller {said}", str(folder), f"n9 guard faults {folder}")
            time.sleep(POLL_SECONDS)
            continue
        kind = event["kind"]
        if kind == "selftest.ordered" and event["asked"] == asked:
            wanted = set(event["tests"])
            deadline = time.monotonic() + (1 + len(wanted)) * SECONDS
            if not wanted:
                raise UserError("N9-GRD-070", "no such host is there now", str(folder), f"n9 watch {folder}")
        elif kind in _ENDS and wanted is not None and event["test"] in wanted:
            print(json.dumps(event) if json_ else line_of(event), flush=True)
            wanted.discard(event["test"])
            status = FAILED if kind.endswith("failed") else status
            if not wanted:
                return status
        elif kind in {"job.done", "job.failed"}:
            raise UserError("N9-GRD-070", "the job ended before its tests", str(folder), f"n9 guard faults {folder}")
    return status


def _new_events(path: Path) -> Iterator[dict[str, Any] | None]:
    """Events from now on; None where there is none yet. The first one is always None."""
    offset = path.stat().st_size if path.exists() else 0
    yield None
    while True:
        data = b""
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        offset += len(whole)
        yield from (json.loads(line) for line in whole.splitlines())
        if not whole:
            yield None
