"""What a rank asks of its own numbers in every step, and what all ranks make of the answers at the gate.

    range      its own gradients are, before the reduce, to the bit what its backward put down, and reach no farther than they
               did lately, or its peers' do too
    rest       its state is, to the bit, what its last update left; looked at as late as can be, before the next changes it
    replicas   ranks that hold the same part of the weights hold the same bits
    replay     every K steps its gradients are those that another block of ranks finds for the same samples (replay.py)

Each answer is a number or two beside the gate's, so that nothing of this costs a collective, but for a replay's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ninthsky.guard.probe.messages import Assign
from ninthsky.train.cut.mesh import Mesh
from ninthsky.train.rank.replay import Replay
from ninthsky.train.state.digest import Resting
from ninthsky.train.step.produced import Produced
from ninthsky.train.step.ranges import STEPS, Ranges
from ninthsky.train.step.trainer import Trainer

# Numbers at the gate: how many buffers of gradients changed at rest, excess and its weight, how many tensors of the state
# changed at rest and the first of them, digests of dense and of experts' state, of own and of redone work.
CHECKS = 9
# log2 of a rank's excess over its own history and over its peers' median: 64 times. Of honest ones 21 times was seen at `nano`
# (norms of short vectors); what a flipped bit adds is 2^16 at least, or less than that.
FAR = 6.0
Kind = Literal["range", "rest", "replicas", "replay"]


@dataclass(frozen=True)
class Found:
    """What is wrong, as all ranks know it. `ranks`: whose; `suspects` where it cannot be told which of them."""

    kind: Kind
    ranks: tuple[int, ...]
    suspects: tuple[int, ...] = ()
    figures: tuple[str, ...] = ()


class Verified:
    """The newest step whose outcome a replay has confirmed: what a job goes back to when a card turns out to compute wrongly.
    Travels with every replica, for a later generation's sake."""

    step = -1

    def dump(self) -> dict[str, Any]:
        return {"step": self.step}

    def load(self, tree: dict[str, Any]) -> None:
        self.step = int(tree["step"])


class Integrity:
    """Of one rank, for the life of its process; `begin` at each generation. In a step:

    integrity.replay(trainer, step, read)              # where one is due: another block's work
    integrity.work(trainer, batch, replayed)           # in place of trainer.local_gradients(batch)
    integrity.row()                                    # its numbers for the gate
    integrity.judge(trainer, step, rows, read)         # every rank comes to the same; None: all is well
    integrity.settled(step, applied, whole)            # the step is over: from here on the state rests
    """

    def __init__(self, replay_every: int, digest_parts: int, steps: int) -> None:
        self.verified = Verified()
        self.produced = Produced()
        self.ranges, self.resting, self.replays = Ranges(), Resting(digest_parts), Replay(replay_every, steps)
        self._mesh, self._rank = Mesh(), -1
        self._names: tuple[list[str], list[str]] = ([], [])
        self._state: dict[str, Tensor] = {}
        self._own = self._again = 0
        self._spared = -1  # the step that is applied without being asked

    def begin(self, assign: Assign, trainer: Trainer) -> None:
        """The state was restored, from replica or disk."""
        if assign.resume_step < 0:
            self.verified.step = trainer.step - 1
        if assign.rank != self._rank or assign.world != self._mesh.ranks:
            self.ranges.forget()
        self._mesh, self._rank, self._spared = trainer.mesh or Mesh(), assign.rank, -1
        self.produced = Produced()
        if trainer.pipeline is None or not trainer.pipeline.schedule.split:  # there gradients are put down in two halves
            trainer.own_gradients.append(self.produced.see)
        trainer.own_gradients.append(self.ranges.see)
        self.replays.begin(trainer, assign.rank, assign.hosts)
        expert = {piece.name for piece in trainer.pieces if any("ep" in axes for axes in piece.axes)}
        self._state = {name: tensor for name, tensor in trainer.state_shard().items() if name != "step"}
        self._names = (
            [name for name in self._state if name.partition("/")[2] not in expert],
            [name for name in self._state if name.partition("/")[2] in expert],
        )
        self.resting.take(self._state, whole=True)

    def leave(self) -> None:
        """The generation is over."""
        self._state = {}

    @property
    def state(self) -> dict[str, Tensor]:
        """All that this rank holds between two steps."""
        return self._state

    # -- a step -------------------------------------------------------------------------------------------------------

    def replay(self, trainer: Trainer, step: int, read: Callable[[int], Any]) -> None:
        """Another block's samples, of which only a digest stays (collective)."""
        self._again = self.replays.digest(trainer, read(self.replays.share(self.replays.shift(step))))

    def due(self, step: int) -> bool:
        """Whether a replay belongs to this step."""
        return self.replays.due(step) and step != self._spared

    def work(self, trainer: Trainer, batch: Any, replayed: bool) -> None:
        """This rank's own forward and backward (collective)."""
        self.ranges.begin()
        self.produced.begin()
        if replayed:
            self._own = self.replays.listen(lambda: trainer.local_gradients(batch))
        else:
            self._own = self._again = 0
            trainer.local_gradients(batch)

    def row(self) -> list[float]:
        """CHECKS numbers."""
        excess, differing = self.ranges.excess(), self.resting.differing(self._state)
        first = list(self._state).index(differing[0]) if differing else -1
        digests = [float(self.resting.joined(names)) for names in self._names]
        changed = float(self.produced.changed())
        return [
            changed,
            excess.log2,
            float(excess.number),
            len(differing),
            first,
            *digests,
            float(self._own),
            float(self._again),
        ]

    def judge(self, trainer: Trainer, step: int, rows: Sequence[Sequence[float]], read: Callable[[int], Any]) -> Found | None:
        """The worst that the rows show; collective where ranks' work disagrees. `read(share)`: samples of this step."""
        buffers, excess, weight, changed, first, dense, expert, own, again = zip(*rows, strict=True)
        damaged = tuple(rank for rank, count in enumerate(changed) if count)
        if damaged:
            told = [self._told_damage(rank, int(changed[rank]), int(first[rank])) for rank in damaged[:4]]
            return Found("rest", damaged, figures=tuple(told))
        if step == self._spared:
            return None
        groups = replica_groups(self._mesh)
        for digests, alike in zip((dense, expert), groups, strict=True):
            if found := outvoted(digests, alike):
                return found
        if any(own) and (pairs := self.replays.disagree(step, own, again)):
            trainer.drop_gradients()
            findings = self.replays.investigate(trainer, step, read, pairs, own, again)
            if not (findings.ranks or findings.suspects):
                self.replays.every = 0  # the same card does not repeat itself: nothing can be compared
            return Found("replay", findings.ranks, findings.suspects, findings.figures)
        moved, far = [rank for rank, count in enumerate(buffers) if count], outstanding(excess)
        if moved or far:
            told = [f"own gradients of rank {rank} are not what its backward put down" for rank in moved[:4]]
            told += [self._told_range(rank, excess[rank], int(weight[rank])) for rank in far[:4]]
            return Found("range", tuple(sorted({*moved, *far})), figures=tuple(told))
        return None

    def spare(self, step: int) -> None:
        """The guard says: go on with it as it is."""
        self._spared = step

    def settled(self, step: int, applied: bool, whole: bool) -> None:
        """From here on the state rests. `whole`: all of it is digested, since a replica is written from it."""
        if applied:
            self.ranges.keep()
            if self._own and step != self._spared:
                self.verified.step = step
        self.resting.take(self._state, step, whole)

    def _told_damage(self, rank: int, count: int, first: int) -> str:
        more = f" and {count - 1} more" if count > 1 else ""
        return f"changed since the last update: {self._name(rank, first, list(self._state))}{more}, of rank {rank}"

    def _told_range(self, rank: int, log2: float, weight: int) -> str:
        name = self._name(rank, weight, self.ranges.weights)
        return f"largest own gradient of {name} on rank {rank} is {2**log2:.3g} times what it was at most in {STEPS} steps"

    def _name(self, rank: int, number: int, names: Sequence[str]) -> str:
        """Of what another rank has told the number of: ranks of one pipeline stage hold parts of the same weights."""
        alike = rank // self._mesh.stage_ranks == self._rank // self._mesh.stage_ranks and number < len(names)
        return names[number] if alike else f"tensor {number}"


