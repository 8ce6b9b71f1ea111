"""What the controller does besides watching, without sockets: the picture, approvals, drains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ninthsky.guard.controller.outward import Outward
from ninthsky.guard.page.acts import Acts
from ninthsky.guard.picture import FILE, Card, read_picture
from ninthsky.guard.spec import Watch
from tests.guard.controller.test_conductor import Cluster


class Watched(Cluster):
    """A cluster whose events and ticks reach an Outward, as the controller's do."""

    outward: Outward | None = None

    def event(self, kind: str, **fields: Any) -> None:
        super().event(kind, **fields)
        if self.outward is not None:
            self.outward.heard({"time": self.now, "kind": kind, **fields})

    def open(self) -> None:
        self.outward = Outward(self.state, self.c.approve)
        self.begin()
        self.step(0)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            super().run(0.1)
            if self.outward is not None:
                self.outward.tick()

    def cards(self) -> list[int]:
        picture = read_picture(self.folder / FILE)
        assert picture is not None
        return [int(card) for card in picture.cards]


def made(folder: Path, **watch: Any) -> Watched:
    cluster = Watched(folder, Watch(**{"action": "act", **watch}))
    cluster.open()
    return cluster


def test_the_picture_shows_ranks_spares_and_the_accused(tmp_path: Path) -> None:
    cluster = made(tmp_path, action="advise")
    cluster.run(2.0)
    assert cluster.cards() == [Card.WORKING, Card.WORKING, Card.SPARE] * 2
    picture = read_picture(tmp_path / FILE)
    assert picture is not None and (picture.head.stage, picture.head.step, picture.head.generation) == ("run", 1, 1)
    cluster.step(1)
    cluster.run(1.0)
    cluster.step(2)
    cluster.run(1.5)
    picture = read_picture(tmp_path / FILE)
    assert picture is not None and picture.head.step == 3
    cluster.run(3.0)
    assert Card.QUIET in cluster.cards()


def test_an_accused_card_is_drawn_until_all_train_again_and_a_kept_out_one_for_good(tmp_path: Path) -> None:
    cluster = made(tmp_path, card_failures=1)
    cluster.end(2)
    cluster.run(1.2)
    assert cluster.cards()[3] == Card.OUT and cluster.cards()[5] in {Card.WORKING, Card.QUIET}
    (fault,) = cluster.state.book.faults
    assert "advised: scontrol update nodename=b state=drain" in fault.evidence.remedy


def test_an_approval_does_what_was_advised_once(tmp_path: Path) -> None:
    cluster = made(tmp_path, action="advise")
    cluster.stopped.add(cluster.state.roster.places[3].pid)
    cluster.run(4.0)
    (fault,) = cluster.state.book.faults
    assert cluster.state.generation == 1 and "advised only" in fault.evidence.remedy
    acts = Acts(tmp_path)
    acts.record("Ada", "127.0.0.1", "not a fault", fault)
    cluster.run(1.5)
    assert cluster.state.generation == 1, "that is no approval"
    acts.record("Ada", "127.0.0.1", "approve", fault)
    cluster.run(1.5)
    assert cluster.state.generation == 2 and cluster.state.roster.places[3].card == "b/2"
    assert "(approved by Ada)" in fault.evidence.remedy
    assert [e for e in cluster.events if e["kind"].startswith("approval")] == [
        {"kind": "approval.done", "fault": "F-0001", "who": "Ada"}
    ]
    acts.record("Ada", "127.0.0.1", "approve", fault)
    cluster.run(1.5)
    assert cluster.state.generation == 2 and cluster.kinds()[-1] == "approval.useless"
    cluster.step(1)
    assert fault.state == "repaired"


def test_approvals_of_an_earlier_start_or_for_another_fault_do_nothing(tmp_path: Path) -> None:
    cluster = Watched(tmp_path, Watch(action="advise"))
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "acts.jsonl").write_bytes(
        b'{"time":1.0,"who":"Eve","address":"x","act":"approve","fault":"F-0001","named":1.0}\n'
    )
    cluster.open()
    cluster.stopped.add(cluster.state.roster.places[3].pid)
    cluster.run(4.0)
    with (tmp_path / "page" / "acts.jsonl").open("ab") as file:
        file.write(b'no act\n{"time":1.0,"who":"Eve","address":"x","act":"approve","fault":"F-0001","named":1.0}\n')
    cluster.run(1.5)
    assert cluster.state.generation == 1
    assert cluster.kinds().count("approval.useless") == 1


def test_a_lost_host_is_drained_where_a_setting_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "ordered"}\n')
    (bin_folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    cluster = Watched(tmp_path / "job", Watch(action="act", drain="slurm"), spares=2)
    cluster.open()
    cluster.mute.add("b")
    cluster.run(6.0)
    assert "b/0" not in {proc.card for proc in cluster.state.roster.places}
    for _ in range(500):
        cluster.run(0.1)
        if "drain.done" in cluster.kinds():
            break
        time.sleep(0.01)
    assert cluster.kinds().count("drain.done") == 1
    assert (tmp_path / "ordered").read_text().startswith("update nodename=b state=drain reason=ninthsky: ")
    (fault,) = cluster.state.book.faults
    assert fault.evidence.remedy.endswith("slurm was told to drain node b")
    assert cluster.cards()[4:] == [Card.OUT] * 4
    assert cluster.outward is not None
    cluster.outward.close()


def test_a_folder_that_cannot_be_written_costs_only_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = made(tmp_path)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cluster.run(2.0)
    assert cluster.stage() == "run" and np.all(cluster.state.fleet.glance(cluster.now)[0])
