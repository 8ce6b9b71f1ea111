"""What a card's test answered, and what it means that it did not answer."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from ninthsky.guard.selftest.card import Outcome, command_of, examine, judge

GOOD = b'{"format": 1, "device": "cuda:0", "good": true, "problem": "", "products": 16, "memory_bytes": 8, "seconds": 2.1}'


def test_a_good_answer_passes_and_keeps_its_figures() -> None:
    outcome = judge(0, b"a warning of torch\n" + GOOD + b"\n")
    assert outcome == Outcome(True, "", "cuda:0", {"products": 16.0, "memory_bytes": 8.0, "seconds": 2.1})


@pytest.mark.parametrize(
    ("status", "output", "passed"),
    [
        (1, b'{"good": false, "problem": "memory: word 3"}', False),
        (1, GOOD, False),  # it says good and ends otherwise
        (-signal.SIGSEGV, b"Fatal Python error", False),
        (-signal.SIGKILL, b"", None),  # somebody else ended it
        (1, b"ModuleNotFoundError: No module named 'torch'", None),
        (0, b"", None),
        (0, b'{"good": "yes"}', None),
    ],
)
def test_only_the_card_can_fail_the_test(status: int, output: bytes, passed: bool | None) -> None:
    outcome = judge(status, output)
    assert outcome.passed is passed
    assert outcome.problem or status == 1


def run(code: str, seconds: float = 30.0) -> Outcome:
    return asyncio.run(examine([sys.executable, "-S", "-c", code], dict(os.environ), seconds))


def test_it_runs_at_the_lowest_priority_and_its_output_is_bounded() -> None:
    outcome = run("import os; print('x' * 3_000_000); print('{\"good\": true, \"products\": %d}' % os.nice(0))")
    assert outcome.passed and outcome.figures["products"] == 19


def test_a_test_that_hangs_fails_the_card_and_one_that_is_slow_does_not() -> None:
    hung = run("import time; time.sleep(60)", 3.0)
    assert hung.passed is False and "hangs" in hung.problem
    slow = run("while True: pass", 0.7)
    assert slow.passed is None and "did not end" in slow.problem


def test_a_command_that_is_not_there_is_no_verdict() -> None:
    outcome = asyncio.run(examine(["/nowhere/vet"], {}, 5.0))
    assert outcome.passed is None and "/nowhere/vet" in outcome.problem
    assert command_of(["vet"]) == ["vet"] and command_of([])[1:] == ["-m", "ninthsky", "train", "vet", "--quick"]
