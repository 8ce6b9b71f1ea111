"""What a guarded job is: command, ranks, hosts, and what may be done about faults. Saved as job.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from ninthsky.errors import UserError
from ninthsky.guard.keys import CONTROLLER, STANDBY
from ninthsky.guard.telemetry.sources import check_sources
from ninthsky.run.folder import write_json

if TYPE_CHECKING:  # its library costs 12 MB, in every agent and controller
    from ninthsky.config.schema import Guard

REPORTS_PER_SECOND = 2304  # of all agents, which cost the controller a tenth of a core
GATHER_SECONDS = 0.05
VOICES = 16  # so many hosts at least


class HostSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A host and its card slots: `slots` for ranks, `spares` more for prepared spares.

    `address` is where its agent and its ranks listen. `launch` is put before the agent's command, to start it elsewhere
    (`("ip", "netns", "exec", "a")`, `("ssh", "node7")`). `node` is what the cluster's scheduler calls it, where that differs.
    """

    name: str
    slots: int
    spares: int = 1
    address: str = "127.0.0.1"
    launch: tuple[str, ...] = ()
    node: str = ""


class Standby(msgspec.Struct, frozen=True, kw_only=True):
    """A second controller, which takes over when the first one's lease has lapsed (controller/lease.py).

    `folder`: where it keeps journal, events and faults of its own, copied to it over the wire; empty: the job's folder, which
    both hosts share. `launch` is put before its command, as in HostSpec.
    """

    address: str = "127.0.0.1"
    folder: str = ""
    launch: tuple[str, ...] = ()


