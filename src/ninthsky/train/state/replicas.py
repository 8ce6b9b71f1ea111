"""This rank's replicas: its state after every k-th step, held by the agent of another host until two newer ones are.

A step is committed when every rank's replica of it is held. With k = 1 no finished step is ever lost; with a larger k a fault
costs up to 2k - 1 steps, which are done again from the newest replica that all ranks have, to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ninthsky.guard.probe.line import Line
from ninthsky.guard.probe.messages import Assign, Brought, Damaged, Shard, ShardHeld, Wanted
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.cut.piece import Region
from ninthsky.train.state import shards
from ninthsky.train.state.recut import recut
from ninthsky.train.step.trainer import Trainer


class Carried(Protocol):
    """State beside the trainer's that the next step depends on: small, the same on every rank, made of plain values."""

    def dump(self) -> dict[str, Any]:
        """As msgpack and JSON can carry it."""

    def load(self, tree: dict[str, Any]) -> None:
        """Takes what `dump` gave."""


class Replicas:
    """One generation after another; `begin` starts each.

        replicas.before_gate(step)      # waits, where the next replica is due, until the one before is held
        replicas.held                   # newest step of this rank's state that another host holds: told in the gate
        replicas.after(step, trainer)   # writes and announces, where one is due

    A replica is on its way for up to k steps, and nobody waits for it meanwhile. There are never two on their way.
    """

    def __init__(self, line: Line, folder: Path, every: int, steps: int, carried: dict[str, Carried]) -> None:
        self._line, self._folder, self._every, self._steps, self._carried = line, folder, every, steps, carried
        self._assign: Assign | None = None
        self._began = -1
        self._written: list[int] = []  # steps, the newest two
        self._regions: dict[str, Region] = {}
        self.also: Callable[[int], bool] = lambda _: False  # other steps whose state is to be replicated
        self.held = -1
        self.cpu_seconds = 0.0  # of writing, this process

    def begin(self, assign: Assign, trainer: Trainer) -> None:
        """After the state was restored, from replica or disk: others have it too, or can read it."""
        self._assign, self._written, self.held = assign, [], trainer.step - 1
        self._began = trainer.step - 1
        self._regions = trainer.regions()

    def restore(self, assign: Assign, trainer: Trainer, before: Mesh | None = None) -> None:
        """The replica that the guard brought here, or, where the job had the mesh `before`, parts of those of its ranks.

        A damaged one is told to the agent: another copy or an older one is wanted. Raises ShardError then: this rank takes no
        part in the generation. Raises Interrupted where the generation ends meanwhile.
        """
        if before is not None:
            extra = recut(trainer, before, assign.rank, lambda rank: self._bring(assign, rank))
        else:
            try:
                tensors, extra = shards.read(self._folder, assign.rank, assign.resume_step)
                trainer.load_shard(tensors)
            except (shards.ShardError, ValueError) as error:
                raise self._damaged(assign, assign.rank, error) from error
        for name, part in self._carried.items():
            part.load(extra[name])

    def _bring(self, assign: Assign, rank: int) -> shards.ShardFile:
        """Another rank's shard; its file goes again at once."""
        self._line.send(Wanted(assign.generation, rank, assign.resume_step))
        self._line.wait_for(Brought, lambda message: (message.rank, message.step) == (rank, assign.resume_step))
        try:
            return shards.ShardFile(self._folder, rank, assign.resume_step)
        except shards.ShardError as error:
            raise self._damaged(assign, rank, error) from error
        finally:
            shards.shard_path(self._folder, rank, assign.resume_step).unlink(missing_ok=True)

    def _damaged(self, assign: Assign, rank: int, error: Exception) -> shards.ShardError:
        self._line.send(Damaged(assign.generation, rank, assign.resume_step, str(error)))
        return shards.ShardError(str(error))

    def due(self, step: int) -> bool:
        """Whether the state after `step` is replicated."""
        return (step + 1) % self._every == 0 or step == self._steps - 1 or self.also(step)

    @property
    def newest(self) -> int:
        """The newest step of whose state this rank's own replica lies here, or which the disk has."""
        if self._written:
            return self._written[-1]
        return self._began

    def here(self) -> bool:
        """Whether `reload` finds it."""
        assert self._assign is not None
        return bool(self._written) or shards.shard_path(self._folder, self._assign.rank, self.newest).exists()

    def reload(self, trainer: Trainer) -> None:
        """This rank's own state after step `newest`, which must be the one before the trainer's next. Raises ShardError."""
        assert self._assign is not None
        tensors, _ = shards.read(self._folder, self._assign.rank, self.newest)
        trainer.load_shard(tensors)

    def before_gate(self, step: int) -> None:
        """Raises Interrupted where the generation ends meanwhile."""
        self._hear(wait=self.due(step))

    def after(self, step: int, trainer: Trainer) -> None:
        """Writes this rank's state after `step` and announces it, where one is due."""
        if not self.due(step):
            return
        assert self._assign is not None
        rank, before = self._assign.rank, time.thread_time()
        extra = {name: part.dump() for name, part in self._carried.items()}
        written = shards.write(self._folder, rank, step, trainer.state_shard(), extra, self._regions, self._line.writing)
        self._line.send(Shard(self._assign.generation, rank, step, written.size, written.xxh3))
        self._written = [*self._written, step][-2:]
        shards.remove_before(self._folder, rank, self._written[0])
        self.cpu_seconds += time.thread_time() - before

    def finish(self) -> None:
        """Waits until the last step is held."""
        self._hear(wait=True)

    def _hear(self, wait: bool) -> None:
        newest = self._written[-1] if self._written else -1
        if newest <= self.held:
            return
        assert self._assign is not None
        rank = self._assign.rank

        def accept(message: ShardHeld) -> bool:
            return (message.rank, message.step) == (rank, newest)

        if (self._line.wait_for if wait else self._line.take)(ShardHeld, accept) is not None:
            self.held = newest
