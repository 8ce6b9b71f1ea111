"""What controller and agents say to each other. msgpack by msgspec, over wire.py. Agents among themselves: agent/between.py.

Commands to an agent are numbered and repeated until a report acknowledges them; events from an agent are numbered, and a
controller that missed one (or was restarted) asks for the whole state. So a lost connection loses nothing.
"""

from __future__ import annotations

import msgspec

from ninthsky.guard.probe.messages import Assign, ToAgent, ToRank
from ninthsky.guard.seen import ROW
from ninthsky.guard.telemetry.note import Note


class _Message(msgspec.Struct, frozen=True, tag=True):
    pass


class ProcessState(msgspec.Struct, frozen=True):
    """A process as its agent knows it. `last` holds its newest message of each kind since it was assigned."""

    slot: int
    pid: int
    ready: bool
    generation: int  # 0: never assigned
    rank: int
    last: list[ToAgent] = []


# -- agent to controller --------------------------------------------------------------------------------------------------


class Register(_Message, frozen=True):
    """All that an agent knows, on its first connection and whenever the controller asks."""

    address: str
    port: int  # of its shard server
    generation: int
    processes: list[ProcessState]
    events: int  # number of its last event
    ended: list[Exited] = []  # the last ones, in case the controller that was told of them is gone
    notes: list[Note] = []  # likewise


class Report(_Message, frozen=True):
    """Sent with each step and at rest now and then (agent/looking.py), at most every JobSpec.report_seconds; at once when
    something is unusual.

    `late` is how many seconds late this agent's own clock tick was."""

    events: int
    controller: str  # whose command was the last one done, and its number
    commands: int
    late: float
    processes: bytes  # rows of seen.py

    def __post_init__(self) -> None:
        if len(self.processes) % ROW.size:
            raise ValueError("half a row")


class FromRank(_Message, frozen=True):
    """A rank's message, passed on."""

    event: int
    slot: int
    pid: int
    message: ToAgent


class Started(_Message, frozen=True):
    """A process was started in a slot."""

    event: int
    slot: int
    pid: int


class Exited(_Message, frozen=True):
    """A process ended. `status` as in subprocess: negative is a signal. `oom` counts kernel OOM kills during its life."""

    event: int
    slot: int
    pid: int
    status: int
    oom: int
    log: str
    tail: str  # last lines of its log
    record: bytes = b""  # as it left it


class ShardInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A verified shard in an agent's store."""

    rank: int
    step: int
    size: int
    xxh3: str


class Inventory(_Message, frozen=True):
    """Answer to Prepare."""

    event: int
    generation: int
    shards: list[ShardInfo]


class PlaceFailed(_Message, frozen=True):
    """A rank's state could not be brought to its new place."""

    event: int
    generation: int
    rank: int
    reason: str


class Doubled(_Message, frozen=True):
    """Form's `again` has been fetched, but for the shards of `missing` ranks; `reason`: of the last of them."""

    event: int
    generation: int
    missing: list[int] = []
    reason: str = ""


class Refusals(_Message, frozen=True):
    """Peers and frames that this agent turned away so far, by reason."""

    event: int
    counts: dict[str, int]


class Notes(_Message, frozen=True):
    """What this host's exporter and kernel log told: few, most of the time none. `problems`: sources that cannot be read."""

    event: int
    notes: list[Note]
    problems: list[str] = []
    dropped: int = 0  # notes that were too many


class Tested(_Message, frozen=True):
    """How a self-test ended: `passed` of `times`; 0 times where it could not be run, and `problem` says why."""

    event: int
    test: int
    passed: int
    times: int
    problem: str = ""
    figures: dict[str, float] = {}


class LinkServing(_Message, frozen=True):
    """The serving end of a link test listens on this port."""

    event: int
    test: int
    port: int


class Several(_Message, frozen=True):
    """What ranks of one host said within JobSpec.gather_seconds, in order: 18,432 joins one by one would cost a second."""

    events: list[FromRank]


# -- controller to agent --------------------------------------------------------------------------------------------------


class WhoAreYou(_Message, frozen=True):
    """Send Register."""


class Prepare(_Message, frozen=True):
    """A new generation begins: abort the old one in all ranks, refuse its shards from now on, answer with the inventory."""

    generation: int
    reason: str


class Place(msgspec.Struct, frozen=True):
    """One rank's place. `source` is the host that has shard (rank, resume_step); empty where there is no shard to bring.

    `assign` comes without `hosts` and `ranks_before`: they are the same for all ranks, and the agent fills them from Form.
    """

    slot: int
    pid: int
    assign: Assign
    source: str = ""
    xxh3: str = ""


