"""The process group that counts: forwards each collective to an inner group and notes it in the rank's record.

Registered as backend "guard", it sees every collective of FSDP2, DTensor, DDP and functional collectives, whatever the inner
back end is. It never waits on its own account and never changes what is sent. A rank that stands in a collective which the
others have not entered, or has not entered one in which they stand, shows in the counts of that group.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import xxhash
from torch._C._distributed_c10d import PrefixStore, Store, _DistributedBackendOptions

from ninthsky.guard.probe.clock import RunClock
from ninthsky.guard.probe.record import RecordWriter, group_id
from ninthsky.guard.probe.waiting import Waiting, by_limit

BACKEND = "guard"

# (store, rank, size, timeout of a collective) -> a group that does the work
Inner = Callable[[Store, int, int, timedelta], dist.ProcessGroup]
FORMING_SECONDS = 10.0  # for the connections of one group; a peer that dies meanwhile is noticed by the guard, not by this


class _Kind(NamedTuple):
    """How a collective is called."""

    sends: int | None  # position of the argument with what this rank sends
    equal: bool = True  # every rank sends the same shape
    reduces: bool = False


# Every collective method of torch 2.11 to 2.13; a release has those of them that it knows.
KINDS: dict[str, _Kind] = {
    "allreduce": _Kind(0, reduces=True),
    "allreduce_coalesced": _Kind(0, reduces=True),
    "reduce": _Kind(0, reduces=True),
    "reduce_scatter": _Kind(1, reduces=True),
    "_reduce_scatter_base": _Kind(1, reduces=True),
    "reduce_scatter_single": _Kind(1, reduces=True),
    "reduce_scatter_tensor_coalesced": _Kind(1, reduces=True),
    "reduce_scatter_single_coalesced": _Kind(1, reduces=True),
    "allgather": _Kind(1, equal=False),
    "allgather_coalesced": _Kind(1, equal=False),
    "_allgather_base": _Kind(1),
    "all_gather_single": _Kind(1),
    "allgather_into_tensor_coalesced": _Kind(1),
    "all_gather_single_coalesced": _Kind(1),
    "alltoall": _Kind(1, equal=False),
    "alltoall_base": _Kind(1, equal=False),
    "all_to_all_single": _Kind(1, equal=False),
    "broadcast": _Kind(0),
    "gather": _Kind(1, equal=False),
    "scatter": _Kind(1, equal=False),
    "barrier": _Kind(None),
    "monitored_barrier": _Kind(None),
    "send": _Kind(0, equal=False),
    "recv": _Kind(None, equal=False),
    "recv_anysource": _Kind(None, equal=False),
}
POINT_TO_POINT = ("send", "recv")


class GroupGone(RuntimeError):
    """A collective was called on a group of a generation that was let go."""


class Times(NamedTuple):
    """Seconds spent inside collectives: by `Probe.clock`, and of this thread's processor time."""

    wall: float
    cpu: float