class Injected(msgspec.Struct, frozen=True):
    """A fault that the job inflicts on itself, so that screens and files show it as injected. `step` counts from 0."""

    kind: Literal["kill", "freeze", "nan", "slow", "bad_card", "bad_data", "flip_gradient", "flip_weight", "wrong_matmul"]
    rank: int
    step: int
    attempt: int = 0


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """What is watched and what may be done, as `[guard]` of run.toml has it, and times seldom changed (seconds)."""

    action: Literal["advise", "act"] = "advise"
    hang_seconds: float = 2.5
    slow_ratio: float = 1.5
    slow_steps: int = 8
    max_redo: int = 2
    max_evictions_per_hour: int = 6
    replay_every: int = 0  # the state of steps that were replayed on other cards is kept until the next such step
    digest_parts: int = 1
    max_restarts_per_hour: int = 3  # of all ranks at once
    bind: str = "127.0.0.1"
    card_failures: int = 2  # a card that failed so often is kept out
    kill_replaced: bool = True  # else a replaced process lives until it reads that it is fenced
    host_seconds: float = 4.0  # no report of a host for so long, while others wait
    start_seconds: float = 180.0  # until every process is ready
    join_seconds: float = 45.0  # from assignment until every rank joined
    spare_seconds: float = 180.0  # until a respawned spare is ready, where none was left
    grow_seconds: float = 10.0  # of training with fewer ranks, before cards that came back are taken in
    webhook: str = ""  # address that is told of faults, in Alertmanager's form
    drain: Literal["advise", "slurm", "kubernetes"] = "advise"  # hosts with a card that is kept out, and lost ones
    exporter: str = ""  # addresses or files of vendors' exporters, separated by spaces; {host} is this host's name
    exporter_seconds: float = 10.0  # between two scrapes
    kernel_log: str = "auto"  # /dev/kmsg where it may be read; or a file ({host} as above), or off
    selftest: Literal["off", "suspected", "idle"] = "suspected"  # which cards are tested; idle: spares, and suspected ones
    selftest_minutes: float = 30.0  # between two tests of a spare

    @classmethod
    def of(cls, guard: Guard, **changes: float | bool) -> Watch:
        """The watch that `[guard]` of run.toml describes."""
        given = guard.model_dump(exclude={"spares_per_host", "smallest_share", "standby"})
        return cls(**{**given, **changes})


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One job. `folder` takes job.json, journal.jsonl, events.jsonl, faults/, logs/, keys/ and result.json.

    `worlds`: smaller numbers of ranks that the program can go on with where cards are lost; which ones, it alone knows.
    `events` is a second events.jsonl (the run's) that gets the same lines. `run_id` names the job's files in shared memory:
    two jobs with one id cannot run at a time on one host.
    """

    run_id: str
    folder: str
    command: list[str]
    world: int
    hosts: list[HostSpec]
    worlds: list[int] = []
    env: dict[str, str] = {}
    vet: list[str] = []  # command that tests a card; by default `n9 train vet --quick`
    watch: Watch = Watch()
    injected: list[Injected] = []
    events: str | None = None
    memory: str = "/dev/shm"
    standby: Standby | None = None

    def __post_init__(self) -> None:
        where = f"{self.folder}/job.json"
        if not self.run_id.replace("-", "").replace("_", "").isalnum() or len(self.run_id) > 40:
            raise UserError(
                "N9-CFG-012", f"run_id {self.run_id!r}: at most 40 letters, digits, - and _", where, "choose another name"
            )
        names = [host.name for host in self.hosts]
        if len(set(names)) != len(names) or not all(name.replace("-", "").isalnum() and len(name) <= 40 for name in names):
            raise UserError("N9-CFG-012", f"host names {names}: must differ, at most 40 letters, digits and -", where, "rename")
        if {CONTROLLER, STANDBY} & set(names):
            raise UserError("N9-CFG-012", f"host names {names}: {CONTROLLER} and {STANDBY} are taken", where, "rename")
        if self.world < 1 or self.world != sum(host.slots for host in self.hosts):
            raise UserError(
                "N9-CFG-013",
                f"{self.world} ranks on {sum(host.slots for host in self.hosts)} slots",
                where,
                "world must be the sum of the hosts' slots",
            )
        if self.watch.exporter:
            check_sources(self.watch.exporter)
        if not all(0 < ranks < self.world for ranks in self.worlds):
            raise UserError(
                "N9-CFG-013", f"worlds {self.worlds} of {self.world} ranks", where, "they must be smaller, 1 at least"
            )

    @property
    def report_seconds(self) -> float:
        """How often an agent reports at most: with each look, or so seldom that all hosts together send 2,304 reports a
        second, but once a second at least. What is unusual is reported at once."""
        return min(1.0, max(0.1, len(self.hosts) / REPORTS_PER_SECOND))

    @property
    def gather_seconds(self) -> float:
        """How long an agent gathers what its ranks say into one message: not at all on a small fleet."""
        return GATHER_SECONDS if len(self.hosts) > REPORTS_PER_SECOND / 10 else 0.0

    def speakers(self) -> frozenset[str]:
        """Hosts whose agents pass on what every rank knows and says (Committed): of thousands, some are enough."""
        return frozenset(host.name for host in self.hosts[:: max(1, len(self.hosts) // VOICES)])

    def homes(self) -> list[str]:
        """Host of each rank, as the job gives them: hosts are filled in order."""
        return [host.name for host in self.hosts for _ in range(host.slots)]

    def host(self, name: str) -> HostSpec:
        """Raises KeyError for a host that the job does not have."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)

    def memory_folder(self, host: str) -> Path:
        """Where a host's agent keeps its socket, records and shards."""
        return Path(self.memory) / f"n9-{self.run_id}-{host}"

    def save(self) -> Path:
        path = Path(self.folder) / "job.json"
        write_json(path, msgspec.to_builtins(self))
        return path


def peer(text: str) -> tuple[str, int]:
    """ADDRESS:PORT. Raises UserError."""
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal():
        raise UserError("N9-CFG-012", f"{text!r} is not ADDRESS:PORT", "the command line", "such as 10.0.0.7:29510")
    return address, int(port)


def load_spec(path: Path) -> JobSpec:
    """Raises UserError where the file is missing or not a job."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=JobSpec)
    except (OSError, msgspec.ValidationError, msgspec.DecodeError) as error:
        raise UserError(
            "N9-CFG-001", f"not a job: {error}", str(path), "job.json is written by `n9 run`; see docs/guard.md"
        ) from error
