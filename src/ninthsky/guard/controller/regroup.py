"""A new generation: declared, inventories collected, places given out, joined. From its declaration the old one is refused."""

from __future__ import annotations

from ninthsky.guard import protocol as p
from ninthsky.guard.controller.placement import Card, newest_whole_step, place, sources
from ninthsky.guard.controller.roster import Proc
from ninthsky.guard.controller.state import JobState
from ninthsky.guard.judges import Verdict
from ninthsky.guard.probe import messages as m

RECOVER_SECONDS = 5.0


class Regroup:
    """Takes a job through the stages collect, wait and form, and back to run. `advance` goes on where it can."""

    def __init__(self, state: JobState) -> None:
        self._state = state
        self._inventories: dict[str, list[p.ShardInfo]] = {}
        self._wanted: set[str] = set()  # hosts whose inventory has not come
        self._joined: dict[int, int] = {}  # rank -> the step that it is about to do
        self._reached = -1  # how far training had come when it was broken off

    # -- its steps ----------------------------------------------------------------------------------------------------

    def begin(self, reason: str) -> None:
        """Declares a new generation: from here on the old one is refused everywhere."""
        state = self._state
        state.generation += 1
        state.reason = reason
        state.journal.write("generation", generation=state.generation, reason=reason)
        state.tell("generation", generation=state.generation, reason=reason)
        for fault in state.book.open_ones():
            fault.resumed_generation = state.generation
            fault.timeline.aborted = fault.timeline.aborted or state.wall()
        state.enter("collect")
        self._inventories, self._joined, state.broken = {}, {}, {}
        self._wanted = set(state.roster.live())
        for host in state.roster.live():
            self._prepare(host)

    def prepare_if_missing(self, host: str) -> None:
        """Asks a host again whose inventory has not come: it may have been away when the generation was declared."""
        if self._state.stage == "collect" and host not in self._inventories:
            self._wanted.add(host)
            self._prepare(host)

    def inventory(self, host: str, inventory: p.Inventory) -> None:
        if self._state.stage == "collect" and inventory.generation == self._state.generation:
            self._inventories[host] = inventory.shards
            self._wanted.discard(host)

    def place_failed(self, host: str, failed: p.PlaceFailed) -> None:
        if self._state.stage == "form" and failed.generation == self._state.generation:
            self.begin(f"rank {failed.rank}'s state could not be brought to {host}: {failed.reason}")

    def store_serving(self, proc: Proc, serving: m.StoreServing) -> None:
        """Tells every rank where this generation's store is."""
        state = self._state
        if state.stage == "form":
            where = m.Rendezvous(state.generation, state.spec.host(proc.host).address, serving.port)
            for other in state.roster.places:
                state.to_rank(other, where)

    def joined(self, rank: int, step: int) -> None:
        if self._state.stage == "form":
            self._joined[rank] = step

    def advance(self) -> None:
        """Goes on to the next stage where what was waited for is there."""
        state, world = self._state, self._state.spec.world
        if state.stage == "recover":
            self._recover()
        elif state.stage == "collect":
            lost = state.roster.lost
            if len(self._wanted) <= len(lost) and self._wanted <= lost:
                self._settle()
        elif state.stage == "wait":
            if len(state.roster.candidates()) >= world:
                self._form()
            elif state.waited > state.watch.spare_seconds:
                state.fail(f"no spare was ready after {state.waited:.0f} s")
        elif state.stage == "form" and len(self._joined) == world:
            self._run()

    def late(self) -> Verdict | None:
        """About ranks that do not join in time; None while there is time."""
        state = self._state
        if state.stage != "form" or len(self._joined) == state.spec.world or state.waited <= state.watch.join_seconds:
            return None
        missing = tuple(rank for rank in range(state.spec.world) if rank not in self._joined)
        text = f"ranks {', '.join(map(str, missing))} did not join within {state.watch.join_seconds:.0f} s"
        if len(missing) <= max(1, state.spec.world // 4):
            return Verdict("stuck", missing, text, (), (), 0.5, onset=state.waited)
        return Verdict("unknown", (), text, (), onset=state.waited)

    # -- within -------------------------------------------------------------------------------------------------------

    def _prepare(self, host: str) -> None:
        self._state.send(host, p.Prepare(self._state.generation, self._state.reason))

    def _settle(self) -> None:
        """Every inventory is here: the step to go on from is known, and whether there are cards enough."""
        state, world = self._state, self._state.spec.world
        state.resume_step = newest_whole_step(self._inventories, world)
        for proc in state.roster.processes.values():
            if proc.out:  # before its slot can be used again
                state.send(proc.host, p.Dismiss(proc.slot, proc.pid, state.watch.kill_replaced))
        ready = len(state.roster.candidates())
        if ready >= world:
            self._form()
        elif state.roster.usable_cards() < world:
            state.fail(f"{state.roster.usable_cards()} usable cards are left for {world} ranks")
        else:
            state.enter("wait")
            state.tell("spare.wanted", candidates=ready, world=world)

    def _form(self) -> None:
        """Gives every rank its place, and tells every agent what to bring there."""
        state, spec, roster = self._state, self._state.spec, self._state.roster
        before = [Card(*row) for row in roster.table()]
        homes = [host.name for host in spec.hosts for _ in range(host.slots)]
        cards = place(before, homes, roster.candidates(), state.history.card_failures)
        changed = {rank: old.name for rank, (old, new) in enumerate(zip(before, cards, strict=False)) if old != new}
        roster.places = [roster.processes[card.host, card.pid] for card in cards]
        self._joined, state.broken = {}, {}
        self._reached = max(self._reached, state.fleet.step())
        state.journal.write("places", generation=state.generation, resume_step=state.resume_step, places=roster.table())
        hosts = roster.rank_hosts()
        brought = sources(self._inventories, state.resume_step, hosts)
        server = min(changed, default=0)  # a newly placed process is idle and answers at once; survivors still let go
        by_host: dict[str, list[p.Place]] = {host: [] for host in roster.live()}
        addresses = {host.name: host.address for host in spec.hosts}
        for rank, proc in enumerate(roster.places):
            bind = addresses[proc.host]
            assign = m.Assign(state.generation, rank, spec.world, state.resume_step, rank == server, bind, hosts, changed)
            by_host[proc.host].append(p.Place(proc.slot, proc.pid, assign, *brought.get(rank, ("", ""))))
        peers = [p.Peer(name, roster.hosts[name].address, roster.hosts[name].port) for name in by_host]
        for host, places in by_host.items():
            state.send(host, p.Form(state.generation, state.resume_step, places, peers))
        self._note_places(changed)
        state.fleet.begin(state.generation, roster.table(), state.clock())
        state.enter("form")
        named = {str(rank): proc.card for rank, proc in enumerate(roster.places)}
        state.tell("formed", generation=state.generation, resume_step=state.resume_step, places=named)

    def _note_places(self, changed: dict[int, str]) -> None:
        """Who takes whose place, into the faults that it repairs."""
        state = self._state
        for fault in state.book.open_ones():
            fault.timeline.assigned = state.wall()
            if fault.rank is not None and fault.rank in changed:
                fault.replaced_by = state.roster.places[fault.rank].card
            state.book.save(fault)

    def _run(self) -> None:
        state = self._state
        state.enter("run")
        state.journal.write("joined", generation=state.generation)
        # Without a replica of every rank they went on from the disk, and only they know where that was.
        resumed = state.resume_step if state.resume_step >= 0 else min(self._joined.values()) - 1
        state.tell("joined", generation=state.generation, resume_step=resumed, disk=state.resume_step < 0 <= resumed)
        for fault in state.book.open_ones():
            fault.timeline.joined = state.wall()
            fault.resume_step = resumed
            fault.steps_redone = max(fault.steps_redone, self._reached - resumed, 0)
            fault.committed_steps_lost = max(0, state.committed - resumed)
            state.book.save(fault)
        self._reached = -1

    def _recover(self) -> None:
        """Every host has told what runs there: training goes on untouched if nobody is missing, else a new generation."""
        state, roster = self._state, self._state.roster
        absent = [name for name, host in roster.hosts.items() if name not in roster.lost and not host.registered]
        if absent and state.waited < RECOVER_SECONDS:
            return
        for host in absent:
            state.lose(host)
        if state.was_whole and len(roster.places) == state.spec.world and all(map(roster.alive, roster.places)):
            state.fleet.begin(state.generation, roster.table(), state.clock())
            state.enter("run")
            for host in roster.live():
                state.send(host, p.WhoAreYou())  # again, now that messages of its ranks are heeded
            state.tell("controller.recovered", generation=state.generation)
        else:
            self.begin("the controller was restarted during a regroup")
