"""A group that torch formed, wrapped afterwards: same back end, same options, same name, and each collective is counted.

`get_backend()` and `group.name()` answer as before, so libraries that compare them go the way they always went.
"""

from __future__ import annotations

import inspect
import time
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from ninthsky.guard.probe.group import KINDS, GuardGroup, GuardWork, Probe
from ninthsky.guard.probe.record import RecordWriter


class AdoptedProbe(Probe):
    """What a rank measures in groups that torch formed.

    Only gradients on their way to be reduced are checked for values that are not finite: calls within a backward pass.
    """

    def __init__(self, record: RecordWriter) -> None:
        super().__init__(record, _formed_by_torch)
        self._newest: dict[int, tuple[int, dist.Work]] = {}  # by group: its last call, until it is known to have ended
        self._oldest: dict[int, tuple[int, dist.Work]] = {}
        self._entered = self._ended = 0.0  # of calls that are waited for through their future, out of our sight

    def check(self, tensors: list[torch.Tensor]) -> None:
        if torch._C._current_graph_task_id() != -1:
            super().check(tensors)

    def begun(self, group: int, number: int, work: dist.Work) -> None:
        """A call whose end nobody may tell of."""
        self.poll()
        self._newest[group] = (number, work)

    def done(self, group: int, number: int) -> None:
        self.record.complete(group, number)
        if self._newest.get(group, (0,))[0] <= number:
            self._newest.pop(group, None)

    def poll(self) -> None:
        """From the main thread, between steps and calls: asks about calls that nobody waits for on the host. Of a group's calls
        the oldest and the newest are kept for that, and with them their tensors. Not while a graph is captured: asking the
        device then would spoil it."""
        if not self._newest or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):
            return
        for group, (number, work) in list(self._newest.items()):
            if work.is_completed():
                self._oldest.pop(group, None)
                self.done(group, number)
            elif (oldest := self._oldest.setdefault(group, (number, work)))[1].is_completed():
                self.record.complete(group, oldest[0])
                self._oldest[group] = (number, work)

    def entered(self) -> None:
        self._entered = time.perf_counter()

    def ended(self) -> None:
        self._ended = time.perf_counter()

    def settle(self) -> None:
        """Before an optimizer step: what DDP waited for. Its last bucket is sent when the last gradient is there, so that from
        then until the last bucket has come back, the backward pass does nothing but wait."""
        self._wall += max(0.0, self._ended - self._entered) if self._entered else 0.0
        self._entered = self._ended = 0.0


class AdoptedWork(GuardWork):
    """Ends when its waiting ends; on an accelerator, when the device says so."""

    _probe: AdoptedProbe

    def __init__(self, inner: dist.Work, probe: AdoptedProbe, group: int, number: int, on_host: bool) -> None:
        super().__init__(inner, probe, group, number, by_turns=False)
        self._on_host = on_host
        probe.begun(group, number, inner)

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        wall, cpu = self._probe.clock(), time.thread_time()
        try:
            done = self._inner.wait(timeout)
        except RuntimeError as error:
            self._probe.fail(error)
            raise
        finally:
            self._probe.spent(wall, cpu)
        if self._on_host:
            self._probe.done(self._group, self._number)
        return done

    def is_completed(self) -> bool:
        done = self._inner.is_completed()
        if done:
            self._probe.done(self._group, self._number)
        return done

    def get_future(self) -> Any:
        future = self._inner.get_future()
        if self._on_host:
            self._probe.entered()
            future.add_done_callback(self._told)
        return future

    def _told(self, future: Any) -> None:
        self._probe.ended()
        try:
            future.value()
        except RuntimeError as error:
            self._probe.fail(error)
        else:
            self._probe.done(self._group, self._number)


class AdoptedGroup(GuardGroup):
    """Wraps `inner`, which goes on knowing its back ends, options and name."""

    _probe: AdoptedProbe
    inner: dist.ProcessGroup

    def __init__(self, probe: AdoptedProbe, inner: dist.ProcessGroup) -> None:
        super().__init__(probe, inner, inner.rank(), inner.size())
        self._name = inner.group_name
        self._gathering = False  # calls are put together into one: they have no end of their own
        # What torch's own C++ asks of a group without going through its methods, it asks of these.
        for device in inner._device_types:
            backend = inner._get_backend(device)
            kind = dist.Backend.backend_type_map.get(backend.name(), dist.ProcessGroup.BackendType.CUSTOM)
            dist.ProcessGroup._register_backend(self, device, kind, backend)
        kind = dist.Backend.backend_type_map.get(inner.name(), dist.ProcessGroup.BackendType.CUSTOM)
        dist.ProcessGroup._set_default_backend(self, kind)

    def getBackendName(self) -> str:
        return self.inner.name()

    def _start_coalescing(self, device: torch.device) -> None:
        self._gathering = True
        self.inner._start_coalescing(device)

    def _end_coalescing(self, device: torch.device) -> dist.Work:
        self._gathering = False
        return self.inner._end_coalescing(device)

    def _work(self, name: str, work: dist.Work, group: int, number: int, sent: list[torch.Tensor]) -> dist.Work:
        if self._gathering:
            self._probe.record.complete(group, number)
            return work
        return AdoptedWork(work, self._probe, group, number, all(tensor.device.type == "cpu" for tensor in sent))


def _forward_the_rest() -> None:
    """All that a ProcessGroup can do beside its collectives is left to the inner one."""
    own = {"rank", "size", "boxed", "unbox", "_id", "_set_group_name", "group_name"}
    for name, value in vars(dist.ProcessGroup).items():
        if name in own or name in KINDS or name.startswith("__") or name in vars(AdoptedGroup):
            continue
        if isinstance(value, property):
            setattr(AdoptedGroup, name, _property(name))
        elif inspect.isroutine(value) and not isinstance(value, staticmethod):
            setattr(AdoptedGroup, name, _method(name))


def _property(name: str) -> property:
    def read(self: AdoptedGroup) -> Any:
        return getattr(self.inner, name)

    def write(self: AdoptedGroup, value: Any) -> None:
        setattr(self.inner, name, value)

    return property(read, write)


def _method(name: str) -> Any:
    def forwarded(self: AdoptedGroup, *arguments: Any, **options: Any) -> Any:
        return getattr(self.inner, name)(*arguments, **options)

    forwarded.__name__ = name
    return forwarded


_forward_the_rest()


def replace(c10d: ModuleType, group: dist.ProcessGroup, probe: AdoptedProbe) -> AdoptedGroup:
    """Puts a wrapper in the place of a group that torch has just formed, in all of torch's tables."""
    wrapper, world = AdoptedGroup(probe, group), c10d._world
    for table in (world.pg_map, world.pg_names, world.pg_group_ranks, world.pg_backend_config, world.pg_to_tag):
        if group in table:
            table[wrapper] = table.pop(group)
    for members in world.tags_to_pg.values():
        members[:] = [wrapper if member is group else member for member in members]
    name = world.pg_names[wrapper]
    c10d._unregister_process_group(name)
    c10d._register_process_group(name, wrapper)
    return wrapper


def _formed_by_torch(*_: Any) -> dist.ProcessGroup:
    raise RuntimeError("an adopted group was formed by torch")
