"""The ranks among the descendants of a launcher, by what launchers put into their environment; read from /proc, nothing else.

A rank's own children (workers of a data loader, compilers) have its environment too: of the processes with one rank's number
the topmost counts, below shells and wrappers that only wait for it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ninthsky.errors import UserError

# (rank, rank on this host, ranks in all), by who sets them. The first row that any process has in full counts for all:
# under Slurm the launcher of each node has a SLURM_PROCID of its own, and its ranks have a RANK.
CONTRACTS = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),  # torchrun, accelerate, deepspeed
    ("RANK", "", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
)
WRAPPERS = frozenset(
    {
        "sh", "bash", "dash", "zsh", "ksh", "busybox", "env", "time", "timeout", "nice", "numactl", "taskset", "tini",
        "dumb-init", "stdbuf", "catchsegv", "nsys", "ncu", "strace", "gdb", "su", "sudo", "conda", "singularity",
        "apptainer", "srun", "mpirun", "mpiexec", "orted", "prted", "slurmstepd",
    }
)  # fmt: skip
CARDS = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
LISTPIDS_SECONDS = 20.0


@dataclass(frozen=True)
class Rank:
    """One rank's process on this host. `started` is its start time in the kernel's ticks: a number used again is not it."""

    rank: int
    local: int
    world: int
    pid: int
    started: int
    cards: str = ""  # CUDA_VISIBLE_DEVICES and the like, as they were given

    @property
    def card(self) -> int:
        """The number of its card on this host: its own entry where one or more are listed, else its local rank."""
        listed = [part.strip() for part in self.cards.split(",") if part.strip().isdigit()]
        if len(listed) == 1:
            return int(listed[0])
        return int(listed[self.local]) if self.local < len(listed) else self.local


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    started: int


def read_process(pid: int) -> tuple[int, str, int] | None:
    """(parent, state letter, start time in ticks), or None where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return int(fields[1]), fields[0].decode(), int(fields[19])


def descendants(roots: Iterable[int]) -> list[int]:
    """The roots that exist and all below them, parents first."""
    children: dict[int, list[int]] = defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdigit() and (seen := read_process(int(name))) is not None:
            children[seen[0]].append(int(name))
    waiting = [pid for pid in roots if read_process(pid) is not None]
    found: list[int] = []
    known: set[int] = set()
    while waiting:
        pid = waiting.pop(0)
        if pid not in known:
            known.add(pid)
            found.append(pid)
            waiting += sorted(children[pid])
    return found


def work_of(pid: int) -> tuple[float, int]:
    """(processor seconds of the process, its threads and descendants; bytes that they read and wrote): does it work at all?"""
    seconds, moved = 0.0, 0
    for each in descendants([pid]):
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/{each}/stat").read_bytes()
            fields = text[text.rindex(b")") + 2 :].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            for line in Path(f"/proc/{each}/io").read_text().splitlines()[:2]:
                moved += int(line.split()[1])
    return seconds, moved


def environment_of(pid: int) -> dict[str, str]:
    """What the process was started with; empty where that may not be read or it is gone."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, _, value in pairs if key}


def may_be_read(pids: Iterable[int]) -> bool:
    """Whether the environment of any of these processes can be read, or none of them is there."""
    refused = False
    for pid in pids:
        try:
            Path(f"/proc/{pid}/environ").read_bytes()
            return True
        except PermissionError:
            refused = True
        except OSError:
            continue
    return not refused


def find_ranks(roots: Iterable[int]) -> list[Rank]:
    """The job's ranks on this host, by number; empty where none can be found (yet)."""
    environments = {pid: environment_of(pid) for pid in descendants(roots)}  # parents first
    for contract in CONTRACTS:
        named = {pid: environment for pid, environment in environments.items() if _follows(environment, contract)}
        if named:
            return _topmost(named, contract)
    return []


def _follows(environment: Mapping[str, str], contract: tuple[str, ...]) -> bool:
    return all(environment.get(name, "").isdigit() for name in contract if name)


def _topmost(named: Mapping[int, Mapping[str, str]], contract: tuple[str, str, str]) -> list[Rank]:
    rank_name, local_name, world_name = contract
    by_rank: dict[int, list[int]] = defaultdict(list)
    for pid, environment in named.items():
        by_rank[int(environment[rank_name])].append(pid)
    found = []
    for number, (rank, pids) in enumerate(sorted(by_rank.items())):
        pid = next((pid for pid in pids if _program(pid) not in WRAPPERS), pids[0])
        seen = read_process(pid)
        if seen is None or seen[1] in "ZX":
            continue
        environment = named[pid]
        local = int(environment[local_name]) if local_name else number
        cards = next((environment[name] for name in CARDS if environment.get(name)), "")
        found.append(Rank(rank, local, int(environment[world_name]), pid, seen[2], cards))
    return found


def _program(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return ""


def slurm_pids(job: str) -> list[int]:
    """Processes of a Slurm job's steps on this node, by `scontrol listpids`. Raises UserError N9-GRD-050."""
    command = ["scontrol", "listpids", job]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=LISTPIDS_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_job(f"scontrol: {error}", job) from error
    if said.returncode:
        raise _no_job(f"scontrol listpids {job}: {said.stderr.strip()[:200] or f'status {said.returncode}'}", job)
    # PID JOBID STEPID LOCALID GLOBALID; -1 stands for a process that is none.
    pids = [int(line.split()[0]) for line in said.stdout.splitlines() if line.split() and line.split()[0].isdigit()]
    if not pids:
        raise _no_job(f"job {job} has no process on this node", job)
    return pids


def _no_job(what: str, job: str) -> UserError:
    return UserError(
        "N9-GRD-050", what, f"--slurm-job {job}", "run it on a node of the job (srun --overlap --jobid ...), or --pid"
    )


def command_of(pid: int) -> list[str]:
    """Its command line; empty where it is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [word.decode("utf-8", "replace") for word in raw.split(b"\0") if word]


def log_files_of(pid: int) -> list[Path]:
    """Where its standard output and error go, where those are files."""
    found: list[Path] = []
    for number in (1, 2):
        try:
            path = Path(os.readlink(f"/proc/{pid}/fd/{number}"))
        except OSError:
            continue
        if path.is_file() and path not in found:
            found.append(path)
    return found
