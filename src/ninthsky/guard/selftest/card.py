"""One card's test as a process of its own: `n9 train vet --quick` answers with one line of JSON, whatever the card does to it.

Its products and memory patterns have right answers that are known to the bit (train/vet/quick.py), so no second card is needed.
It runs at the lowest priority: where ranks use the same cores, they go first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from ninthsky.guard.agent.spawner import die_with_parent, process_state

VET = ("-m", "ninthsky", "train", "vet", "--quick")
SECONDS = 180.0
IDLE_SHARE = 0.02  # of SECONDS on the processor, below which a test that did not end hangs in the card, and is not just slow
LARGEST = 1 << 16  # bytes of output that are kept
LOWEST = 19  # nice
END_SECONDS = 2.0  # for a killed test to be gone
_KILLED = frozenset({-signal.SIGKILL, -signal.SIGTERM})


class _Line(msgspec.Struct, frozen=True):
    """What is read of the answer; vet says more."""

    good: bool
    problem: str = ""
    device: str = ""
    products: float = 0.0
    memory_bytes: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """`passed` is None where the test could not be run, and `problem` says why."""

    passed: bool | None
    problem: str = ""
    device: str = ""
    figures: dict[str, float] = field(default_factory=dict)


def command_of(vet: Sequence[str]) -> list[str]:
    """The job's own command, or vet's of this release."""
    return list(vet) or [sys.executable, *VET]


async def examine(command: Sequence[str], env: dict[str, str], seconds: float = SECONDS) -> Outcome:
    """Runs the test once. What it started is gone when this returns or is cancelled."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LARGEST,
            preexec_fn=_prepare(os.getpid()),
        )
    except OSError as error:
        return Outcome(None, f"{command[0]}: {error.strerror or error}")
    output = bytearray()
    try:
        async with asyncio.timeout(seconds):
            await _read(process, output)
            status = await process.wait()
    except TimeoutError:
        letter, cpu = process_state(process.pid)
        if letter in "DS" and cpu < IDLE_SHARE * seconds:
            return Outcome(False, f"the test hangs: {cpu:.1f} s of processor time in {seconds:.0f} s, state {letter}")
        return Outcome(None, f"the test did not end within {seconds:.0f} s; it got {cpu:.1f} s of processor time")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(TimeoutError):  # a process in the kernel ends when the kernel lets it
                await asyncio.wait_for(process.wait(), END_SECONDS)
    return judge(status, bytes(output))


def judge(status: int, output: bytes) -> Outcome:
    """From exit status and output. A test that crashes by itself has answered; one that was killed, or never began, has not."""
    line = next((line for line in reversed(output.splitlines()) if line.startswith(b"{")), b"")
    try:
        answer = msgspec.json.decode(line, type=_Line)
    except (msgspec.ValidationError, msgspec.DecodeError):
        words = output.decode("utf-8", "replace").strip().splitlines()
        last = words[-1][:200] if words else "it said nothing"
        if status < 0 and status not in _KILLED:
            return Outcome(False, f"the test crashed, {signal.Signals(-status).name}: {last}")
        return Outcome(None, f"the test ended with status {status} and no answer: {last}")
    figures = {"products": answer.products, "memory_bytes": answer.memory_bytes, "seconds": answer.seconds}
    return Outcome(answer.good and status == 0, answer.problem[:300], answer.device, figures)


async def _read(process: asyncio.subprocess.Process, output: bytearray) -> None:
    assert process.stdout is not None
    while part := await process.stdout.read(1 << 12):
        output += part
        del output[:-LARGEST]


def _prepare(parent: int):  # type: ignore[no-untyped-def]
    die = die_with_parent(parent)

    def prepare() -> None:
        die()
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST)

    return prepare
