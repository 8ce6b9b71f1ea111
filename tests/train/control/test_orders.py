from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from ninthsky.errors import UserError
from ninthsky.run.folder import RunFolder, read_lines, write_json
from ninthsky.train.control import cli
from ninthsky.train.control.orders import Orders, give, open_box, parse


@pytest.mark.parametrize(
    "word", ["momentum=1", "lr", "lr=fast", "lr=-1", "lr=nan", "lr=inf", "checkpoint_every=1.5", "balance=2", "=3"]
)
def test_what_cannot_be_set_is_one_error(word: str) -> None:
    with pytest.raises(UserError, match="N9-TRN-010"):
        parse((word,))


def test_an_order_holds_from_the_step_in_which_it_came_for_ever_after(tmp_path: Path) -> None:
    box = open_box(tmp_path)
    orders = Orders(box)
    assert orders.due(0, 5) == []
    give(box, "set", parse(("lr=1e-3", "clip=0.5")))
    (due,) = orders.due(0, 7)
    assert (due.step, due.order.number, due.order.values) == (7, 0, {"lr": 1e-3, "clip": 0.5})
    assert orders.due(1, 8) == []
    again = Orders(box)  # a resume from an earlier step: it waits for its step
    assert again.due(0, 6) == []
    assert again.due(0, 7) == [due] and again.due(0, 9) == [due]
    give(box, "pause")
    assert [given.step for given in again.due(0, 9)] == [7, 9]
    assert [line["step"] for line in read_lines(box / "taken.jsonl")] == [7, 9]


def test_only_the_owner_can_write_and_others_are_not_listened_to(tmp_path: Path) -> None:
    box = open_box(tmp_path)
    assert (box.stat().st_mode & 0o777, (box / "orders.jsonl").stat().st_mode & 0o777) == (0o700, 0o600)
    give(box, "pause")
    (box / "orders.jsonl").chmod(0o622)
    orders = Orders(box)
    assert orders.due(0, 1) == [] and "others" in orders.refused


def test_a_line_that_is_no_order_does_nothing_and_a_cut_one_waits(tmp_path: Path) -> None:
    box = open_box(tmp_path)
    with (box / "orders.jsonl").open("a") as file:
        file.write('{"verb": "erase"}\n{"verb": "set", "values": {"lr": 1e9}}\n{"verb": "pau')
    orders = Orders(box)
    assert [given.order.values for given in orders.due(0, 3)] == [{}, {}]
    with (box / "orders.jsonl").open("a") as file:
        file.write('se"}\n')
    assert [given.order.verb for given in orders.due(2, 4)] == ["pause"]


def test_the_commands_reach_a_live_run_and_refuse_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "mine")
    write_json(run.path / "settings.json", {})
    with pytest.raises(UserError, match="N9-RUN-001"):
        cli.pause("nosuch", store=tmp_path)
    with pytest.raises(UserError, match=r"N9-TRN-011.*not live"):
        cli.pause("mine", store=tmp_path)
    with (run.path / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run.event("stage.start", stage="train.twin")
        with pytest.raises(UserError, match=r"N9-TRN-011.*stage train\.twin"):
            cli.pause("mine", store=tmp_path)
        run.event("stage.done", stage="train.twin", seconds=1.0)
        run.event("stage.start", stage="train.pretrain")
        with pytest.raises(UserError, match=r"N9-TRN-011.*takes no orders"):
            cli.pause("mine", store=tmp_path)
        box = open_box(run.stage("train.pretrain"))
        assert cli.set_("lr=2e-3", "mine", store=tmp_path, json_=True) == 0
        assert cli.pause("mine", store=tmp_path) == cli.resume(None, store=tmp_path) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["lr"] == 2e-3
    assert [order["verb"] for order in read_lines(box / "orders.jsonl")] == ["set", "pause", "resume"]
    with pytest.raises(UserError, match="N9-TRN-010"):
        cli.set_("lr=1", "one", "two", store=tmp_path)