def outstanding(excess: Sequence[float]) -> tuple[int, ...]:
    """Ranks whose gradients reach much farther than before, and farther than their peers' do; a quarter of all at most."""
    if len(excess) < 2:
        return ()
    found = []
    for rank, value in enumerate(excess):
        others = sorted(other for at, other in enumerate(excess) if at != rank)
        if value > FAR and value - others[len(others) // 2] > FAR:
            found.append(rank)
    return tuple(found) if len(found) <= max(1, len(excess) // 4) else ()


def outvoted(digests: Sequence[float], groups: Sequence[Sequence[int]]) -> Found | None:
    """Ranks whose digest is not that of most of their group; of two that differ nobody can say which is right."""
    named: list[int] = []
    suspects: list[int] = []
    figures: list[str] = []
    for group in groups:
        votes = Counter(digests[rank] for rank in group)
        if len(votes) < 2:
            continue
        value, count = votes.most_common(1)[0]
        figures.append(
            f"ranks {', '.join(map(str, group))} hold the same weights; {count} of {len(group)} agree on their digest"
        )
        if 2 * count > len(group):
            named += [rank for rank in group if digests[rank] != value]
        else:
            suspects += group
    if not figures:
        return None
    return Found("replicas", () if suspects else tuple(sorted(named)), tuple(sorted({*named, *suspects})), tuple(figures[:4]))


def replica_groups(mesh: Mesh) -> tuple[list[list[int]], list[list[int]]]:
    """Ranks that hold the same part of the dense weights, and of the experts'; only groups of several."""
    _, sharded, ep = mesh.expert_cut()
    found = []
    for period in (mesh.dp_shard * mesh.sequence_parts, sharded * ep if mesh.ep > 1 else mesh.dp_shard * mesh.sequence_parts):
        groups: dict[tuple[int, int], list[int]] = {}
        for rank in range(mesh.ranks):
            stage, within = divmod(rank, mesh.stage_ranks)
            groups.setdefault((stage, within % period), []).append(rank)
        found.append([group for group in groups.values() if len(group) > 1])
    return found[0], found[1]
