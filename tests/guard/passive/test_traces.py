"""Flight-recorder dumps as torch writes them -> the ranks that the others waited for, with their mark."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from ninthsky.guard.passive.dumps import DumpError, Progress, _in_order, is_dump, read_dump
from ninthsky.guard.passive.traces import suspects


def entry(number: int, state: str, name: str = "nccl:all_reduce", **more: Any) -> dict[str, Any]:
    """One entry of the default group."""
    return {
        "pg_id": 0,
        "process_group": ["0", "default_pg"],
        "collective_seq_id": number,
        "profiling_name": name,
        "input_sizes": [[4]],
        "output_sizes": [[4]],
        "state": state,
        "is_p2p": False,
        **more,
    }


def dump(entries: list[dict[str, Any]], enqueued: int, completed: int, ranks: int = 4) -> dict[str, Any]:
    """One rank's recorder, its numbers as torch's JSON has them: strings."""
    config = {"0": {"name": "0", "desc": "default_pg", "ranks": str(list(range(ranks)))}} if ranks else {}
    status = {"0": {"last_enqueued_collective": str(enqueued), "last_completed_collective": str(completed)}}
    return {"comm_lib_version": "2.27", "entries": entries, "version": "2.10", "pg_config": config, "pg_status": status}


def told(folder: Path, dumps: dict[int, dict[str, Any]]) -> list[tuple[int, str]]:
    """Those named, half of the dumps written as JSON, half as pickles."""
    for rank, tree in dumps.items():
        path = folder / f"trace_{rank}"
        path.write_bytes(pickle.dumps(tree) if rank % 2 else json.dumps(tree).encode())
        assert is_dump(path)
    return [(suspect.rank, suspect.stuck) for suspect in suspects(read_dump(folder / f"trace_{rank}") for rank in dumps)]


DONE, OPEN = entry(1, "completed"), entry(2, "scheduled")


def test_a_program_that_does_not_enter(tmp_path: Path) -> None:
    dumps = {rank: dump([DONE, OPEN], 2, 1) for rank in (0, 1, 3)}
    assert told(tmp_path, {**dumps, 2: dump([DONE], 1, 1)}) == [(2, "program")]


def test_a_device_that_does_not_finish(tmp_path: Path) -> None:
    ahead = dump([DONE, entry(2, "completed"), entry(3, "scheduled")], 3, 2)
    behind = dump([DONE, OPEN, entry(3, "scheduled")], 3, 1)
    assert told(tmp_path, {0: ahead, 1: behind, 2: ahead, 3: ahead}) == [(1, "device")]


def test_another_operation_under_the_same_number(tmp_path: Path) -> None:
    dumps = {rank: dump([DONE, OPEN], 2, 1) for rank in (0, 1, 2)}
    assert told(tmp_path, {**dumps, 3: dump([DONE, entry(2, "scheduled", "nccl:broadcast")], 2, 1)}) == [(3, "mismatch")]


def test_no_dump_of_the_rank_that_all_wait_for(tmp_path: Path) -> None:
    assert told(tmp_path, {rank: dump([DONE, OPEN], 2, 1) for rank in (0, 1, 2)}) == [(3, "missing")]


def test_gloo_says_retired_and_tells_no_members(tmp_path: Path) -> None:
    done = entry(1, "scheduled", "gloo:all_reduce", retired=True)
    stands = dump([done, entry(2, "scheduled", "gloo:all_reduce", retired=False)], 2, 1, ranks=0)
    assert told(tmp_path, {0: stands, 1: stands, 2: dump([done], 1, 1, ranks=0), 3: stands}) == [(2, "program")]


def test_a_sound_job_names_nobody(tmp_path: Path) -> None:
    assert told(tmp_path, {rank: dump([DONE, OPEN], 2, 1) for rank in range(4)}) == []


@pytest.mark.parametrize(
    "raw", [b"\x80\x05garbage", b'{"pg_config": ' + b"[" * 100_000, b'{"pg_config": {}}', pickle.dumps(Path)]
)
def test_what_is_no_dump_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "trace_1"
    path.write_bytes(raw)
    with pytest.raises(DumpError):
        read_dump(path)


def test_group_numbers_follow_torch_names() -> None:
    progress = {number: Progress(1, 1) for number in ("0", "1", "2")}
    assert _in_order(["0", "10", "9"], progress, {}) == {"0": "0", "9": "1", "10": "2"}
