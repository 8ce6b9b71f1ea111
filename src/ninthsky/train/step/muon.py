"""Muon over what one rank holds: each matrix moves by its momentum with all singular values brought near 1.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon): Nesterov momentum, then five Newton-Schulz steps. Moonlight (Liu et
al. 2025, arXiv 2502.16982, equation 4): the update is scaled by 0.2 sqrt(larger side), so that it is as large as AdamW's and
takes the same rate and decay. An expert is a matrix of its own, and so are the two halves of a `gate_up`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ninthsky.train.cut.piece import Piece

COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # of Jordan's quintic, tuned there for speed, not for exactness: values end in .7 to 1.2
STEPS = 5
SIZE = 0.2  # root mean square of an update, as AdamW's is in practice (Moonlight, 2.2)
ELSEWHERE = frozenset({"embedding", "head", "router"})  # parts of a name whose matrices AdamW moves, as both sources have it


def takes(piece: Piece) -> bool:
    """Whether Muon moves this weight: a matrix, or a stack of experts' matrices, inside the model."""
    return len(piece.shape) in (2, 3) and ELSEWHERE.isdisjoint(piece.name.split("."))


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, m, n] -> nearly U V^T of each one's singular value decomposition, in fp32; zeros stay zeros."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).to(dtype)
    for _ in range(STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Box(NamedTuple):
    """The part of a matrix that a rank holds."""

    row: int
    rows: int
    column: int
    columns: int

    @classmethod
    def of_slices(cls, spans: Sequence[slice]) -> Box:
        """From where a weight's last two dimensions are cut."""
        rows, columns = spans
        return cls(rows.start, rows.stop - rows.start, columns.start, columns.stop - columns.start)

    def of(self, matrix: Tensor) -> Tensor:
        """That part of a whole [m, n]."""
        return matrix[self.row : self.row + self.rows, self.column : self.column + self.columns]


@dataclass(frozen=True)
class Unit:
    """One matrix: number `expert` of the stack that `piece` is here (0 where it is no stack), and its owner's place."""

    piece: int
    expert: int
    owner: int


class Team:
    """Ranks among whom the same matrices lie, whole or in parts. Each matrix is orthogonalised by one of them.

    Parts travel to the owner and updates back in one exchange each way: twice what a rank holds, however many ranks there are.
    """

    def __init__(self, pieces: Sequence[Piece], group: dist.ProcessGroup | None) -> None:
        self.pieces, self.group = pieces, group
        self.size = group.size() if group is not None else 1
        self.place = group.rank() if group is not None else 0
        members = dist.get_process_group_ranks(group) if group is not None else [None]
        self.boxes = [[Box.of_slices(piece.box(rank)[-2:]) for piece in pieces] for rank in members]  # [member][piece]
        work = [0.0] * self.size
        self.units: list[Unit] = []
        sizes = sorted(((piece.shape[-2] * piece.shape[-1], index) for index, piece in enumerate(pieces)), reverse=True)
        for _, index in sizes:  # the largest first, each to who has least to do so far
            short, long = sorted(pieces[index].shape[-2:])
            for expert in range(_stacked(pieces[index])):
                owner = min(range(self.size), key=work.__getitem__)
                work[owner] += short * short * (2.0 * long + short)
                self.units.append(Unit(index, expert, owner))

    def _sends(self, member: int, unit: Unit) -> bool:
        """Whether `member` is the one that gives its part to the owner: the owner itself first, then the first of equals."""
        box = self.boxes[member][unit.piece]
        if self.boxes[unit.owner][unit.piece] == box:
            return member == unit.owner
        return all(self.boxes[other][unit.piece] != box for other in range(member))

    def updates(self, momenta: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """What each piece here moves by, from the parts of all pieces' momenta (collective over the team)."""
        stacks = [momentum if momentum.dim() == 3 else momentum[None] for momentum in momenta]
        mine = [unit for unit in self.units if unit.owner == self.place]
        whole = self._to_owners(stacks, mine)
        moved = _orthogonal_all(whole, [self.pieces[unit.piece].name for unit in mine], dtype)
        return self._to_holders(stacks, mine, moved)

    def _to_owners(self, stacks: list[Tensor], mine: list[Unit]) -> list[Tensor]:
        if self.group is None:
            return [stacks[unit.piece][unit.expert] for unit in mine]
        sent = [
            [
                stacks[unit.piece][unit.expert].flatten()
                for unit in self.units
                if unit.owner == to and self._sends(self.place, unit)
            ]
            for to in range(self.size)
        ]
        arriving = [[unit for unit in mine if self._sends(member, unit)] for member in range(self.size)]
        sizes = [
            [self.boxes[m][u.piece].rows * self.boxes[m][u.piece].columns for u in units] for m, units in enumerate(arriving)
        ]
        parts = self._exchange(sent, sizes, stacks[0])
        whole = [stacks[0].new_zeros(self.pieces[unit.piece].shape[-2:]) for unit in mine]
        at = {unit: index for index, unit in enumerate(mine)}
        for member, units in enumerate(arriving):
            for unit, part in zip(units, parts[member], strict=True):
                place = self.boxes[member][unit.piece].of(whole[at[unit]])
                place.copy_(part.view(place.shape))
        return whole

    def _to_holders(self, stacks: list[Tensor], mine: list[Unit], moved: list[Tensor]) -> list[Tensor]:
        answers = [torch.empty_like(stack) for stack in stacks]
        if self.group is None:
            for unit, update in zip(mine, moved, strict=True):
                answers[unit.piece][unit.expert] = update
        else:
            sent = [
                [self.boxes[to][unit.piece].of(update).flatten() for unit, update in zip(mine, moved, strict=True)]
                for to in range(self.size)
            ]
            arriving = [[unit for unit in self.units if unit.owner == member] for member in range(self.size)]
            sizes = [[stacks[unit.piece][unit.expert].numel() for unit in units] for units in arriving]
            for units, parts in zip(arriving, self._exchange(sent, sizes, stacks[0]), strict=True):
                for unit, part in zip(units, parts, strict=True):
                    answers[unit.piece][unit.expert] = part.view(answers[unit.piece].shape[1:])
        return answers

    def _exchange(self, sent: list[list[Tensor]], sizes: list[list[int]], like: Tensor) -> list[list[Tensor]]:
        """Flat parts for each member -> flat parts from each, of the given sizes."""
        out = torch.cat([part for parts in sent for part in parts]) if any(sent) else like.new_empty(0)
        arrived = like.new_empty(sum(map(sum, sizes)))
        dist.all_to_all_single(
            arrived, out, list(map(sum, sizes)), [sum(part.numel() for part in parts) for parts in sent], group=self.group
        )
        members = arrived.split(list(map(sum, sizes)))
        return [list(member.split(parts)) for member, parts in zip(members, sizes, strict=True)]


def teams(pieces: Sequence[Piece]) -> list[Team]:
    """Pieces by the ranks they have to be put together with: all that repeat them, or hold other parts of the same matrices."""
    found: dict[Any, tuple[dist.ProcessGroup | None, list[Piece]]] = {}
    for piece in pieces:
        group = _group(piece)
        found.setdefault(None if group is None else group.group_name, (group, []))[1].append(piece)
    return [Team(members, group) for group, members in found.values()]


def _group(piece: Piece) -> dist.ProcessGroup | None:
    # A stack that is cut between its matrices is no matter: those are other matrices.
    within = [at for at, place in enumerate(piece.placements) if not (len(piece.shape) == 3 and place.is_shard(0))]
    return piece.group(within) if within else None


def _stacked(piece: Piece) -> int:
    """How many matrices of the piece lie here, whole or in part."""
    stack, *_ = piece.box()
    return stack.stop - stack.start if len(piece.shape) == 3 else 1


def _orthogonal_all(whole: list[Tensor], names: list[str], dtype: torch.dtype) -> list[Tensor]:
    """Scaled updates of matrices, those of equal shape in one product."""
    halves: list[tuple[int, Tensor]] = []
    for index, (matrix, name) in enumerate(zip(whole, names, strict=True)):
        if name.endswith(".gate_up"):  # of an expert, [in, out]; elsewhere the halves are a stack of two: model/experts.py
            halves += [(index, half) for half in matrix.chunk(2, 1)]
        else:
            halves.append((index, matrix))
    by_shape: dict[torch.Size, list[int]] = {}
    for number, (_, matrix) in enumerate(halves):
        by_shape.setdefault(matrix.shape, []).append(number)
    moved: dict[int, Tensor] = {}
    for shape, numbers in by_shape.items():
        stack = orthogonal(torch.stack([halves[number][1] for number in numbers]), dtype) * (SIZE * max(shape) ** 0.5)
        moved |= dict(zip(numbers, stack, strict=True))
    answers: list[list[Tensor]] = [[] for _ in whole]
    for number, (index, _) in enumerate(halves):
        answers[index].append(moved[number])
    return [torch.cat(parts, 1) for parts in answers]


class Muon:
    """Momentum of the pieces that Muon moves, and their step. `momentum` is 0.95 in both sources.

    Pieces without a gradient in a step stay as they are where no other rank holds a part of them; else theirs counts as zero.
    """

    def __init__(self, pieces: Sequence[Piece], momentum: float, dtype: torch.dtype) -> None:
        self.momentum, self.dtype = momentum, dtype
        self.teams = teams(pieces)
        self.moments = {piece.name: torch.zeros_like(piece.local, requires_grad=False) for piece in pieces}

    @torch.no_grad()
    def step(self, lr: float, weight_decay: float, scale: float) -> None:
        """One step with gradients times `scale` (collective over each team)."""
        for team in self.teams:
            moved = [p for p in team.pieces if team.group is not None or p.gradient() is not None]
            if not moved:
                continue
            if len(moved) < len(team.pieces):
                team = Team(moved, None)
            gradients = []
            for piece in moved:
                gradient = piece.gradient()
                gradients.append(torch.zeros_like(piece.local) if gradient is None else gradient * scale)
            moments = [self.moments[piece.name] for piece in moved]
            torch._foreach_mul_(moments, self.momentum)
            torch._foreach_add_(moments, gradients)
            torch._foreach_add_(gradients, moments, alpha=self.momentum)  # Nesterov's: where the momentum will be
            locals_ = [piece.local for piece in moved]
            updates = [u.view(w.shape) for u, w in zip(team.updates(gradients, self.dtype), locals_, strict=True)]
            torch._foreach_mul_(locals_, 1 - lr * weight_decay)
            torch._foreach_add_(locals_, updates, alpha=-lr)
