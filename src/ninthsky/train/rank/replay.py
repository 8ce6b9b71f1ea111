"""Scheduled replay: every K steps each block of ranks does another block's work again, and the gradients must agree to the bit.

A block is the smallest set of ranks that needs nobody else for a forward and a backward beside weights: those that share a
sequence (cp x tp) and those that share experts (ep), through all pipeline stages. Two blocks with the same weights and the same
samples meet every number in the same order, so that each rank's own gradient, before the reduce, is that of the rank with the
same place in the other block. (Within a block samples cannot change hands: experts would meet their rows in another order.)

Where two ranks disagree, all ranks do both passes again under a trace, which finds the operation that gave the two different
results for the same operands; every rank then does this one operation by itself, and the majority says who is wrong.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from ninthsky.train.cut.collectives import all_gather
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.cut.parallel import Own
from ninthsky.train.rank.trace import Trace, Tracing, carry
from ninthsky.train.state.digest import digest, joined
from ninthsky.train.step.trainer import Trainer


@dataclass(frozen=True)
class Findings:
    """What a disagreement came to. `ranks`: who is wrong. Where that cannot be told it is one of `suspects`; where there are
    none either, cards do not repeat themselves and nothing can be compared."""

    ranks: tuple[int, ...]
    suspects: tuple[int, ...]
    figures: tuple[str, ...]


class Replay:
    """Of one rank: steps K - 1, 2 K - 1 and so on, and the last of all, where there are two blocks at least."""

    def __init__(self, every: int, steps: int) -> None:
        self.every, self.steps = every, steps
        self.mesh, self.rank = Mesh(), 0
        self.shifts: list[int] = []
        self._pass: list[int] | None = None  # digests of the pass under way
        self._device = torch.device("cpu")

    def begin(self, trainer: Trainer, rank: int, hosts: Sequence[str]) -> None:
        """A new generation."""
        self.mesh, self.rank, self._device = trainer.mesh or Mesh(), rank, trainer.device
        self.shifts = shifts(self.mesh, hosts)
        trainer.own_gradients.append(self._see)

    def due(self, step: int) -> bool:
        return bool(self.every and self.shifts) and ((step + 1) % self.every == 0 or step == self.steps - 1)

    def shift(self, step: int) -> int:
        """By how many shares of the batch the data is moved on: another one each time, as far as there are others."""
        return self.shifts[step // self.every % len(self.shifts)]

    def share(self, shift: int) -> int:
        """Whose samples this rank takes."""
        return (self.mesh.data_rank(self.rank) + shift) % self.mesh.data_ranks

    def digest(self, trainer: Trainer, batch: Any, tracing: Tracing | None = None) -> int:
        """Forward and backward of `batch`, of which nothing but a digest of this rank's own gradients is kept (collective)."""
        value = self.listen(lambda: trainer.local_gradients(batch), tracing)
        trainer.drop_gradients()
        return value

    def listen(self, work: Callable[[], tuple[float, float]], tracing: Tracing | None = None) -> int:
        """Digest of the own gradients and the loss of a pass that `work` does."""
        self._pass = []
        with tracing or nullcontext():
            loss, _ = work()
        found, self._pass = self._pass, None
        return joined([*found, xxhash.xxh3_64_intdigest(struct.pack("<d", loss))])

    def _see(self, own: Sequence[Own]) -> None:
        if self._pass is not None:
            self._pass.extend(digest(one.gradient) for one in own)

    # -- who is wrong -------------------------------------------------------------------------------------------------

    def disagree(self, step: int, own: Sequence[float], again: Sequence[float]) -> list[tuple[int, int]]:
        """(rank, who did its work again) of all pairs whose digests differ; both by rank."""
        return disagreements(self.mesh, self.shift(step), own, again)

    def investigate(
        self,
        trainer: Trainer,
        step: int,
        read: Callable[[int], Any],
        pairs: Sequence[tuple[int, int]],
        own: Sequence[float],
        again: Sequence[float],
    ) -> Findings:
        """After a disagreement (collective). `read(share)` gives the samples of a share of this step's batch."""
        shift = self.shift(step)
        recipe, trainer.recipe = trainer.recipe, replace(trainer.recipe, compile=False)
        try:
            mine, theirs = Tracing(trainer.model), Tracing(trainer.model)
            second_own = self.digest(trainer, read(self.share(0)), mine)
            second_again = self.digest(trainer, read(self.share(shift)), theirs)
            received = self._exchange(theirs.trace, shift)
            found = mine.trace.differs(received)
            rows = self._gather([found, second_own, second_again])
            flagged = sorted((int(row[0]), rank) for rank, row in enumerate(rows) if row[0] >= 0)
            figures = [f"own gradients of rank {a} differ when rank {b} does its work" for a, b in pairs]
            if flagged:
                return self._vote(trainer, read, flagged[0], shift, mine.trace, received, figures)
            return self._unrepeated(trainer, read, step, pairs, own, again, rows, recipe.compile, figures)
        finally:
            trainer.recipe = recipe

    def _vote(
        self,
        trainer: Trainer,
        read: Callable[[int], Any],
        flagged: tuple[int, int],
        shift: int,
        trace: Trace,
        received: Tensor,
        figures: list[str],
    ) -> Findings:
        """Every rank does the operation that two disagree about."""
        number, owner = flagged
        here = self.rank == owner
        capturing = Tracing(trainer.model, number if here else -1)
        self.digest(trainer, read(self.share(0)), capturing)
        taken = capturing.captured
        if taken is not None:
            taken = replace(taken, text=f"{taken.text}, in {trace.places[number]}, number {number} of {len(trace.keys)}")
        operation = carry(taken, lambda tensor: self._send(tensor, owner))
        other = owner_of(self.mesh, owner, -shift)
        if operation is None:
            return Findings((), (owner, other), (*figures, "the operation that differs cannot be done by itself"))
        results = [trace.outs[number], trace.out_of(received, number)] if here else [0, 0]
        rows = self._gather([*_halves(operation.run(self._device)), *_halves(results[0]), *_halves(results[1])])
        votes = [(int(row[0]), int(row[1])) for row in rows]
        then = {owner: (int(rows[owner][2]), int(rows[owner][3])), other: (int(rows[owner][4]), int(rows[owner][5]))}
        right, count = Counter(votes).most_common(1)[0]
        figures.append(f"first operation that differs: {operation.text}")
        figures.append(f"done by itself on the same operands: {count} of {len(votes)} ranks agree")
        if 2 * count <= len(votes):
            return Findings((), (owner, other), tuple(figures))
        # By itself, now; and in its place among the others, a moment ago. The latter alone where the fault has passed.
        wrong = {rank for rank, vote in enumerate(votes) if vote != right} or {rank for rank in then if then[rank] != right}
        if not wrong or set(then) <= wrong:
            return Findings((), (owner, other), tuple(figures))
        figures.append(f"ranks with another result: {', '.join(map(str, sorted(wrong)))}")
        return Findings(tuple(sorted(wrong)), (owner, other), tuple(figures))

    def _unrepeated(
        self,
        trainer: Trainer,
        read: Callable[[int], Any],
        step: int,
        pairs: Sequence[tuple[int, int]],
        own: Sequence[float],
        again: Sequence[float],
        rows: list[list[float]],
        compiled: bool,
        figures: list[str],
    ) -> Findings:
        """No operation stands out: somebody was wrong once, or outside of any operation; a third block may tell."""
        suspects = tuple(sorted({rank for pair in pairs for rank in pair}))
        if not compiled:
            once = [rank for rank, row in enumerate(rows) if (row[1], row[2]) != (own[rank], again[rank])]
            if once and len(once) <= len(self._block(once[0])):
                figures.append(f"done again with the same samples, ranks {', '.join(map(str, once))} had another result")
                return Findings(tuple(once) if len(once) == 1 else (), tuple(once), tuple(figures))
            if once:
                figures.append(f"{len(once)} ranks do not repeat themselves: these kernels are not deterministic")
                return Findings((), (), tuple(figures))
        third = next((shift for shift in self.shifts if shift != self.shift(step)), None)
        if third is None:
            figures.append("there is no third block to ask")
            return Findings((), suspects, tuple(figures))
        thirds = [row[0] for row in self._gather([self.digest(trainer, read(self.share(third)))])]
        lonely: Counter[int] = Counter()
        for a, b in pairs:
            c = owner_of(self.mesh, a, -third)
            lonely[a] += thirds[c] == again[b] != own[a]
            lonely[b] += thirds[c] == own[a] != again[b]
        named = tuple(sorted(rank for rank, times in lonely.items() if times))
        figures.append(f"a third block agrees against ranks {', '.join(map(str, named)) or 'none'}")
        return Findings(named if len(named) == 1 else (), named or suspects, tuple(figures))

    def _block(self, rank: int) -> list[int]:
        return block(self.mesh, rank)

    # -- between ranks ------------------------------------------------------------------------------------------------

    def _exchange(self, trace: Trace, shift: int) -> Tensor:
        """The trace of whoever did this rank's work, for that of the work that this rank did."""
        whose, who = owner_of(self.mesh, self.rank, shift), owner_of(self.mesh, self.rank, -shift)
        mine = trace.tensor()
        sizes = [int(row[0]) for row in self._gather([len(mine)])]
        theirs = torch.empty(sizes[who], 2, dtype=torch.int64)
        sending = dist.isend(self._there(mine), whose)
        place = self._there(theirs)
        receiving = dist.irecv(place, who)
        for work in (sending, receiving):
            if work is not None:
                work.wait()
        return place.cpu()

    def _gather(self, values: Sequence[float]) -> list[list[float]]:
        own = self._there(torch.tensor(list(values), dtype=torch.float64))
        everyone = torch.empty(dist.get_world_size() * len(own), dtype=torch.float64, device=own.device)
        all_gather(everyone, own)
        rows: list[list[float]] = everyone.view(-1, len(own)).tolist()
        return rows

    def _send(self, tensor: Tensor, source: int) -> Tensor:
        there = self._there(tensor)
        dist.broadcast(there, src=source)
        return there.cpu()

    def _there(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)


