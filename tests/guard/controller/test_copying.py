"""Journal, events and faults on their way to the standby: whole, in order, whatever gets lost; never over what it shares."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from ninthsky.guard.controller.copying import Replica, Source
from ninthsky.guard.controller.journal import Journal, recall
from ninthsky.guard.protocol import Copy


def leader(folder: Path) -> Journal:
    (folder / "faults").mkdir(parents=True)
    return Journal(folder / "journal.jsonl", term=1)


def test_what_gets_lost_comes_again(tmp_path: Path) -> None:
    chance, there, here = random.Random(3), tmp_path / "leader", tmp_path / "standby"
    journal = leader(there)
    flying: list[Copy] = []
    source, replica = Source(there, "one", flying.append), Replica(here)
    for step in range(200):
        journal.write("commit", step=step)
        if step % 20 == 0:
            path = there / "faults" / f"F-{step:04d}.json"
            path.write_text(json.dumps({"step": step}))
            os.utime(path.parent, ns=(0, 10**18 + step))
        source.pump()
        if step % 5 == 0:
            source.follow(replica.follow())
        for copy in flying:
            if chance.random() < 0.5:
                replica.take(copy)
        flying.clear()
    for _ in range(4):
        source.follow(replica.follow())
        for copy in flying:
            replica.take(copy)
        flying.clear()
    assert (here / "journal.jsonl").read_bytes() == (there / "journal.jsonl").read_bytes()
    assert [path.read_text() for path in sorted((here / "faults").glob("F-*"))] == [
        path.read_text() for path in sorted((there / "faults").glob("F-*"))
    ]
    assert not replica.ended()
    journal.write("done", ok=True)
    source.pump()
    for copy in flying:
        replica.take(copy)
    assert replica.ended()


def test_another_leaders_journal_replaces_it_only_when_it_is_whole(tmp_path: Path) -> None:
    here = tmp_path / "standby"
    replica = Replica(here)
    replica.take(Copy("one", "journal.jsonl", 0, 4, b"old\n"))
    replica.take(Copy("two", "journal.jsonl", 0, 8, b"new\n"))
    assert (here / "journal.jsonl").read_bytes() == b"old\n"
    replica.take(Copy("two", "journal.jsonl", 4, 8, b"all\n"))
    assert (here / "journal.jsonl").read_bytes() == b"new\nall\n"


def test_nothing_is_written_into_a_shared_folder_nor_outside_its_own(tmp_path: Path) -> None:
    (tmp_path / "controller.json").write_text('{"id": "one"}')
    (tmp_path / "journal.jsonl").write_bytes(b"the leader's own\n")
    replica = Replica(tmp_path)
    replica.take(Copy("one", "journal.jsonl", 0, 3, b"abc"))
    assert (tmp_path / "journal.jsonl").read_bytes() == b"the leader's own\n"
    apart = Replica(tmp_path / "apart")
    for name in ("faults/../../evil.json", "faults/F-/../../x.json", "controller.json", "/etc/F-1.json"):
        apart.take(Copy("two", name, 0, 1, b"x"))
    assert not list(tmp_path.glob("**/*evil*")) and not (tmp_path / "apart").exists()


def test_lines_of_an_older_term_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    old, new = Journal(path, term=1), Journal(path, term=2)
    old.write("generation", generation=1, reason="start")
    new.write("generation", generation=2, reason="the standby leads")
    old.write("generation", generation=7, reason="by one that was frozen and does not know yet")
    assert recall(Journal(path).entries).generation == 2
