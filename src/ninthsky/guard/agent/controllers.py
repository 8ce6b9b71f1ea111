"""The agent's lines to the job's controllers, as one: orders come in their order, events go out numbered.

What an agent has to say is kept as state, not as a queue: a controller that missed something, or is new, asks for all of it
(protocol.Register). So an agent that is cut off for hours keeps its ranks training in a few kilobytes.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

import zmq.asyncio

from ninthsky.guard.agent.allegiance import Allegiance
from ninthsky.guard.keys import Keyring
from ninthsky.guard.probe.messages import ToAgent
from ninthsky.guard.protocol import Claim, Command, Event, Exited, FromRank, Numbered, Several, ToController
from ninthsky.guard.wire import Caller

BEAT_SECONDS = 0.5  # between two words to a controller that does not lead
ENDS_KEPT = 64  # ends of processes that are told again to a controller that asks


class Controllers:
    """The lines to a job's one or two controllers. What is sent goes to the one that leads."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        keys: Keyring,
        addresses: Mapping[str, tuple[str, int]],
        hosts: Sequence[str],
        gather_seconds: float,
    ) -> None:
        """`addresses`: of each controller by its name in the key files. `gather_seconds`: as in JobSpec."""
        self.refused: Counter[str] = Counter()
        self.events = 0  # number of the last one
        self.ended: deque[Exited] = deque(maxlen=ENDS_KEPT)
        self.done = ("", 0)  # the controller whose order was the last one done, and its number
        self._gather_seconds = gather_seconds
        self._gathered: list[FromRank] = []
        self.allegiance = Allegiance(hosts, contested=len(addresses) > 1)
        self._callers: dict[str, Caller[Numbered]] = {
            name: Caller(context, keys, name, Numbered, address, port) for name, (address, port) in addresses.items()
        }
        self._heard: asyncio.Queue[tuple[str, Numbered]] = asyncio.Queue(256)

    def send(self, message: ToController) -> bool:
        """Now or not at all: what was lost, the controller asks for."""
        caller = self._callers.get(self.allegiance.holder)
        return caller is not None and caller.send(message)

    def tell(self, kind: Callable[..., Event], *fields: object) -> None:
        """An event with the next number: kind(number, *fields)."""
        self.flush()
        self.events += 1
        event = kind(self.events, *fields)
        if isinstance(event, Exited):
            self.ended.append(event)
        self.send(event)

    def gather(self, slot: int, pid: int, message: ToAgent) -> None:
        """A rank's word, passed on; on a large fleet together with those that follow at once."""
        self.events += 1
        self._gathered.append(FromRank(self.events, slot, pid, message))
        if not self._gather_seconds:
            self.flush()
        elif len(self._gathered) == 1:
            asyncio.get_running_loop().call_later(self._gather_seconds, self.flush)

    def flush(self) -> None:
        """Sends what was gathered."""
        gathered, self._gathered = self._gathered, []
        if gathered:
            self.send(gathered[0] if len(gathered) == 1 else Several(gathered))

    async def order(self) -> Command:
        """The next order, each once and in order."""
        while True:
            numbered = await self.receive()
            if numbered.controller != self.done[0]:
                self.done = (numbered.controller, 0)
            if not numbered.number:
                return numbered.command
            if numbered.number == self.done[1] + 1:  # else one before it was lost: both come again
                self.done = (numbered.controller, numbered.number)
                return numbered.command

    async def receive(self) -> Numbered:
        """The next order that counts."""
        while True:
            who, numbered = await self._heard.get()
            caller = self._callers[who]
            if isinstance(numbered.command, Claim):
                caller.send(self.allegiance.claimed(who, numbered.command))
            elif self.allegiance.obeys(who, numbered.term):
                return numbered
            else:
                self.refused["order of an older term"] += 1
                caller.send(self.allegiance.standing())

    async def serve(self) -> None:
        """Listens to all of them, and tells the one that does not lead how the lease stands."""
        await asyncio.gather(*(self._listen(who) for who in self._callers), self._tell())

    async def _listen(self, who: str) -> None:
        while True:
            await self._heard.put((who, await self._callers[who].receive()))

    async def _tell(self) -> None:
        while len(self._callers) > 1:
            standing = self.allegiance.standing()
            for name, caller in self._callers.items():
                if name != standing.holder or not standing.left:
                    caller.send(standing)
            await asyncio.sleep(min(BEAT_SECONDS, standing.left + 0.01) if standing.left else BEAT_SECONDS)

    def close(self) -> None:
        for caller in self._callers.values():
            caller.close()