def blocks(mesh: Mesh) -> tuple[int, int]:
    """(number of blocks, shares of the batch that each reads)."""
    shares = math.lcm(mesh.ep, mesh.sequence_parts) // mesh.sequence_parts
    return mesh.data_ranks // shares, shares


def block(mesh: Mesh, rank: int) -> list[int]:
    """The ranks of its block."""
    _, shares = blocks(mesh)
    return [other for other in range(mesh.ranks) if mesh.data_rank(other) // shares == mesh.data_rank(rank) // shares]


def owner_of(mesh: Mesh, rank: int, shift: int) -> int:
    """The rank at the same place of the block whose samples `rank` takes when they are moved on by `shift` shares."""
    stage, within = divmod(rank, mesh.stage_ranks)
    data, part = divmod(within, mesh.sequence_parts)
    return stage * mesh.stage_ranks + (data + shift) % mesh.data_ranks * mesh.sequence_parts + part


def shifts(mesh: Mesh, hosts: Sequence[str]) -> list[int]:
    """By how many shares work may be moved: those that bring it to other hosts for all ranks, else to other cards."""
    number, shares = blocks(mesh)
    every = [turn * shares for turn in range(1, number)]
    away = [shift for shift in every if all(hosts[rank] != hosts[owner_of(mesh, rank, shift)] for rank in range(len(hosts)))]
    return away or every


def disagreements(mesh: Mesh, shift: int, own: Sequence[float], again: Sequence[float]) -> list[tuple[int, int]]:
    """(rank, who did its work again) where their digests differ."""
    pairs = [(owner_of(mesh, other, shift), other) for other in range(mesh.ranks)]
    return sorted((rank, other) for rank, other in pairs if own[rank] != again[other])


def _halves(value: int) -> tuple[int, int]:
    """63 bits as two numbers that a double carries."""
    return value >> 32, value & 0xFFFFFFFF
