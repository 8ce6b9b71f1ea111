"""A new generation: declared, inventories collected, places given out, joined. From its declaration the old one is refused."""

from __future__ import annotations

from ninthsky.guard import protocol as p
from ninthsky.guard.controller.placement import Card, choose_resume_step, crowd, place, second_copies, sources
from ninthsky.guard.controller.roster import Proc
from ninthsky.guard.controller.state import JobState
from ninthsky.guard.controller.worlds import largest
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
        self._why_back = ""  # why no newer step than the one that was chosen
        self._single: set[str] = set()  # hosts that are fetching second copies of this generation's state

    # -- its steps ----------------------------------------------------------------------------------------------------

    def begin(self, reason: str, verified: int | None = None) -> None:
        """Declares a new generation: from here on the old one is refused everywhere.

        `verified`: the newest step whose state is known to be right, where later ones are not; -1: none is.
        """
        state = self._state
        state.generation += 1
        state.reason = reason
        self.distrust(verified)
        state.journal.write("generation", generation=state.generation, reason=reason, verified=state.verified)
        state.tell("generation", generation=state.generation, reason=reason)
        for fault in state.book.open_ones():
            fault.resumed_generation = state.generation
            fault.timeline.aborted = fault.timeline.aborted or state.wall()
        state.enter("collect")
        self._inventories, self._joined, state.broken = {}, {}, {}
        self._wanted = set(state.roster.live())
        for host in state.roster.live():
            self._prepare(host)

    def distrust(self, verified: int | None) -> None:
        """The generation under way trusts no later step either. Of two that distrust different ones the older serves both."""
        state = self._state
        if verified is not None:
            state.verified = verified if state.verified is None else min(verified, state.verified)

    def prepare_if_missing(self, host: str) -> None:
        """Asks a host again whose inventory has not come: it may have been away when the generation was declared."""
        if self._state.stage == "collect" and host not in self._inventories:
            self._wanted.add(host)
            self._prepare(host)

    def heard_generation(self, generation: int) -> None:
        """An agent may know a newer generation than a journal that was copied: its declaration was under way."""
        state = self._state
        if state.stage in {"gather", "recover"} and generation > state.generation:
            state.generation, state.was_whole = generation, False

    def inventory(self, host: str, inventory: p.Inventory) -> None:
        if self._state.stage == "collect" and inventory.generation == self._state.generation:
            self._inventories[host] = inventory.shards
            self._wanted.discard(host)

    def place_failed(self, host: str, failed: p.PlaceFailed) -> None:
        if self._state.stage == "form" and failed.generation == self._state.generation:
            self.begin(f"rank {failed.rank}'s state could not be brought to {host}: {failed.reason}")

    def doubled(self, host: str, doubled: p.Doubled) -> None:
        """A host has fetched what was held once only: from now on no one host's loss costs the state."""
        state = self._state
        if host not in self._single or doubled.generation != state.generation:
            return
        self._single.discard(host)
        if doubled.missing and state.committed <= state.resume_step:
            state.tell("state.single", host=host, step=state.resume_step, ranks=doubled.missing, reason=doubled.reason)
        elif not self._single:
            state.tell("state.double", generation=state.generation, step=state.resume_step)

    def store_serving(self, proc: Proc, serving: m.StoreServing) -> None:
        """Tells every rank where this generation's store is."""
        state = self._state
        if state.stage == "form":
            where = m.Rendezvous(state.generation, state.spec.host(proc.host).address, serving.port)
            state.to_all_ranks(where)

    def joined(self, rank: int, step: int) -> None:
        if self._state.stage == "form":
            self._joined[rank] = step

    def advance(self) -> None:
        """Goes on to the next stage where what was waited for is there."""
        state = self._state
        if state.stage == "recover":
            self._recover()
        elif state.stage == "collect":
            lost = state.roster.lost
            if len(self._wanted) <= len(lost) and self._wanted <= lost:
                self._settle()
        elif state.stage == "wait":
            self._form_or_wait()
        elif state.stage == "form" and len(self._joined) == state.world:
            self._run()

    def grow(self) -> None:
        """Takes cards in that came back, after a shrink."""
        state = self._state
        if state.world == state.spec.world or state.watch.action != "act" or state.waited < state.watch.grow_seconds:
            return
        world = largest(state.spec.world, state.spec.worlds, len(state.roster.candidates()))
        if world > state.world:
            self.begin(f"there are cards for {world} ranks again")

    def late(self) -> Verdict | None:
        """About ranks that do not join in time; None while there is time."""
        state = self._state
        if state.stage != "form" or len(self._joined) == state.world or state.waited <= state.watch.join_seconds:
            return None
        missing = tuple(rank for rank in range(state.world) if rank not in self._joined)
        text = f"ranks {', '.join(map(str, missing))} did not join within {state.watch.join_seconds:.0f} s"
        if len(missing) <= max(1, state.world // 4):
            return Verdict("stuck", missing, text, (), (), 0.5, onset=state.waited)
        return Verdict("unknown", (), text, (), onset=state.waited)

    # -- within -------------------------------------------------------------------------------------------------------

    def _prepare(self, host: str) -> None:
        self._state.send(host, p.Prepare(self._state.generation, self._state.reason))

    def _settle(self) -> None:
        """Every inventory is here: the step to go on from is known."""
        state = self._state
        live = set(state.roster.live())  # a host may have been lost after it had told
        self._inventories = {host: shards for host, shards in self._inventories.items() if host in live}
        state.resume_step = choose_resume_step(self._inventories, state.worlds, state.verified)
        self._why_back = "what came after it is not trusted"
        if state.verified is None or state.resume_step < state.verified:
            held = sources(self._inventories, state.committed, [])
            gone = [str(rank) for rank in range(state.worlds.at(state.committed)) if rank not in held]
            self._why_back = f"of step {state.committed} nobody holds rank {', '.join(gone[:20])}"
        for proc in state.roster.processes.values():
            if proc.out:  # before its slot can be used again
                state.send(proc.host, p.Dismiss(proc.slot, proc.pid, state.watch.kill_replaced))
        self._form_or_wait()

    def _form_or_wait(self) -> None:
        """As many ranks as there can be. A card whose process is started again is waited for, one that is gone is not."""
        state = self._state
        ready, usable = len(state.roster.candidates()), state.roster.usable_cards()
        possible, world = (largest(state.spec.world, state.spec.worlds, cards) for cards in (usable, ready))
        waited = state.waited if state.stage == "wait" else 0.0
        if not possible:
            least = min((state.spec.world, *state.spec.worlds))
            state.fail(f"{usable} usable cards are left, and this job needs {least} at least")
        elif world >= min(possible, state.world) or (world and waited >= state.watch.spare_seconds):
            self._tell_size(world, f"{ready} processes are ready" if world < possible else f"{usable} cards can be used")
            state.world = world
            self._form()
        elif waited > state.watch.spare_seconds:
            state.fail(f"no spare was ready after {waited:.0f} s")
        elif state.stage != "wait":
            state.enter("wait")
            state.tell("spare.wanted", candidates=ready, world=min(possible, state.world))

    def _tell_size(self, world: int, why: str) -> None:
        state = self._state
        if world == state.world:
            return
        verb = "shrunk" if world < state.world else "grown"
        state.tell(f"job.{verb}", before=state.world, ranks=world, reason=why)
        for fault in state.book.open_ones():
            state.book.remedy(fault, f"{verb} from {state.world} to {world} ranks: {why}")

    def _form(self) -> None:
        """Gives every rank its place, and tells every agent what to bring there."""
        state, spec, roster = self._state, self._state.spec, self._state.roster
        before = [Card(*row) for row in roster.table()]
        homes, world = spec.homes(), state.world
        if len(before) in {0, world}:
            cards = place(before, homes[:world], roster.candidates(), state.history.card_failures)
            changed = {rank: old.name for rank, (old, new) in enumerate(zip(before, cards, strict=False)) if old != new}
        else:
            order = [host.name for host in spec.hosts]
            cards, changed = crowd(before, order, roster.candidates(), world, state.history.card_failures), {}
            state.results.clear()
        did = state.worlds.at(state.resume_step)  # ranks that the state is of
        state.worlds.begin(state.resume_step, world)
        roster.places = [roster.processes[card.host, card.pid] for card in cards]
        self._joined, state.broken = {}, {}
        self._reached = max(self._reached, state.fleet.step())
        state.journal.write("places", generation=state.generation, resume_step=state.resume_step, places=roster.table())
        hosts = roster.rank_hosts()
        away = {rank: host for rank, (host, home) in enumerate(zip(hosts, homes, strict=False)) if host != home}
        brought = sources(self._inventories, state.resume_step, hosts)
        held = {rank: brought[rank] for rank in range(did)} if brought and did != world else {}
        server = min(changed, default=0)  # a newly placed process is idle and answers at once; survivors still let go
        by_host: dict[str, list[p.Place]] = {host: [] for host in roster.live()}
        copies = second_copies(self._inventories, state.resume_step, brought, [] if held else hosts, list(by_host))
        self._single = set(copies)
        addresses = {host.name: host.address for host in spec.hosts}
        for rank, proc in enumerate(roster.places):
            bind = addresses[proc.host]
            assign = m.Assign(
                state.generation, rank, world, state.resume_step, rank == server, bind, [],
                state_world=did if held else 0, verified=state.verified,
            )  # fmt: skip
            source = ("", "") if held else brought.get(rank, ("", ""))
            by_host[proc.host].append(p.Place(proc.slot, proc.pid, assign, *source))
        for host, following in zip(by_host, [*list(by_host)[1:], *list(by_host)[:1]], strict=True):
            places = by_host[host]
            near = dict.fromkeys([host, following, *(place.source for place in places if place.source)])
            again = copies.get(host, {})
            near |= dict.fromkeys(source for source, _ in [*held.values(), *again.values()])
            peers = [p.Peer(name, roster.hosts[name].address, roster.hosts[name].port) for name in near]
            state.send(host, p.Form(state.generation, state.resume_step, places, peers, away, changed, held, again))
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
            if fault.committed_steps_lost:
                where = "the disk" if state.resume_step < 0 else "older copies"
                state.book.remedy(
                    fault, f"rolled back to {where}, step {resumed}: {self._why_back}, {state.committed - resumed} steps lost"
                )
            state.book.save(fault)
        state.lower_commit(resumed)
        if state.verified is not None:
            state.verified, state.saved = None, min(state.saved, resumed + 1)
        self._reached = -1

    def _recover(self) -> None:
        """Every host has told what runs there: training goes on untouched, unless a regroup was under way."""
        state, roster = self._state, self._state.roster
        absent = [name for name, host in roster.hosts.items() if name not in roster.lost and not host.registered]
        if absent and state.waited < RECOVER_SECONDS:
            return
        placed = len(roster.places) == state.world
        if placed:
            state.fleet.begin(state.generation, roster.table(), state.clock())
        if state.was_whole and placed:
            # A host that does not answer is judged like others from here on: is it waited for, or is only its line to us cut?
            state.enter("run")
            for host in roster.live():
                state.send(host, p.WhoAreYou())  # again, now that messages of its ranks are heeded
            state.tell("controller.recovered", generation=state.generation)
        else:
            for host in absent:
                state.lose(host)
            self.begin("the controller was restarted during a regroup")
