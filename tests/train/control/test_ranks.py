"""Control over real ranks: a bad card is named and replaced, orders reach all ranks, and a twin follows to the bit."""

from __future__ import annotations

import math
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")

from ninthsky.run.folder import read_lines
from ninthsky.train.account import read_history
from ninthsky.train.control.helm import read_program
from ninthsky.train.control.limits import Limits
from ninthsky.train.control.orders import FOLDER, give, parse
from ninthsky.train.control.records import records
from ninthsky.train.inject import Fault, struck
from ninthsky.train.step.recipe import Recipe
from tests.train.nano import make_job, run_guarded, write_tokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STEPS = 70


def test_bad_data_a_bad_card_orders_and_a_pause_all_in_one_run_that_a_twin_follows(tmp_path: Path) -> None:
    tokens, folder = write_tokens(tmp_path / "tokens"), tmp_path / "run"
    faults = [Fault(0, "bad_data", 1, 36), Fault(1, "bad_card", 2, 30, factor=20.0), Fault(2, "kill", 3, 55)]
    more: dict[str, Any] = {"recipe": Recipe(lr=1e-2), "validate_every": 16, "validation": 0.05, "sequence": 32, "batch": 16}
    job = make_job(tokens, folder, STEPS, faults, control=Limits(mode="act"), **more)
    seen: list[dict[str, Any]] = []
    done = threading.Event()

    def reached(step: int) -> bool:
        while not done.is_set():
            if sum(1 for _ in read_lines(folder / "history.jsonl")) > step:
                return True
            time.sleep(0.01)
        return False

    def person() -> None:
        if reached(40):
            give(folder / FOLDER, "set", parse(("lr=1e-3", "clip=0.5")))
            give(folder / FOLDER, "pause")
            while not done.is_set() and not any(
                line["kind"] == "control.order" and line["text"] == "pause" for line in read_lines(folder / "events.jsonl")
            ):
                time.sleep(0.02)
            time.sleep(3.5)  # longer than a hang may last
            give(folder / FOLDER, "resume")

    thread = threading.Thread(target=person)
    thread.start()
    try:
        result = run_guarded(job, seen.append)
    finally:
        done.set()
        thread.join()
    causes = [(fault.cause, fault.rank, fault.state, fault.injected) for fault in result.faults]
    # Nobody took the pause for a hang.
    assert causes == [("outlier", 2, "repaired", True), ("outlier", 1, "repaired", True), ("exit", 3, "repaired", True)]
    assert "the card" in result.faults[0].evidence.verdict and "the data" in result.faults[1].evidence.verdict
    assert result.faults[0].replaced_by and not result.faults[1].replaced_by

    program = read_program(folder)
    assert program.skipped == [36]
    (record,) = records(folder, struck(folder))
    assert record.where["cause"] == "data" and "injected: bad_data" in record.subject
    (lr, clip) = program.changes
    assert (lr.name, lr.value, clip.name, clip.value) == ("lr", 1e-3, "clip", 0.5) and lr.step == clip.step > 40
    history = read_history(folder / "history.jsonl")
    assert [line["step"] for line in history] == list(range(STEPS))
    rates = [float(line.get("lr", math.inf)) for line in history]
    assert max(rates[lr.step :]) <= 1e-3 < min(rates[37 : lr.step])
    gaps = [after["time"] - before["time"] for before, after in pairwise(history)]
    assert max(gaps) > 3.0
    orders = [line["text"] for line in read_lines(folder / "events.jsonl") if line["kind"] == "control.order"]
    assert list(dict.fromkeys(orders)) == ["set lr = 0.001, clip = 0.5", "pause", "resume"]

    twin = make_job(tokens, tmp_path / "twin", STEPS, program=program, export=False, **more)
    followed = run_guarded(msgspec.structs.replace(twin, control=Limits(mode="off")), spares=0)
    assert followed.results[0]["digest"] == result.results[0]["digest"] and followed.faults == []
