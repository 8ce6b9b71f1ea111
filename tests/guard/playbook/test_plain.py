"""Texts as people and machines write them: other languages, colours, wrapped lines, and lines that tell of nothing."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from ninthsky.guard.playbook.book import UNKNOWN, shipped
from ninthsky.guard.playbook.learned import consult
from ninthsky.guard.playbook.match import match
from ninthsky.guard.playbook.plain import plain


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("内存不足: 已杀死进程 4242 (python3)", "host_oom"),
        ("OSError: [Errno 13] Permiso denegado: '/data/run'", "permission"),
        ("\x1b[31mOSError: [Errno 28] No space\x1b[0m left on device", "disk_full"),
        ("OSError: [Errno 28] No space\n    left on device", "disk_full"),
        ("\uff2fSError: [Errno 28] No space left on device\r\n", "disk_full"),
    ],
)
def test_other_languages_colours_and_wrapped_lines(text: str, cause: str) -> None:
    assert consult(text, shipped())[0].cause == cause


def test_plain_leaves_plain_text_alone() -> None:
    assert plain("step 12 loss 2.5\nstep 13 loss 2.4") == "step 12 loss 2.5\nstep 13 loss 2.4"


@pytest.mark.parametrize(
    "text",
    [
        "EXT4-fs (sda1): recovery: orphan inode 1234 deleted",
        "local_rank: 3 exitcode: -9",
        '  File "torch/distributed/fsdp/_flat_param.py", line 9, in _free_storage',
        "Warning: find_unused_parameters=True was specified in DDP constructor, but did not find any unused parameters",
    ],
)
def test_a_line_that_tells_of_nothing_is_not_a_sure_cause(text: str) -> None:
    found = match(text, shipped())[0]
    assert found.cause == UNKNOWN or found.score < 0.8


def test_the_incidents_learned_from_are_whole() -> None:
    lines = resources.files("ninthsky.guard.playbook").joinpath("analysed.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert len({entry["url"] for entry in entries}) == len(entries)
    assert {entry["cause"] for entry in entries} <= {*shipped().causes, UNKNOWN}
    assert all(entry["excerpt"].strip() for entry in entries)