class Probe:
    """What a rank measures in all its groups. One per process, used from its main thread.

    `inner` makes the group that does the work wherever torch asks for a "guard" group; it may be replaced between generations.
    """

    def __init__(self, record: RecordWriter, inner: Inner) -> None:
        self.record, self.inner = record, inner
        self.groups: weakref.WeakSet[GuardGroup] = weakref.WeakSet()
        self.failure = ""  # of the first collective that raised since `let_go`
        self.cut: Callable[[], bool] = lambda: False  # whether this generation's sockets have been shut down
        self.by_turns = False  # waits can be given up; set where gloo alone carries
        self.stranded = False  # one was
        self.waiting = Waiting()
        self._given_up: list[dist.ProcessGroup] = []
        self.clock = RunClock()  # the wall clock, less this thread's time in line for a processor
        self._wall = self._cpu = 0.0
        self._watching = False
        self._moment = 0
        self._outgoing: list[tuple[int, torch.Tensor]] = []
        self._operations: dict[object, int] = {}

    def times(self) -> Times:
        """Time in collectives since the process began."""
        return Times(self._wall, self._cpu)

    def watch(self) -> None:
        """From here to `first_bad`, what this rank sends to be reduced, or to other ranks' experts and stages, is checked."""
        self._watching = True
        self._moment = 0
        self._outgoing.clear()

    def at(self, moment: int) -> None:
        """The time, on a clock that all ranks share (a pipeline schedule's), of the work that this rank begins now."""
        self._moment = moment

    def first_bad(self) -> int | None:
        """Ends the watch. Where the first call stands that this rank entered with a value not finite, or None.

        All ranks of a stage make the same calls in the same order, and what reaches another stage is worked on there at a
        later moment. So of several bad ranks the one with the lowest number is where the value came from: the others received
        it. The flags stay on the device until here, so nothing stalls.
        """
        moments = [moment for moment, _ in self._outgoing]
        outgoing = self.outgoing()
        flags = [] if outgoing is None else outgoing.tolist()
        bad = (number for number, flag in enumerate(flags) if not math.isfinite(flag))
        return next((moments[number] << 32 | number for number in bad), None)

    def outgoing(self) -> torch.Tensor | None:
        """Ends the watch. 0 or NaN for each call that was checked, on its device: reading it waits for the device."""
        self._watching = False
        if not self._outgoing:
            return None
        flags = torch.stack([value for _, value in self._outgoing])
        self._outgoing.clear()
        return flags

    def let_go(self) -> None:
        """Drops the inner groups. Their sockets must have been shut down before: an inner group waits for its own threads."""
        if self.stranded:  # freeing them would wait for the thread that waits for ever
            self._given_up += [group.inner for group in self.groups if group.inner is not None]
            self.stranded = False
        for group in list(self.groups):
            group.inner = None
        self.groups.clear()
        self.failure = ""

    def check(self, tensors: list[torch.Tensor]) -> None:
        if not self._watching:
            return
        for tensor in tensors:
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            low, high = torch.aminmax(tensor.detach())
            self._outgoing.append((self._moment, (low * 0 + high * 0).float()))  # 0 or NaN

    def operation(self, name: str, kind: _Kind, tensors: list[torch.Tensor]) -> int:
        """The hash by which ranks compare what they are doing: kind, type and, where it has to be equal, shape."""
        shape = tuple(tensor.shape for tensor in tensors) if kind.equal else ()
        key = (name, shape, tensors[0].dtype if tensors else None)
        known = self._operations.get(key)
        if known is None:
            known = self._operations[key] = xxhash.xxh3_64_intdigest(repr(key).encode())
        return known

    def fail(self, error: RuntimeError) -> None:
        self.failure = self.failure or str(error).strip().splitlines()[0] or type(error).__name__

    def spent(self, wall: float, cpu: float) -> None:
        self._wall += self.clock() - wall
        self._cpu += time.thread_time() - cpu


class GuardWork(dist.Work):
    """The inner group's work; waiting for it counts as communication, and its end as completion."""

    def __init__(self, inner: dist.Work, probe: Probe, group: int, number: int, by_turns: bool, limited: bool = True) -> None:
        """`by_turns`: a wait can be given up. `limited`: the inner work's wait keeps a time limit."""
        super().__init__()
        self._inner, self._probe, self._group, self._number = inner, probe, group, number
        self._by_turns, self._limited = by_turns, limited

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        wall, cpu = self._probe.clock(), time.thread_time()
        try:
            done = self._patiently() if self._by_turns and not timeout else self._inner.wait(timeout)
        except RuntimeError as error:
            self._probe.fail(error)
            raise
        finally:
            self._probe.spent(wall, cpu)
        self._probe.record.complete(self._group, self._number)
        return done

    def _patiently(self) -> bool:
        """Waits without end, but in turns: gloo can miss that its sockets were cut while an operation sets up its buffers,
        and then waits for ever. Such a group is given up with its threads (`Probe.let_go`)."""
        # A wait may copy into the output, and the caller's gradient mode is its own thread's.
        turn = by_limit(self._inner) if self._limited else self._probe.waiting.turns(torch.no_grad()(self._inner.wait))
        cut = False
        while (done := turn()) is None:
            if cut:
                self._probe.stranded = True
                self._probe.waiting.give_up()
                raise GroupGone("its sockets were cut, and the operation did not end")
            cut = self._probe.cut()
        return done

    def get_future(self) -> Any:
        return self._inner.get_future()

    def get_future_result(self) -> Any:
        return self._inner.get_future_result()  # type: ignore[attr-defined]

    def is_completed(self) -> bool:
        return self._inner.is_completed()

    def is_success(self) -> bool:
        return self._inner.is_success()

    def exception(self) -> Any:
        return self._inner.exception()

    def result(self) -> Any:
        return self._inner.result()

    def synchronize(self) -> None:
        self._inner.synchronize()

    def source_rank(self) -> int:
        return self._inner.source_rank()

    def _source_rank(self) -> int:
        return self._inner._source_rank()

    def block_current_stream(self) -> None:
        self._inner.block_current_stream()


