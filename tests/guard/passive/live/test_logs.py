"""Files that grow, come later, are rotated; and the step numbers in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ninthsky.guard.passive.live.logs import BEHIND, Logs, Steps


def texts(logs: Logs, now: float) -> list[str]:
    return [line.text for line in logs.read(now)]


def test_only_what_is_new_is_read_and_each_line_once(tmp_path: Path) -> None:
    log = tmp_path / "rank3.log"
    log.write_text("an old error\n")
    logs = Logs([tmp_path])
    assert texts(logs, 0.0) == []
    with log.open("a") as file:
        file.write("CUDA error: one\nall is well\nfatal err")
    assert texts(logs, 1.0) == ["CUDA error: one"], "a line without its end is waited for"
    with log.open("a") as file:
        file.write("or: two\n")
    found = logs.read(2.0)
    assert [(line.text, line.rank) for line in found] == [("fatal error: two", 3)]


def test_files_that_come_later_are_read_from_their_beginning_and_rotation_is_followed(tmp_path: Path) -> None:
    logs = Logs([tmp_path])
    assert texts(logs, 0.0) == []
    (tmp_path / "new.log").write_text("error: first\n")
    assert texts(logs, 1.0) == [], "folders are looked through now and then"
    assert texts(logs, 6.0) == ["error: first"]
    (tmp_path / "new.log").rename(tmp_path / "new.log.1")
    (tmp_path / "new.log").write_text("error: after rotation, longer than before\n")
    assert texts(logs, 7.0) == ["error: after rotation, longer than before"]
    (tmp_path / "new.log").write_text("error: cut\n")
    assert texts(logs, 12.0) == ["error: cut"], "and nothing of the rotated file again"


def test_of_a_flood_the_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("")
    logs = Logs([log])
    logs.read(0.0)
    log.write_bytes(b"x" * (BEHIND + 10) + b"\nerror: the last\n")
    assert texts(logs, 1.0) == ["error: the last"]
    assert logs.skipped > 0


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("step 120 loss 2.1", 120),
        ("{'loss': 2.1, 'step': 7}", 7),
        (" iteration       10/  500 | consumed samples: 5", 10),
        ("Iter [31/100] loss", 31),
        (" 12%|#2        | 24/200 [00:10<01:20]", 24),
        ("global_step=44", 44),
        ("epoch 3 done", -1),
        ("a footstep on the stairs", -1),
    ],
)
def test_steps_are_found_as_trainers_write_them(text: str, step: int) -> None:
    steps = Steps()
    steps.take(text, 1.0)
    assert steps.newest == step


def test_only_rising_numbers_are_progress_and_the_longest_gap_is_kept() -> None:
    steps = Steps()
    for now, number in ((0.0, 1), (2.0, 2), (3.0, 1), (9.0, 3)):
        steps.take(f"step {number}", now)
    assert (steps.newest, steps.seen, steps.moved, steps.longest) == (3, 3, 9.0, 7.0)
