"""Pipeline schedules: which rank works on which micro-batch of which part of the model, in which order, and who waits.

A part is a run of layers; part n lies on rank n modulo the ranks, so that a rank holds one part or several. Time is counted in
forwards of one part. A backward takes as long for what leaves towards the part before (B) as for the weights (W); a schedule
that does not tell them apart does both in B.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ninthsky.errors import UserError

Name = Literal["1f1b", "interleaved", "zero-bubble"]
Kind = Literal["F", "B", "W"]


@dataclass(frozen=True)
class Work:
    """A computation on one rank."""

    kind: Kind
    part: int
    micro: int
    begin: int
    end: int


@dataclass(frozen=True)
class Message:
    """Hidden states (F) of `micro` that `part` sends to the next, or their gradient (B) that it sends to the one before."""

    kind: Kind
    part: int
    micro: int
    time: int
    source: int  # pipeline ranks
    target: int


@dataclass(frozen=True)
class Schedule:
    """What every rank does, in order.

    - `1f1b` (Narayanan et al. 2019, arXiv 1806.03377): forward and backward in turn after p - 1 - rank forwards, so that rank
      0 holds p activations whatever the number of micro-batches. Idle: (p - 1) / (m + p - 1).
    - `interleaved` (Narayanan et al. 2021, arXiv 2104.04473): the same with v parts on each rank. Idle:
      (p - 1) / (v m + p - 1).
    - `zero-bubble` (Qi et al. 2023, arXiv 2401.10241, ZB-H1): gradients of weights wait, rank r's by r backwards, and fill
      the gaps. Idle: (p - 1) / (3 v m + p - 1).
    """

    name: Name
    ranks: int
    parts: int  # of one rank
    micros: int
    work: tuple[tuple[Work, ...], ...]  # of each rank

    @classmethod
    def of(cls, name: Name, ranks: int, parts: int, micros: int) -> Schedule:
        """Raises UserError N9-CFG-013 for numbers of which there is no such schedule."""
        if name == "1f1b" and parts > 1:
            what = f"schedule = 1f1b has one part per stage, not {parts}"
            raise UserError("N9-CFG-013", what, "[mesh]", 'schedule = "interleaved" or "zero-bubble" takes several')
        if parts > 1 and micros % ranks:
            what = f"with parts = {parts}, {micros} micro-batches do not come out even on pp = {ranks} stages"
            raise UserError("N9-CFG-013", what, "[train]", f"set micro_batches to a multiple of {ranks}")
        split = name == "zero-bubble"
        orders = [_order(split, ranks, parts, micros, rank) for rank in range(ranks)]
        return cls(name, ranks, parts, micros, _timed(orders, ranks * parts, 1 if split else 2))

    @property
    def split(self) -> bool:
        """Whether gradients of weights are work of their own."""
        return self.name == "zero-bubble"

    def rank_of(self, part: int) -> int:
        """The pipeline rank that holds `part`."""
        return part % self.ranks

    @property
    def idle(self) -> float:
        """Share of the ranks' time in which they wait, if messages cost nothing and all parts take the same time."""
        whole = max(work[-1].end for work in self.work)
        busy = sum(one.end - one.begin for work in self.work for one in work)
        return 1.0 - busy / (whole * self.ranks)

    def held(self, rank: int) -> int:
        """The most activations, each of one part and one micro-batch, that `rank` holds at a time."""
        last = "W" if self.split else "B"
        now = most = 0
        for one in self.work[rank]:
            now += (one.kind == "F") - (one.kind == last)
            most = max(most, now)
        return most

    def program(self, rank: int) -> list[Work | Message]:
        """What `rank` computes, sends, and begins to receive, in order.

        A message stands where it is sent, on both sides: the two ranks of a pair list their messages in the same order,
        which is all that a back end without tags asks of them.
        """
        messages = [message for message in self._messages() if rank in (message.source, message.target)]
        events: list[tuple[tuple[int, ...], Work | Message]] = [((one.begin, 1), one) for one in self.work[rank]]
        events += [((one.time, 0, one.source, one.target, one.part, one.micro), one) for one in messages]
        return [event for _, event in sorted(events, key=lambda event: event[0])]

    def _messages(self) -> Iterator[Message]:
        for rank, work in enumerate(self.work):
            for one in work:
                to = {"F": one.part + 1, "B": one.part - 1}.get(one.kind, -1)
                if 0 <= to < self.ranks * self.parts and self.rank_of(to) != rank:
                    yield Message(one.kind, one.part, one.micro, one.end, rank, self.rank_of(to))


def _order(split: bool, ranks: int, parts: int, micros: int, rank: int) -> list[tuple[Kind, int, int]]:
    """(kind, part, micro) of one rank. Micro-batches go in groups of `ranks` through each of its parts in turn."""
    own = [rank + ranks * number for number in range(parts)]
    groups = [range(first, min(first + ranks, micros)) for first in range(0, micros, ranks)]
    forward = [(part, micro) for group in groups for part in own for micro in group]
    backward = [(part, micro) for group in groups for part in reversed(own) for micro in group]
    ahead = min(ranks - 1 - rank if parts == 1 else 2 * (ranks - 1 - rank) + (parts - 1) * ranks, len(forward))
    order: list[tuple[Kind, int, int]] = [("F", *one) for one in forward[:ahead]]
    for number, one in enumerate(backward):
        order += [("F", *other) for other in forward[ahead + number : ahead + number + 1]]
        order.append(("B", *one))
        if split and number >= rank:
            order.append(("W", *backward[number - rank]))
    return order + [("W", *one) for one in backward[max(len(backward) - rank, 0) :] if split]


def _timed(orders: list[list[tuple[Kind, int, int]]], parts: int, backward: int) -> tuple[tuple[Work, ...], ...]:
    """When each rank does what, if each takes its next work as soon as what it needs is there."""
    done: list[list[Work]] = [[] for _ in orders]
    ends: dict[tuple[Kind, int, int], int] = {}
    moving = True
    while moving:
        moving = False
        for order, work in zip(orders, done, strict=True):
            for kind, part, micro in order[len(work) :]:
                needs: tuple[Kind, int, int] | None = ("F", part - 1, micro) if part else None
                if kind == "B":
                    needs = ("B", part + 1, micro) if part < parts - 1 else ("F", part, micro)
                elif kind == "W":
                    needs = ("B", part, micro)
                if needs is not None and needs not in ends:
                    break
                begin = max(ends[needs] if needs else 0, work[-1].end if work else 0)
                work.append(Work(kind, part, micro, begin, begin + (backward if kind == "B" else 1)))
                ends[kind, part, micro] = work[-1].end
                moving = True
    assert all(len(work) == len(order) for order, work in zip(orders, done, strict=True)), "ranks wait for each other"
    return tuple(map(tuple, done))
