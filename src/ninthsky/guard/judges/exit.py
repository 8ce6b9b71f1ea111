"""A process ended: the first end in time is named, what breaks in the others afterwards is its echo."""

from __future__ import annotations

import signal

from ninthsky.evidence import Fact
from ninthsky.guard.judges.verdict import Verdict
from ninthsky.guard.protocol import Exited


def judge_exit(rank: int, exited: Exited, echoes: list[tuple[int, str]]) -> Verdict:
    """Verdict on a rank whose process ended. `echoes`: (rank, error) of collectives that broke before the end was told."""
    facts = [Fact("exit status", status_name(exited.status), source=f"pidfd of process {exited.pid}")]
    ruled_out = []
    if exited.status == -signal.SIGKILL:
        if exited.oom:
            facts.append(Fact("kernel OOM kills during its life", float(exited.oom), 0.0, source="/proc/vmstat"))
        else:
            ruled_out.append("out of memory: the kernel killed nothing for want of memory (/proc/vmstat oom_kill unchanged)")
    if exited.status < 0:
        ruled_out.append(
            "an error in the training code: the process was ended by a signal, its log ends without a traceback"
            if "Traceback" not in exited.tail
            else "nothing: its log ends with a traceback"
        )
    elif exited.tail:
        facts.append(Fact("last line of its log", exited.tail.strip().splitlines()[-1][:300], source=exited.log))
    if echoes:
        ranks = ", ".join(str(other) for other, _ in echoes)
        facts.append(Fact("collectives broken by it", f"on ranks {ranks}: {echoes[0][1][:200]}", source="ranks"))
    text = (
        f"process ended by {status_name(exited.status)}" if exited.status < 0 else f"process ended with status {exited.status}"
    )
    return Verdict("exit", (rank,), text, tuple(facts), tuple(ruled_out), confidence=1.0)


def status_name(status: int) -> str:
    """`SIGKILL (signal 9)`, or `status 1`."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"{signal.Signals(-status).name} (signal {-status})"
    except ValueError:
        return f"signal {-status}"