class Peer(msgspec.Struct, frozen=True):
    """Where a host's agent serves shards."""

    host: str
    address: str
    port: int


class Form(_Message, frozen=True):
    """The new generation: places on this host. `peers`: this host, the next in the ring (copies are shipped there), and hosts
    that have shards for these places. `away`: ranks that are not on the host that the job gives them, and where they are;
    `ranks_before`: as in Assign. So nothing here grows with the number of ranks."""

    generation: int
    resume_step: int
    places: list[Place]
    peers: list[Peer]
    away: dict[int, str] = {}
    ranks_before: dict[int, str] = {}
    held: dict[int, tuple[str, str]] = {}  # (host, xxh3) of each rank's shard, where the number of ranks has changed
    again: dict[int, tuple[str, str]] = {}  # (host, xxh3) of shards that are held once only: to be fetched here too


class ToSlots(_Message, frozen=True):
    """Pass a message on to processes: (slot, pid) each."""

    places: list[tuple[int, int]]
    message: ToRank


class ToAll(_Message, frozen=True):
    """Pass a message on to every process of this host that holds a rank of the newest generation."""

    message: ToRank


class Dismiss(_Message, frozen=True):
    """A process was replaced: fence it, and end it where `kill`. Otherwise it ends when it hears that it is fenced."""

    slot: int
    pid: int
    kill: bool


class SelfTest(_Message, frozen=True):
    """Test the card of a slot, `times` times, at low priority. `after`: the process that must have ended before; until the test
    is over no other is started in the slot. 0: beside whatever is there."""

    test: int
    slot: int
    times: int
    after: int = 0


class LinkTest(_Message, frozen=True):
    """One end of a link test between two hosts: the serving one has no port. Both know `token`, which nobody else does."""

    test: int
    token: bytes
    address: str
    port: int = 0

    def __repr__(self) -> str:
        return f"LinkTest({self.test}, {self.address}:{self.port})"  # a token does not belong in a log


class KeepOut(_Message, frozen=True):
    """Start nothing in this slot again."""

    slot: int
    reason: str


class Refused(_Message, frozen=True):
    """This host was declared lost and its ranks were replaced: fence them, and end."""

    generation: int


class Shutdown(_Message, frozen=True):
    """The job is over."""

    reason: str


# -- who leads (controller/lease.py) --------------------------------------------------------------------------------------


class Claim(_Message, frozen=True):
    """Controller to voters: grant me this term, or its next seconds. `set` numbers the sets of voters."""

    term: int
    number: int  # of this claim; the answer repeats it
    set: int
    voters: list[str]
    next_set: int = 0  # a proposed one: until it counts, both have to agree to another controller; 0: none
    next_voters: list[str] = []


class Standing(_Message, frozen=True):
    """Voter to controllers: what it has granted. `left` in seconds from now; `number` of the claim that this answers, or 0."""

    term: int
    holder: str
    left: float
    number: int
    set: int
    voters: list[str]
    next_set: int = 0
    next_voters: list[str] = []


class Follow(_Message, frozen=True):
    """Standby to the controller that leads, once a second: how much of its journal and events is here, in bytes."""

    journal: int
    events: int
    faults: int = 0  # bytes of all faults here
    anew: bool = False  # send all of it


class Copy(_Message, frozen=True):
    """A piece of the leader's files. Faults come whole: `offset` 0, `size` = len(text)."""

    controller: str  # the leader's id, as in its controller.json: who finds it there shares its folder and needs no copy
    name: str
    offset: int
    size: int  # of the whole file
    text: bytes


Event = FromRank | Started | Exited | Inventory | PlaceFailed | Doubled | Refusals | Notes | Tested | LinkServing
ToController = Register | Report | Event | Several
ToLeader = ToController | Standing | Follow  # what a controller of a job with a standby hears besides
Command = WhoAreYou | Prepare | Form | ToSlots | ToAll | Dismiss | KeepOut | SelfTest | LinkTest | Refused | Shutdown | Claim


class Numbered(msgspec.Struct, frozen=True):
    """A command in its envelope. `controller` changes when the controller is restarted: numbers then begin again.

    `term`: of the lease under which it was given; 0 where a job has one controller only."""

    controller: str
    number: int  # 0: not numbered, done whenever it arrives
    command: Command
    term: int = 0
