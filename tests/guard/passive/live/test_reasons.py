"""Words around a fault: the playbook's cause, whose lines count, what only tells of an end."""

from __future__ import annotations

from pathlib import Path

from ninthsky.guard.judges.verdict import Verdict
from ninthsky.guard.passive.lines import Line
from ninthsky.guard.passive.live.reasons import Reasons
from ninthsky.guard.passive.live.stacks import _why
from ninthsky.guard.playbook.book import shipped
from ninthsky.guard.telemetry.note import Note

KILLED = Verdict("exit", (2,), "process ended by SIGKILL (signal 9)", ())


def line(text: str, rank: int | None = None) -> Line:
    return Line(text, Path("job.log"), 7, None, rank, "")


def test_a_line_of_the_rank_names_the_cause_and_others_do_not() -> None:
    reasons = Reasons(shipped(), "host")
    reasons.lines([line("[rank2]: CUDA error: uncorrectable ECC error encountered", 2)], 10.0)
    reasons.lines([line("[rank1]: OSError: [Errno 28] No space left on device", 1)], 9.0)
    reason = reasons.of(KILLED, {2: 2}, 11.0)
    assert any(fact.name == "the playbook reads" and "gpu_ecc" in str(fact.value) for fact in reason.facts)
    assert any("ECC" in str(fact.value) and fact.source == "job.log:7" for fact in reason.facts)
    assert "Drain the card" in reason.remedy
    assert not any("space" in str(fact.value) for fact in reason.facts)


def test_what_a_launcher_says_of_the_end_is_no_cause_and_old_lines_are_none() -> None:
    reasons = Reasons(shipped(), "host")
    reasons.lines([line("failed (exitcode: -9) local_rank: 2 (pid: 17) of binary: python")], 500.0)
    reasons.lines([line("CUDA error: uncorrectable ECC error encountered", 2)], 100.0)
    assert (reasons.of(KILLED, {2: 2}, 500.5).facts, reasons.of(KILLED, {2: 2}, 500.5).remedy) == ((), "")
    assert reasons.of(KILLED, {2: 2}, 101.0).facts
    stopped = Verdict("frozen", (2,), "process is stopped (state T)", ())
    assert reasons.of(stopped, {2: 2}, 101.0).facts == (), "no line of a log stops a process"


def test_echoes_are_ruled_out_and_notes_of_its_card_speak() -> None:
    reasons = Reasons(shipped(), "host")
    reasons.lines(
        [line("[rank0]: RuntimeError: [../gloo/transport/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:2")], 10.0
    )
    reasons.note(Note("kernel", "hard", "gpu_fell_off_bus", 2, "NVRM: Xid 79, GPU has fallen off the bus"), 10.0)
    reasons.note(Note("exporter", "warning", "thermal", 1, "temperature 92 C"), 10.0)
    reason = reasons.of(KILLED, {2: 2}, 11.0)
    assert len(reason.ruled_out) == 1 and "only tell of a peer" in reason.ruled_out[0]
    assert [str(fact.value) for fact in reason.facts] == ["NVRM: Xid 79, GPU has fallen off the bus"]


def test_why_there_are_no_stacks_is_said_in_one_line_with_what_to_type() -> None:
    said = _why("Permission Denied: Try running again with elevated permissions by going 'sudo env ...'")
    assert "\n" not in said and ("sudo" in said or "SYS_PTRACE" in said)
    assert _why("Error: Failed to find python version from target process") == "no Python in that process"
