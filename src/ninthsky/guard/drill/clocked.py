"""The drill at fleet size: the real conductor and judges, a simulated fleet, an injected clock, no sockets."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType

from ninthsky.errors import UserError
from ninthsky.guard.controller.conductor import Conductor
from ninthsky.guard.drill.agents import Agents
from ninthsky.guard.drill.episodes import TICK, Drill
from ninthsky.guard.drill.scenario import Scenario


class ClockedDrill(Drill):
    """The controller's mind is a part of this process; its processor time and objects are counted."""

    def __init__(self, ranks: int, scenario: Scenario, seed: int, on_told: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(ranks, scenario, seed, on_told)
        self.now = 1_000_000.0
        # What the controller's own objects take is added to the bare process before there were any.
        self._bare_mb = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    def _start(self, folder: Path) -> None:
        self.fleet, spec = self._new_fleet(), self.spec(folder)
        self.agents = Agents(self.fleet, spec, lambda: self.now)
        wall = time.time() - self.now
        self.conductor = Conductor(spec, self.agents.send, self._event, clock=lambda: self.now, wall=lambda: self.now + wall)
        self.agents.conductor = self.conductor
        self._until(lambda: self.fleet.running > 0, 60.0)
        if not self.fleet.running:
            raise UserError("N9-GRD-001", f"the simulated job did not start: {self.conductor.state.reason}", "n9 guard drill")
        self.agents.spent, self._began = 0.0, self.now

    def _end(self) -> None:
        self.simulated += self.now - self._began
        self.spent += self.agents.spent
        self.bytes += self.agents.bytes
        self.conductor.state.fleet.window(self.now)
        self.memory_mb = max(self.memory_mb, self._bare_mb + size_of(self.conductor, (self.agents, self.fleet, self)) / 2**20)
        self.conductor.state.journal.close()

    def _tick(self) -> None:
        self.now += TICK
        self.agents.advance(self.now)

    def _stage(self) -> str:
        return self.conductor.state.stage

    def _lost(self) -> set[int]:
        return {self.agents.number_of[name] for name in self.conductor.state.roster.lost}

    def _stop(self, reason: str) -> None:
        self.conductor.stop(reason)


def size_of(root: object, apart: tuple[object, ...]) -> int:
    """Bytes of all objects that can be reached from `root`, without code, and without `apart` and what hangs on it alone."""
    seen, total, waiting = {id(thing) for thing in apart}, 0, [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(thing))
        total += sys.getsizeof(thing)
        waiting += gc.get_referents(thing)
    return total
