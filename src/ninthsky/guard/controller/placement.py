"""Where each rank goes in a new generation, and where its state comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from ninthsky.guard.controller.worlds import Worlds
from ninthsky.guard.protocol import ShardInfo


class Card(NamedTuple):
    """A card slot with a ready process."""

    host: str
    slot: int
    pid: int

    @property
    def name(self) -> str:
        """`host-1/0`."""
        return f"{self.host}/{self.slot}"


def choose_resume_step(inventories: dict[str, list[ShardInfo]], worlds: Worlds, verified: int | None = None) -> int:
    """The newest step of which the state of every rank that did it is held somewhere; -1 where there is none: then the disk.

    `verified`: the newest step that is known to be right; what came after it is not taken.
    """
    ranks_at: dict[int, set[int]] = {}
    for shards in inventories.values():
        for shard in shards:
            if verified is None or shard.step <= verified:
                ranks_at.setdefault(shard.step, set()).add(shard.rank)
    return max((step for step, ranks in ranks_at.items() if ranks.issuperset(range(worlds.at(step)))), default=-1)


def sources(inventories: dict[str, list[ShardInfo]], step: int, hosts: list[str]) -> dict[int, tuple[str, str]]:
    """(host, xxh3) of shard (rank, step) for each rank, the rank's own host preferred; nothing for step -1.

    `hosts`: of each rank; there may be fewer of them than ranks that did the step.
    """
    found: dict[int, tuple[str, str]] = {}
    for host in sorted(inventories):
        for shard in inventories[host]:
            own = shard.rank < len(hosts) and hosts[shard.rank] == host
            if shard.step == step and (shard.rank not in found or own):
                found[shard.rank] = (host, shard.xxh3)
    return found if step >= 0 else {}


def second_copies(
    inventories: dict[str, list[ShardInfo]], step: int, brought: dict[int, tuple[str, str]], hosts: list[str], ring: list[str]
) -> dict[str, dict[int, tuple[str, str]]]:
    """What each host is to fetch besides, for every shard of `step` to lie on two hosts: host -> rank -> (source, xxh3).

    `brought` as `sources` gave it. `hosts`: where a rank's shard is brought to in any case; `ring`: live hosts in order, of
    which the one after the only holder takes the copy. Nothing where the ring has one host.
    """
    holders: dict[int, set[str]] = {rank: {source} for rank, (source, _) in brought.items()}
    for rank, host in enumerate(hosts):
        if rank in holders:
            holders[rank].add(host)
    for host in ring:
        for shard in inventories.get(host, []):
            if shard.step == step and brought.get(shard.rank, ("", ""))[1] == shard.xxh3:
                holders[shard.rank].add(host)
    after = dict(zip(ring, [*ring[1:], *ring[:1]], strict=True))
    wanted: dict[str, dict[int, tuple[str, str]]] = {}
    for rank, (source, xxh3) in sorted(brought.items()):
        if len(holders[rank]) == 1 and after[source] != source:
            wanted.setdefault(after[source], {})[rank] = (source, xxh3)
    return wanted


def place(before: list[Card], homes: list[str], candidates: list[Card], failures: Mapping[str, int]) -> list[Card]:
    """A card for each rank. Who lives stays; the others get a spare of the same host, else of the host with most spares.

    `before` is empty in the first generation: then ranks fill the hosts in order (`homes`: host of each rank). Among equals
    the card with the fewest `failures` (by card name) is taken. Raises ValueError when there are fewer candidates than ranks.
    """
    ready = set(candidates)
    chosen: list[Card | None] = [card if card in ready else None for card in before] or [None] * len(homes)
    free = sorted(ready.difference(before), key=lambda card: (card.host, card.slot))
    if not before:
        return _first(free, homes, failures)
    for rank, home in enumerate(homes):
        if chosen[rank] is not None:
            continue
        if not free:
            raise ValueError(f"{len(candidates)} cards for {len(homes)} ranks")
        card = _best(free, before[rank].host if before else home, failures)
        chosen[rank] = card
        free.remove(card)
    return [card for card in chosen if card is not None]


def crowd(before: list[Card], order: list[str], candidates: list[Card], ranks: int, failures: Mapping[str, int]) -> list[Card]:
    """A card for each of `ranks` ranks, other than there were `before`: who held one goes on, host by host in `order`, so that
    neighbours stay neighbours. Raises ValueError when there are fewer candidates than ranks."""
    if len(candidates) < ranks:
        raise ValueError(f"{len(candidates)} cards for {ranks} ranks")
    held, place_of = set(before), {name: number for number, name in enumerate(order)}
    chosen = sorted(candidates, key=lambda card: (card not in held, failures.get(card.name, 0), place_of[card.host], card.slot))
    return sorted(chosen[:ranks], key=lambda card: (place_of[card.host], card.slot))


def _first(free: list[Card], homes: list[str], failures: Mapping[str, int]) -> list[Card]:
    """The first generation: each host's ranks take its own cards, what is left over goes where there is room."""
    by_host: dict[str, list[Card]] = {}
    for one in free:
        by_host.setdefault(one.host, []).append(one)
    for cards in by_host.values():
        cards.sort(key=lambda card: (failures.get(card.name, 0), card.slot), reverse=True)
    own = [by_host[home].pop() if by_host.get(home) else None for home in homes]
    left = [card for cards in by_host.values() for card in cards]
    taken: list[Card] = []
    for home, card in zip(homes, own, strict=True):
        if card is None:
            if not left:
                raise ValueError(f"{len(free)} cards for {len(homes)} ranks")
            card = _best(left, home, failures)
            left.remove(card)
        taken.append(card)
    return taken


def _best(free: list[Card], host: str, failures: Mapping[str, int]) -> Card:
    spares = Counter(card.host for card in free)
    return min(free, key=lambda card: (card.host != host, failures.get(card.name, 0), -spares[card.host], card.host, card.slot))
