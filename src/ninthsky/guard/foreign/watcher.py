"""One rank of a foreign script, watched from within: its record in shared memory, its steps, its line to the guard.

The rank never waits for the guard. Without it, or after its death, the rank goes on, and keeps knocking once a second.
"""

from __future__ import annotations

import atexit
import math
import os
import select
import socket
import struct
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import torch

from ninthsky.guard.foreign.adopted import AdoptedProbe
from ninthsky.guard.foreign.messages import LONGEST_TEXT, SOCKET, Adopt, Began, FromForeign, NotFinite, Raised
from ninthsky.guard.probe.group import Times
from ninthsky.guard.probe.record import GROUPS, Phase, RecordWriter

BEAT_SECONDS = 0.1
KNOCK_SECONDS = 1.0
HOLD_SECONDS = 10.0  # at most, with a bad gradient
SEND_SECONDS = 0.5  # at most, for a message; what does not go out by then is lost
_length = struct.Struct("<I")


class Watcher:
    """Made when the script forms its first group, or steps its optimizer alone. Raises OSError where the guard's folder is not
    there."""

    def __init__(self, rank: int, world: int) -> None:
        self.pid = os.getpid()
        folder = Path(os.environ["N9_RANKS"])
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: does `n9 guard run` live?")
        self.record = ForeignRecord(folder / f"{self.pid}.record")
        self.probe = AdoptedProbe(self.record)
        self._adopt = Adopt(
            self.pid,
            rank,
            world,
            int(os.environ.get("LOCAL_RANK", -1)),
            os.environ.get("N9_ATTEMPT", ""),
            str(torch.__version__),
        )
        self._line = _Line(folder / SOCKET)
        self._marker: weakref.ref[Any] | None = None  # the optimizer whose steps are counted
        self._number = 0  # of the step under way
        self._begun = False
        self._flags: torch.Tensor | None = None  # of the step before, on their device
        self._flags_step = 0
        self._sent_before = False
        self._data = self._data_cpu = 0.0
        self._began = self._began_cpu = 0.0
        self._spent = Times(0.0, 0.0)
        self.record.update(rank=rank, step=-1, phase=Phase.JOIN)
        self._line.send(self._adopt)
        threading.Thread(target=self._beat, name="n9-heart", daemon=True).start()
        sys.excepthook = self._raised(sys.excepthook)
        atexit.register(self._leave)
        self.probe.watch()
        self._mark()

    def joined(self, rank: int, world: int) -> None:
        """The script formed its first group anew."""
        self._adopt = msgspec.structs.replace(self._adopt, rank=rank, world=world)
        self.record.clear_groups()
        self.record.update(rank=rank, phase=Phase.JOIN)
        self._line.send(self._adopt)

    # -- steps, in the main thread ------------------------------------------------------------------------------------

    def before_step(self, optimizer: Any, scaled: bool) -> None:
        """Gradients are whole; the optimizer begins. `scaled`: the script scales its loss, so overflow is expected."""
        if not self._is_marker(optimizer):
            return
        done = _steps_done(optimizer, ask_device=not self._begun)
        self._number = self._number if done is None else done
        self.probe.settle()
        self._look_at_gradients(optimizer, scaled)
        self.record.update(phase=Phase.UPDATE)

    def after_step(self, optimizer: Any) -> None:
        """A step is done. Of several optimizers, one counts."""
        if not self._is_marker(optimizer):
            return
        times, wall, cpu = self.probe.times(), self.probe.clock(), time.thread_time()
        inside, inside_cpu = times.wall - self._spent.wall, times.cpu - self._spent.cpu
        self.record.update(
            step=self._number,
            phase=Phase.LOCAL,
            local_wall=1e3 * (wall - self._began - inside - self._data),
            local_cpu=1e3 * (cpu - self._began_cpu - inside_cpu - self._data_cpu),
            communication=1e3 * inside,
            data=1e3 * self._data,
        )
        self.probe.poll()
        if not self._begun and any(float(group["lr"]) for group in optimizer.param_groups):
            # With a rate of nought torch only makes the optimizer's state, to have something to load a checkpoint into.
            self._begun = True
            self._adopt = msgspec.structs.replace(self._adopt, began=self._number)
            self._line.send(Began(self._number))
        self._number += 1
        self.probe.watch()
        self._mark()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around the wait for a batch."""
        wall, cpu = self.probe.clock(), time.thread_time()
        self.record.update(phase=Phase.DATA)
        try:
            yield
        finally:
            self._data += self.probe.clock() - wall
            self._data_cpu += time.thread_time() - cpu
            self.record.update(phase=Phase.LOCAL)

    def _mark(self) -> None:
        self._began, self._began_cpu, self._spent = self.probe.clock(), time.thread_time(), self.probe.times()
        self._data = self._data_cpu = 0.0

    def _is_marker(self, optimizer: Any) -> bool:
        marked = self._marker() if self._marker is not None else None
        if marked is None:
            self._marker, marked = weakref.ref(optimizer), optimizer
        return marked is optimizer

    def _look_at_gradients(self, optimizer: Any, scaled: bool) -> None:
        """Flags stay on the device; those of the step before are read now, when they have long been there."""
        flags, before = self.probe.outgoing(), True
        if scaled:
            return
        if flags is None:
            flags, before = _norms(optimizer), False
        step = self._number
        if flags is not None and flags.device.type == "cpu":
            self._judge(flags, step, before)
            return
        if self._flags is not None:
            self._judge(self._flags, self._flags_step, self._sent_before)
        self._flags, self._flags_step, self._sent_before = flags, step, before

    def _judge(self, flags: torch.Tensor, step: int, before: bool) -> None:
        if not math.isfinite(float(flags.sum())):
            self._line.send(NotFinite(step, before))
            self._hold()

    def _hold(self) -> None:
        """Where the command may be started again, this rank makes no step before that is decided: a script that trains on would
        soon write a checkpoint of what is spoilt."""
        end = time.monotonic() + HOLD_SECONDS
        while os.environ.get("N9_HOLD") and time.monotonic() < end and self._line.alive():
            time.sleep(BEAT_SECONDS)

    # -- beside the script --------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        knock_at = time.monotonic() + KNOCK_SECONDS
        while True:
            self.record.heartbeat()
            now = time.monotonic()
            if now >= knock_at:
                knock_at = now + KNOCK_SECONDS
                if not self._line.alive():
                    self._line.send(self._adopt)
            time.sleep(BEAT_SECONDS)

    def _leave(self) -> None:
        if os.getpid() == self.pid:
            self.record.update(phase=Phase.DONE)

    def _raised(self, before: Any) -> Any:
        def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            if os.getpid() == self.pid and not issubclass(kind, KeyboardInterrupt):
                frames = traceback.extract_tb(trace)
                where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
                text = "".join(traceback.format_exception(kind, error, trace))[-LONGEST_TEXT:]
                collective = bool(self.probe.failure) and self.probe.failure in str(error)
                self._line.send(Raised(f"{kind.__name__}: {str(error)[:500]}", where, collective, text))
            before(kind, error, trace)

        return hook


class ForeignRecord(RecordWriter):
    """Groups beyond those that fit are not counted: a foreign script makes as many as it likes, and numbers of two
    groups in one place would look like different collectives."""

    def enqueue(self, group: int, op: int) -> int:
        """0 for a call that is not counted."""
        if group not in self._groups and len(self._groups) == GROUPS:
            return 0
        return super().enqueue(group, op)

    def complete(self, group: int, number: int) -> None:
        if number:
            super().complete(group, number)


class _Line:
    """To the guard's socket; what cannot be sent is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._socket: socket.socket | None = None
        self._sending = threading.Lock()

    def send(self, message: FromForeign) -> None:
        body = msgspec.msgpack.encode(message)
        with self._sending:
            try:
                if self._socket is None:
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    self._socket.settimeout(SEND_SECONDS)
                    self._socket.connect(self._path)
                self._socket.sendall(_length.pack(len(body)) + body)
            except OSError:  # the guard is not there, or not any more: the script goes on without it
                if self._socket is not None:
                    self._socket.close()
                self._socket = None

    def alive(self) -> bool:
        """Whether the other end is there; it sends nothing, so what can be read is its end."""
        with self._sending:
            if self._socket is None:
                return False
            if not select.select([self._socket], [], [], 0)[0]:
                return True
            self._socket.close()
            self._socket = None
            return False


def _norms(optimizer: Any) -> torch.Tensor | None:
    """One number for each of an optimizer's gradients, not finite where something in it is not."""
    gradients = [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None and not p.grad.is_sparse
    ]
    local = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in gradients]
    local = [
        gradient.detach() for gradient in local if gradient.numel() and gradient.is_floating_point() and not gradient.is_sparse
    ]
    if not local:
        return None
    return torch.stack([norm.float().to(local[0].device) for norm in torch._foreach_norm(local)])


def _steps_done(optimizer: Any, *, ask_device: bool) -> int | None:
    """Steps that the optimizer has done, those before its checkpoint too: Adam and its kin count them. None where it does not,
    or where the count lies on a device and that must not be waited for."""
    for state in optimizer.state.values():
        step = state.get("step") if isinstance(state, dict) else None
        if isinstance(step, torch.Tensor):
            return int(step) if ask_device or step.device.type == "cpu" else None
        return int(step) if isinstance(step, (int, float)) else None
    return None