class GuardGroup(dist.ProcessGroup):
    """Wraps `inner`. The inner group can be dropped (`Probe.let_go`): collectives then raise GroupGone."""

    def __init__(self, probe: Probe, inner: dist.ProcessGroup, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self.inner: dist.ProcessGroup | None = inner
        self._probe = probe
        self._name = ""
        self._ids: dict[str, int] = {}
        probe.groups.add(self)

    # torch calls these three by their C++ names.
    def getBackendName(self) -> str:
        return BACKEND

    def setGroupName(self, name: str) -> None:
        self._name = name
        if self.inner is not None:
            self.inner._set_group_name(name)  # type: ignore[arg-type]

    def getGroupName(self) -> str:
        return self._name

    def _get_backend(self, device: torch.device) -> Any:
        return self._living()._get_backend(device)

    def set_timeout(self, timeout: timedelta) -> None:
        self._living().set_timeout(timeout)

    def _living(self) -> dist.ProcessGroup:
        if self.inner is None:
            raise GroupGone(f"process group {self._name!r} belongs to a generation that was let go")
        return self.inner

    def _work(self, name: str, work: dist.Work, group: int, number: int, sent: list[torch.Tensor]) -> dist.Work:
        # A message's wait that runs out of time would break its connection; it ends by itself when that is cut.
        by_turns = self._probe.by_turns and name not in (*POINT_TO_POINT, "recv_anysource")
        return GuardWork(work, self._probe, group, number, by_turns, limited="reduce_scatter" not in name)

    def _id(self, name: str, arguments: tuple[Any, ...]) -> int:
        """Under which id a call is counted. A pair of ranks counts its messages apart: others take no part in them."""
        key = self._name
        if name in POINT_TO_POINT:
            here, there = self.rank(), int(arguments[1])
            source, target = (here, there) if name == "send" else (there, here)
            key = f"{key}:{source}>{target}"
        known = self._ids.get(key)
        if known is None:
            known = self._ids[key] = group_id(key)
        return known


def _tensors(argument: Any) -> list[torch.Tensor]:
    if isinstance(argument, torch.Tensor):
        return [argument]
    if isinstance(argument, (list, tuple)):
        return [tensor for inner in argument for tensor in _tensors(inner)]
    return []


def _forwarded(name: str, kind: _Kind) -> Callable[..., dist.Work | None]:
    def collective(self: GuardGroup, *arguments: Any, **options: Any) -> dist.Work | None:
        probe, inner = self._probe, self._living()
        sent = [] if kind.sends is None else _tensors(arguments[kind.sends : kind.sends + 1])
        if kind.reduces or not kind.equal:
            probe.check(sent)
        group = self._id(name, arguments)
        number = probe.record.enqueue(group, probe.operation(name, kind, sent))
        wall, cpu = probe.clock(), time.thread_time()
        try:
            work = getattr(inner, name)(*arguments, **options)
        except RuntimeError as error:
            probe.fail(error)
            raise
        finally:
            probe.spent(wall, cpu)
        return None if work is None else self._work(name, work, group, number, sent)

    collective.__name__ = name
    return collective


for _name, _kind in KINDS.items():
    if hasattr(dist.ProcessGroup, _name):
        setattr(GuardGroup, _name, _forwarded(_name, _kind))


def gloo(address: str) -> Inner:
    """Makes gloo groups that listen on `address` only."""

    def make(store: Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroup:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
        options._timeout = timedelta(seconds=FORMING_SECONDS)
        backend = dist.ProcessGroupGloo(store, rank, size, options)
        backend._set_default_timeout(timeout)
        backend._set_sequence_number_for_group()
        group = dist.ProcessGroup(store, rank, size)
        group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
        group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, backend)
        return group

    return make


def carrier(address: str, device: str, backend: str) -> Inner:
    """Makes groups in which gloo, on `address` only, carries what lies on the host, and `backend` what lies on `device`.

    `backend` is one that torch was built with or that the device's own package has registered; RuntimeError for any other.
    """
    on_host = gloo(address)
    if device == "cpu":
        return on_host

    def make(store: Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroup:
        group = on_host(PrefixStore("host", store), rank, size, timeout)
        part, kind = _device_part(backend, PrefixStore("device", store), rank, size, timeout)
        group._register_backend(torch.device(device), kind, part)
        return group

    return make


def _device_part(backend: str, store: Store, rank: int, size: int, timeout: timedelta) -> tuple[Any, Any]:
    kinds, name = dist.ProcessGroup.BackendType, backend.upper()
    plugin = dist.Backend._plugins.get(name)
    if plugin is None:
        built_in = getattr(dist, f"ProcessGroup{name}", None)
        if built_in is None:
            raise RuntimeError(f"torch knows no process-group back end {backend!r} here")
        return built_in(store, rank, size), getattr(kinds, name)
    if not plugin.extended_api:
        return plugin.creator_fn(store, rank, size, timeout), kinds.CUSTOM
    options = _DistributedBackendOptions()
    options.store, options.group_rank, options.group_size, options.timeout = store, rank, size, timeout
    return plugin.creator_fn(options, None), kinds.CUSTOM


def register(probe: Probe, device: str) -> None:
    """Makes "guard" a backend of torch.distributed for `device`. Once in a process."""
    probe.by_turns = device == "cpu"

    def create(store: Store, rank: int, size: int, timeout: timedelta) -> GuardGroup:
        return GuardGroup(probe, probe.inner(store, rank, size, timeout), rank, size)

    dist.Backend.register_backend(BACKEND, create, devices=[device])
