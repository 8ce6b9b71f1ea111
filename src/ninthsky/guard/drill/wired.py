"""The agents of a simulated fleet at the real controller's socket: each with its own key and its own encrypted connection.

They are light: one process for 2,304 of them, their messages encoded by numpy and msgspec, sockets without asyncio. What a
real agent does with the controller's commands (numbers, acknowledgements, repeats) they do as well.
"""

from __future__ import annotations

import contextlib
import resource
import select
import time
from pathlib import Path

import msgspec
import zmq

from ninthsky.errors import UserError
from ninthsky.guard import protocol as p
from ninthsky.guard.drill.agents import Agent, Agents
from ninthsky.guard.drill.simulator import SimulatedFleet
from ninthsky.guard.keys import CONTROLLER, keep_own, keep_public
from ninthsky.guard.spec import JobSpec

FILES_BESIDE = 200  # descriptors of this process that are no agent's
AT_ONCE, BETWEEN_SECONDS = 32, 0.05  # connections that are begun, and until the next ones
FILES_PER_AGENT = 2  # its connection, and the one that tells of what came

_decoder = msgspec.msgpack.Decoder(p.Numbered)


def make_keys(folder: Path, hosts: list[str]) -> tuple[Path, str, dict[str, tuple[bytes, bytes]]]:
    """The controller's key file, its public key, and the agents' pairs, which stay in memory."""
    own = zmq.curve_keypair()
    pairs = {host: zmq.curve_keypair() for host in hosts}
    keep_public(folder, {CONTROLLER: own[0].decode()} | {host: pair[0].decode() for host, pair in pairs.items()})
    return keep_own(folder, CONTROLLER, own[1].decode()), own[0].decode(), pairs


def room_for(agents: int) -> None:
    """Descriptors enough. Raises UserError N9-GRD-042 where the system allows too few."""
    wanted = FILES_BESIDE + FILES_PER_AGENT * agents
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted > hard:
        raise UserError("N9-GRD-042", f"{wanted} open files are needed, {hard} allowed", "n9 guard drill --sockets",
                        f"ulimit -n {wanted}, or fewer --ranks")  # fmt: skip
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


class WiredAgents(Agents):
    """Agents of a fleet in real time. `connect` before the first `advance`; `close` at the end."""

    def __init__(self, fleet: SimulatedFleet, spec: JobSpec) -> None:
        super().__init__(fleet, spec, time.monotonic)
        room_for(fleet.hosts)
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, fleet.hosts + 16)
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._of_file: dict[int, Agent] = {}
        self._poll = select.epoll()
        self.dropped = 0  # messages for which there was no connection, or no room

    def connect(self, server: str, pairs: dict[str, tuple[bytes, bytes]], address: str, port: int) -> None:
        """Some at a time: real ones start on machines of their own, not all in one moment on this one."""
        for number, agent in enumerate(self.agents):
            if number % AT_ONCE == AT_ONCE - 1:
                time.sleep(BETWEEN_SECONDS)
            public, secret = pairs[agent.name]
            socket = self._context.socket(zmq.DEALER)
            socket.curve_serverkey = server.encode()
            socket.curve_publickey, socket.curve_secretkey = public, secret
            for option, value in (
                (zmq.IMMEDIATE, 1), (zmq.RECONNECT_IVL, 100), (zmq.RECONNECT_IVL_MAX, 1_000), (zmq.SNDHWM, 256),
                (zmq.LINGER, 0), (zmq.HEARTBEAT_IVL, 1_000), (zmq.HEARTBEAT_TIMEOUT, 3_000), (zmq.HEARTBEAT_TTL, 3_000),
            ):  # fmt: skip
                socket.setsockopt(option, value)
            socket.connect(f"tcp://{address}:{port}")
            self._sockets[agent.name] = socket
            self._of_file[socket.FD] = agent
            # Edge-triggered: 0MQ's descriptor tells of a change only, and whatever is there must be read then.
            self._poll.register(socket.FD, select.EPOLLIN | select.EPOLLET)

    def wait(self, until: float) -> None:
        """Obeys what comes until then."""
        while True:
            ready = self._poll.poll(max(0.0, until - time.monotonic()), 512)
            for file, _ in ready:
                self._read(self._of_file[file])
            if time.monotonic() >= until:
                return

    def close(self) -> None:
        self._poll.close()
        for socket in self._sockets.values():
            socket.close(linger=0)
        self._context.destroy(linger=0)

    def _read(self, agent: Agent) -> None:
        socket = self._sockets[agent.name]
        with contextlib.suppress(zmq.Again):
            while True:
                self._take(agent, _decoder.decode(socket.recv(zmq.NOBLOCK)))

    def _take(self, agent: Agent, numbered: p.Numbered) -> None:
        if agent.number in self.fleet.silent(self.clock()):
            return  # its line is cut: it will come again
        if numbered.controller != agent.controller:
            agent.controller, agent.command = numbered.controller, 0
        if numbered.number:
            if numbered.number != agent.command + 1:
                return
            agent.command = numbered.number
        self._obey(agent.name, numbered.command)

    def _deliver(self, now: float) -> None:
        for host, body in self._arrived(now):
            socket = self._sockets[host]
            try:
                socket.send(body, zmq.NOBLOCK)
            except zmq.Again:
                self.dropped += 1
            self._read(self.agents[self.number_of[host]])  # sending may have taken the edge of something that came
