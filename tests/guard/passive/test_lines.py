"""Files as they are found after a fault: packed, cut, in another encoding, with lines of any length."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ninthsky.errors import UserError
from ninthsky.guard.passive import diagnose as module
from ninthsky.guard.passive.diagnose import Heard, diagnose, incidents, is_incidents
from ninthsky.guard.passive.lines import LONGEST, Line, lines_of
from ninthsky.guard.playbook.book import shipped

OOM = "2026-01-01 00:00:01 [rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"


def test_a_long_line_is_passed_over_not_held(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("x" * (3 * LONGEST) + "\n" + OOM)
    assert [(number, len(text)) for number, text in lines_of(path)] == [(1, LONGEST), (2, len(OOM))]


@pytest.mark.parametrize("encode", [str.encode, lambda text: text.encode("utf-16"), lambda text: gzip.compress(text.encode())])
def test_encodings_and_gzip(tmp_path: Path, encode: Callable[[str], bytes]) -> None:
    path = tmp_path / "rank3.log"
    path.write_bytes(encode(OOM))
    found = diagnose([path], shipped())
    assert (found.causes[0].cause, found.ranks) == ("cuda_oom", [3])


def test_what_a_cut_archive_still_holds_is_read(tmp_path: Path) -> None:
    lines = (f"2026-01-01 00:00:02 step {number}, {number * 7919 % 104729}\n" for number in range(5_000))
    packed = gzip.compress((OOM + "".join(lines)).encode())
    (tmp_path / "rank3.log.gz").write_bytes(packed[: len(packed) // 2])
    found = diagnose([tmp_path], shipped())
    assert found.causes[0].cause == "cuda_oom" and "cut or damaged" in found.unread[0]


@pytest.mark.parametrize("raw", [b"\x1f\x8bx", b"\x1f\x8b\x08\x00"])
def test_nothing_readable_is_one_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.log.gz").write_bytes(raw)
    with pytest.raises(UserError):
        diagnose([tmp_path], shipped())


@pytest.mark.parametrize(
    "raw", [b"", b"\0" * 5000, bytes(range(256)) * 50, b"[rank99999999999999999999]: error\n[9e99.9] error\n"]
)
def test_nonsense_is_unknown(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.log").write_bytes(raw)
    assert diagnose([tmp_path], shipped()).causes[0].cause == "unknown"


def test_lines_that_are_no_incidents_are_told_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    told = ["[" * 100_000, "3", '{"excerpt": null}', "x" * (2 << 20), json.dumps({"id": 1, "excerpt": "CUDA out of memory"})]
    path.write_text("\n".join(told))
    assert is_incidents(path)
    assert ["error" in answer for answer in incidents(path, shipped())] == [True, True, True, True, False]


def test_a_scrape_with_numbers_that_are_none(tmp_path: Path) -> None:
    name = "DCGM_FI_DEV_XID_ERRORS"
    text = f'# TYPE {name} gauge\n# HELP x\n{name}{{gpu="0"}} 1e400\n{name}{{gpu="1"}} nan\n'
    (tmp_path / "m.prom").write_text(text)
    assert diagnose([tmp_path], shipped()).evidence.facts == ()


def test_what_is_kept_is_bounded_and_the_earliest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEMPLATES", 50)
    monkeypatch.setattr(module, "SPEAKING", 100)
    heard = Heard(shipped())
    names = ("".join(letters) for letters in itertools.product("abcdefghij", repeat=3))
    for number, name in enumerate(itertools.islice(names, 130)):
        heard.take(Line(f"CUDA out of memory in {name}", tmp_path, number, 1000.0 - number, None, ""))
    assert len(heard.lines) <= 100 and len(heard._kinds) <= 51
    newest = heard.causes()[1]
    assert newest is not None and newest.number == 129
