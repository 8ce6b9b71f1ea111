"""Logs, dumps and scrapes of a job as it was left -> the rank, the first line, the cause, the echoes."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from ninthsky.errors import UserError
from ninthsky.guard.passive.diagnose import diagnose, incidents, is_incidents
from ninthsky.guard.passive.dumps import DumpError, read_dump
from ninthsky.guard.passive.exporters import alarms, is_scrape
from ninthsky.guard.passive.lines import rank_of, time_of, troubled
from ninthsky.guard.passive.traces import suspects
from ninthsky.guard.playbook.book import shipped

DATA = Path(os.environ.get("NINTHSKY_DATA", Path(__file__).parents[4] / "shared" / "data")) / "guard"
TRUE_RANKS = {"gpu_error_1st": {12, 14}, "lock_gil_1st": {9, 14}}


def entry(group: str, number: int, sequence: int, state: str = "scheduled") -> dict[str, Any]:
    return {
        "pg_id": number,
        "process_group": (group, "DATA"),
        "collective_seq_id": sequence,
        "profiling_name": "nccl:all_reduce",
        "state": state,
        "is_p2p": False,
    }


def dump(entries: list[dict[str, Any]], status: tuple[int, int]) -> dict[str, Any]:
    config = {"7": {"name": "7", "desc": "DATA", "ranks": "[0, 1, 2]"}}
    at = {"last_enqueued_collective": status[0], "last_completed_collective": status[1]}
    return {"version": "2.9", "pg_config": config, "pg_status": {"3": at}, "entries": entries}


@pytest.mark.parametrize("run", TRUE_RANKS)
def test_both_bad_ranks_of_a_real_trace_come_first(run: str) -> None:
    folder = DATA / "nvrx_fr_traces" / run
    if not folder.is_dir():
        pytest.skip("no flight-recorder traces: set NINTHSKY_DATA")
    found = diagnose([folder], shipped())
    assert set(found.ranks[:2]) == TRUE_RANKS[run]
    assert len(found.ranks) == 2


def test_a_rank_that_did_not_enter_is_named_and_its_victims_are_not(tmp_path: Path) -> None:
    for rank in (0, 2):
        (tmp_path / f"dump_{rank}").write_bytes(pickle.dumps(dump([entry("7", 3, 41)], (41, 40))))
    (tmp_path / "dump_1").write_bytes(pickle.dumps(dump([], (40, 40))))
    found = suspects(read_dump(path) for path in sorted(tmp_path.iterdir()))
    assert [suspect.rank for suspect in found] == [1]
    assert found[0].stuck == "program"


def test_a_device_that_completes_nothing_is_named(tmp_path: Path) -> None:
    for rank in range(3):
        done = 36 if rank == 2 else 40
        (tmp_path / f"dump_{rank}").write_bytes(pickle.dumps(dump([entry("7", 3, 41)], (41, done))))
    found = suspects(read_dump(path) for path in sorted(tmp_path.iterdir()))
    assert [(suspect.rank, suspect.stuck) for suspect in found] == [(2, "device")]


def test_nobody_is_named_where_nobody_is_behind(tmp_path: Path) -> None:
    for rank in range(3):
        (tmp_path / f"dump_{rank}").write_bytes(pickle.dumps(dump([entry("7", 3, 41)], (41, 40))))
    assert not suspects(read_dump(path) for path in sorted(tmp_path.iterdir()))


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize("raw", [pickle.dumps(Evil()), b"\x80\x04garbage", pickle.dumps([1, 2]), b""])
def test_a_dump_that_asks_for_classes_or_is_none_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "dump_0"
    path.write_bytes(raw)
    with pytest.raises(DumpError):
        read_dump(path)


def test_first_line_is_the_cause_and_the_rest_its_echoes(tmp_path: Path) -> None:
    for rank in range(4):
        lines = [f"2026-11-24 10:00:0{rank % 2}.100 INFO rank {rank} step 100 loss 2.3"]
        if rank == 2:
            lines.append("2026-11-24 10:00:05.000 RuntimeError: CUDA error: uncorrectable ECC error encountered")
        else:
            lines.append(f"2026-11-24 10:00:0{6 + rank % 2}.000 [rank{rank}] NCCL WARN Connection reset by peer")
            lines.append(f"2026-11-24 10:10:0{rank}.000 [rank{rank}] Watchdog caught collective operation timeout")
        (tmp_path / f"rank{rank}.log").write_text("\n".join(lines) + "\n", "utf-8")
    found = diagnose([tmp_path], shipped())
    assert found.causes[0].cause == "gpu_ecc"
    assert found.ranks == [2]
    assert found.first is not None and found.first.path.name == "rank2.log"
    assert found.echoes == 6
    assert json.loads(json.dumps(found.tree()))["first"]["place"].endswith("rank2.log:2")


def test_quiet_logs_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "rank0.log").write_text("".join(f"step {n} loss {3 - n / 100:.3f}\n" for n in range(100)), "utf-8")
    found = diagnose([tmp_path], shipped())
    assert found.causes[0].cause == "unknown" and found.evidence.confidence is None
    assert not found.ranks and found.first is None


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        diagnose([tmp_path], shipped())
    with pytest.raises(UserError, match="no such file"):
        diagnose([tmp_path / "absent"], shipped())


def test_files_none_of_which_can_be_read_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "dump_0").write_bytes(b"\x80\x04cut")
    with pytest.raises(UserError, match="no flight-recorder dump"):
        diagnose([tmp_path], shipped())


def test_of_ranks_that_say_the_same_the_earliest_is_named(tmp_path: Path) -> None:
    for rank, second in ((0, 9), (1, 2), (2, 5)):
        line = f"2026-11-24 10:00:0{second}.000 uncorrectable ECC error encountered"
        (tmp_path / f"rank{rank}.log").write_text(line + "\n", "utf-8")
    assert diagnose([tmp_path], shipped()).ranks == [1]


def test_incidents_are_answered_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    path.write_text('{"id": "a", "excerpt": "No space left on device"}\nnot json\n{"id": "b"}\n', "utf-8")
    assert is_incidents(path)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("cut {\n" + path.read_text("utf-8"), "utf-8")
    assert is_incidents(damaged) and len(list(incidents(damaged, shipped()))) == 4
    answers = list(incidents(path, shipped()))
    assert [answer["id"] for answer in answers] == ["a", "line 2", "line 3"]
    assert answers[0]["causes"][0]["cause"] == "disk_full"
    assert "unknown" in {cause["cause"] for cause in answers[0]["causes"]}
    assert "error" in answers[1] and "error" in answers[2]


def test_a_scrape_speaks_for_the_bad_card_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    path.write_text(
        "# HELP DCGM_FI_DEV_ECC_DBE_VOL_TOTAL Total double-bit errors\n# TYPE DCGM_FI_DEV_ECC_DBE_VOL_TOTAL counter\n"
        'DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{gpu="0",Hostname="gpu-17"} 0\n'
        'DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{gpu="5",Hostname="gpu-17"} 2\n',
        "utf-8",
    )
    assert is_scrape(path)
    assert [(alarm.card, alarm.host, alarm.cause) for alarm in alarms(path)] == [("5", "gpu-17", "gpu_ecc")]
    found = diagnose([tmp_path], shipped())
    assert found.causes[0].cause == "gpu_ecc"
    assert found.host == "gpu-17"


@pytest.mark.parametrize(
    ("path", "rank"),
    [
        ("logs/rank3.log", 3),
        ("run/attempt_0/5/stderr.log", 5),
        ("out/stderr.7", 7),
        ("a/train.log", None),
        ("x/rank_12.txt", 12),
    ],
)
def test_rank_of_a_path(path: str, rank: int | None) -> None:
    assert rank_of(Path(path)) == rank


def test_times_of_many_loggers() -> None:
    same = [
        "2026-11-24 10:00:05.250 error",
        "2026-11-24T10:00:05,250 error",
        "[rank1]:[E 2026-11-24 10:00:05.250] error",
    ]
    assert len({time_of(text) for text in same}) == 1
    assert time_of("[ 1843.30] NVRM: error") == pytest.approx(1843.3)
    assert time_of("nothing") is None


def test_a_broken_encoding_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rank1.log"
    path.write_bytes(b"\xff\xfe error: No space left on device\n" + b"x" * 100_000 + b" error\n")
    assert [line.rank for line in troubled(path)][:1] == [1]
