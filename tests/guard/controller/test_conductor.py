"""The controller's mind without sockets or processes: a made clock, and agents that answer as real ones do."""

from __future__ import annotations

import itertools
import signal
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from ninthsky.guard import protocol as p
from ninthsky.guard.controller.conductor import Conductor
from ninthsky.guard.controller.state import JobState
from ninthsky.guard.judges import Verdict
from ninthsky.guard.probe import messages as m
from ninthsky.guard.probe.record import Phase, RecordWriter
from ninthsky.guard.seen import Seen, pack
from ninthsky.guard.spec import HostSpec, Injected, JobSpec, Watch


class Cluster:
    """Two hosts with two ranks and a spare each. Agents answer at once, unless their host is in `mute`."""

    def __init__(
        self,
        folder: Path,
        watch: Watch | None = None,
        injected: list[Injected] | None = None,
        spares: int = 1,
        worlds: list[int] | None = None,
    ) -> None:
        self.folder, self.now = folder, 1_000.0
        self.spec = JobSpec(
            run_id="made", folder=str(folder), command=["x"], world=4, injected=injected or [],
            watch=watch or Watch(action="act"), worlds=worlds or [],
            hosts=[HostSpec(name=name, slots=2, spares=spares) for name in ("a", "b")],
        )  # fmt: skip
        self.pids = itertools.count(100)
        self.slots: dict[str, dict[int, int]] = {}
        self.numbers = {"a": 0, "b": 0}
        self.shards: dict[str, list[p.ShardInfo]] = {"a": [], "b": []}
        self.mute: set[str] = set()
        self.answering = True
        self.sent: list[tuple[str, p.Command]] = []
        self.events: list[dict[str, Any]] = []
        self.queue: deque[tuple[str, p.ToController]] = deque()
        self.records: dict[int, tuple[int, int, int, int]] = {}  # pid -> generation, rank, step, phase
        self.stopped: set[int] = set()
        self.c = self.start()

    def start(self) -> Conductor:
        """A controller on this folder: the first one, or one that was started again."""
        return Conductor(self.spec, self.send, self.event, clock=lambda: self.now, wall=lambda: self.now)

    def send(self, host: str, command: p.Command) -> None:
        self.sent.append((host, command))
        if host in self.mute or not self.answering:
            return
        if isinstance(command, p.WhoAreYou):
            self.queue.append((host, self.register(host)))
        elif isinstance(command, p.Prepare):
            self.tell(host, lambda n: p.Inventory(n, command.generation, self.shards[host]))
        elif isinstance(command, p.Form):
            for place in command.places:
                self.records[place.pid] = (command.generation, place.assign.rank, command.resume_step + 1, Phase.LOCAL)
                if place.assign.serve_store:
                    self.say(host, place.slot, m.StoreServing(command.generation, 1))
                self.say(host, place.slot, m.Joined(command.generation, place.assign.rank, command.resume_step + 1))

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})

    @property
    def state(self) -> JobState:
        return self.c.state

    def stage(self) -> str:
        return self.state.stage

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]

    def register(self, host: str) -> p.Register:
        states = []
        for slot, pid in self.slots[host].items():
            generation, rank, step, _ = self.records.get(pid, (0, -1, -1, 0))
            last: list[m.ToAgent] = [m.Joined(generation, rank, step)] if generation else []
            states.append(p.ProcessState(slot, pid, True, generation, rank, last))
        return p.Register(f"10.0.0.{host}", 5, self.state.generation, states, self.numbers[host])

    def tell(self, host: str, make: Any) -> None:
        self.numbers[host] += 1
        if host not in self.mute:
            self.queue.append((host, make(self.numbers[host])))

    def say(self, host: str, slot: int, message: m.ToAgent) -> None:
        pid = self.slots[host][slot]
        self.tell(host, lambda n: p.FromRank(n, slot, pid, message))

    def report(self) -> None:
        for host, slots in self.slots.items():
            if host in self.mute:
                continue
            seen = []
            for slot, pid in slots.items():
                age, state = (9.0, "T") if pid in self.stopped else (0.05, "S")
                seen.append(Seen(slot, pid, self.record(pid), age, state, 1.0, 0.0))
            self.queue.append((host, p.Report(self.numbers[host], "", 0, 0.0, pack(seen))))

    def record(self, pid: int) -> bytes:
        if pid not in self.records:
            return b""
        generation, rank, step, phase = self.records[pid]
        path = self.folder / "record"
        writer = RecordWriter(path)
        writer.update(generation=generation, rank=rank, step=step, phase=phase)
        writer.close()
        return path.read_bytes()

    def drain(self) -> None:
        while self.queue:
            self.c.handle(*self.queue.popleft())
            self.c.tick()

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.report()
            self.drain()
            self.c.tick()

    def begin(self) -> None:
        """Starts every process, up to training."""
        for host in ("a", "b"):
            self.slots[host] = {slot: next(self.pids) for slot in range(2 + self.spec.hosts[0].spares)}
            self.queue.append((host, self.register(host)))
        self.run(0.3)
        assert self.state.stage == "run", self.state.stage

    def step(self, step: int) -> None:
        """All ranks finish a step, its shards lie on both hosts."""
        for proc in self.state.roster.places:
            generation, rank, _, phase = self.records[proc.pid]
            self.records[proc.pid] = (generation, rank, step + 1, phase)
        ranks = range(len(self.state.roster.places))
        shards = [p.ShardInfo(rank, at, 1, f"{rank}-{at}") for rank in ranks for at in (step - 1, step) if at >= 0]
        self.shards = {"a": shards, "b": shards}
        proc = self.state.roster.places[0]
        self.say(proc.host, proc.slot, m.Committed(self.state.generation, step - 1))
        self.run(0.2)

    def end(self, rank: int, status: int = -signal.SIGKILL) -> None:
        """A rank's process ends, and its slot gets a new, ready one."""
        proc = self.state.roster.places[rank]
        self.end_process(proc.host, proc.slot, status)

    def end_process(self, host: str, slot: int, status: int = -signal.SIGKILL, respawn: bool = True) -> None:
        pid = self.slots[host].pop(slot)
        self.tell(host, lambda n: p.Exited(n, slot, pid, status, 0, "log", ""))
        if respawn:
            self.slots[host][slot] = next(self.pids)
            self.say(host, slot, m.Ready())

    def commands(self, kind: type) -> list[Any]:
        return [command for _, command in self.sent if isinstance(command, kind)]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path)
    cluster.begin()
    cluster.step(0)
    cluster.step(1)
    return cluster


def test_an_exit_regroups_from_the_newest_whole_step(cluster: Cluster) -> None:
    cluster.end(2)
    cluster.run(0.2)
    assert cluster.state.stage == "run" and cluster.state.generation == 2 and cluster.state.resume_step == 1
    assert cluster.state.roster.places[2].card == "b/2"
    cluster.step(2)
    (fault,) = cluster.state.book.faults
    assert (fault.state, fault.cause, fault.rank, fault.card, fault.replaced_by) == ("repaired", "exit", 2, "b/0", "b/2")
    assert (fault.steps_redone, fault.committed_steps_lost) == (1, 0)


def test_an_echo_in_another_rank_is_no_fault(cluster: Cluster) -> None:
    proc = cluster.state.roster.places[1]
    cluster.say(proc.host, proc.slot, m.Broken(1, 1, "connection reset"))
    cluster.end(2)
    cluster.run(1.0)
    assert [fault.rank for fault in cluster.state.book.faults] == [2]
    assert "connection reset" in str(cluster.state.book.faults[0].evidence.facts[-1])


def test_a_broken_collective_with_everybody_alive_rebuilds_the_groups(cluster: Cluster) -> None:
    proc = cluster.state.roster.places[1]
    cluster.say(proc.host, proc.slot, m.Broken(1, 1, "connection reset"))
    cluster.run(1.0)
    assert not cluster.state.book.faults
    cluster.run(1.0)
    assert [(fault.cause, fault.rank) for fault in cluster.state.book.faults] == [("unknown", None)]
    assert cluster.state.generation == 2 and cluster.state.stage == "run"
    assert [proc.card for proc in cluster.state.roster.places] == ["a/0", "a/1", "b/0", "b/1"]


def test_an_agent_that_is_cut_off_from_the_controller_alone_loses_no_rank(cluster: Cluster) -> None:
    """Its ranks train on with the others, whose agents are heard: told once, and once when it is back."""
    cluster.mute.add("b")
    for step in range(5, 45):
        cluster.step(step)
        cluster.run(0.3)
    assert not cluster.state.book.faults and cluster.state.generation == 1 and not cluster.state.roster.lost
    assert [event["host"] for event in cluster.events if event["kind"] == "host.unheard"] == ["b"]
    cluster.mute.clear()
    cluster.run(1.0)
    assert [event["host"] for event in cluster.events if event["kind"] == "host.heard"] == ["b"]
    cluster.step(45)
    cluster.end(2)  # and it is acted for as before
    cluster.run(1.0)
    assert [(fault.cause, fault.rank) for fault in cluster.state.book.faults] == [("exit", 2)]
    assert cluster.state.stage == "run" and "host.refused" not in cluster.kinds()


def test_groups_that_break_while_they_form_are_formed_again_without_waiting_for_the_join_limit(cluster: Cluster) -> None:
    cluster.answering = False
    cluster.end(2)
    cluster.drain()
    for host in ("a", "b"):
        cluster.tell(host, lambda n, host=host: p.Inventory(n, 2, cluster.shards[host]))
    cluster.drain()
    assert cluster.stage() == "form"
    cluster.say("a", 0, m.Broken(2, 1, "its store did not answer"))
    cluster.answering = True
    cluster.run(3.0)
    assert cluster.stage() == "run" and cluster.state.generation == 3
    told = cluster.state.book.faults[-1]
    assert (told.cause, told.rank) == ("unknown", None) and "its store did not answer" in told.evidence.verdict


def test_a_second_exit_during_the_regroup_joins_it(cluster: Cluster) -> None:
    cluster.answering = False
    cluster.end(2)
    cluster.drain()
    assert cluster.stage() == "collect"
    cluster.end(0)
    cluster.drain()
    cluster.answering = True
    cluster.run(4.0)
    # Agents that did not answer Prepare are asked again when their silence in the regroup is noticed, or register anew.
    for host in ("a", "b"):
        cluster.send(host, p.Prepare(cluster.state.generation, ""))
    cluster.run(0.3)
    assert cluster.state.stage == "run"
    assert {fault.rank for fault in cluster.state.book.faults} == {0, 2}
    assert [proc.card for proc in cluster.state.roster.places] == ["a/2", "a/1", "b/2", "b/1"]


def test_a_spare_that_dies_while_it_takes_its_place_is_replaced_too(cluster: Cluster) -> None:
    cluster.end(2)
    cluster.queue.append(("b", cluster.register("b")))  # keep the order: the exit comes first
    while cluster.state.stage != "form" and cluster.queue:
        cluster.c.handle(*cluster.queue.popleft())
    cluster.end(2)
    cluster.run(0.5)
    assert cluster.state.stage == "run" and cluster.state.generation == 3
    cluster.step(2)
    assert [fault.state for fault in cluster.state.book.faults] == ["repaired", "repaired"]


def test_a_card_that_failed_twice_is_kept_out(cluster: Cluster) -> None:
    for step in range(2, 5):
        cluster.end(2)
        cluster.run(0.3)
        cluster.step(step)
    assert "card.kept_out" in cluster.kinds()
    assert len(cluster.state.roster.kept_out) == 1 and cluster.commands(p.KeepOut)
    assert cluster.state.roster.places[2].card not in cluster.state.roster.kept_out


def test_too_many_evictions_within_an_hour_page_a_person(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Watch(action="act", max_evictions_per_hour=2, card_failures=99))
    cluster.begin()
    for step in range(3):
        cluster.step(step)
        cluster.end(2)
        cluster.run(0.3)
    assert cluster.state.stage == "failed" and "evictions within an hour" in cluster.state.reason
    assert cluster.state.book.faults[-1].state == "stopped"


def test_advice_is_told_once_while_a_rank_stays_frozen(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Watch(action="advise"))
    cluster.begin()
    cluster.step(0)
    cluster.stopped.add(cluster.state.roster.places[3].pid)
    cluster.run(5.0)
    assert [(fault.cause, fault.rank, fault.state) for fault in cluster.state.book.faults] == [("frozen", 3, "advised")]
    assert cluster.state.generation == 1 and cluster.state.stage == "run"
    cluster.stopped.clear()
    cluster.step(1)
    assert cluster.state.stage == "run", "it thawed by itself, and the job goes on"


def test_a_frozen_rank_is_dismissed_before_its_slot_is_used_again(cluster: Cluster) -> None:
    pid = cluster.state.roster.places[3].pid
    cluster.stopped.add(pid)
    cluster.run(0.3)
    assert [(command.pid, command.kill) for command in cluster.commands(p.Dismiss)] == [(pid, True)]
    assert cluster.state.roster.places[3].card == "b/2"


def test_a_lost_host_is_replaced_and_refused_when_it_returns(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, spares=2)
    cluster.begin()
    cluster.step(0)
    cluster.mute.add("b")
    cluster.run(5.0)
    assert [(fault.cause, fault.host) for fault in cluster.state.book.faults] == [("host", "b")]
    assert [proc.host for proc in cluster.state.roster.places] == ["a"] * 4 and cluster.state.stage == "run"
    assert [peer.host for peer in cluster.commands(p.Form)[-1].peers] == ["a"]
    cluster.mute.clear()
    cluster.run(0.5)
    assert "host.refused" in cluster.kinds() and cluster.commands(p.Refused)
    assert len(cluster.state.roster.places) == 4 and "b" in cluster.state.roster.lost


def test_a_missed_event_makes_the_agent_tell_everything(cluster: Cluster) -> None:
    cluster.mute.add("b")
    cluster.end_process("b", 0)  # told into the void
    cluster.mute.clear()
    assert not cluster.commands(p.WhoAreYou)
    cluster.run(0.5)
    assert cluster.commands(p.WhoAreYou)
    assert [(fault.cause, fault.rank) for fault in cluster.state.book.faults] == [("exit", 2)]
    assert cluster.state.stage == "run"


def test_every_rank_gets_the_same_answer_about_a_bad_step(cluster: Cluster) -> None:
    for proc in cluster.state.roster.places:
        cluster.say(proc.host, proc.slot, m.Bad(1, 2, 0, [3]))
    cluster.run(0.2)
    answers = [command.message for command in cluster.commands(p.ToSlots) if isinstance(command.message, m.Decide)]
    assert answers == [m.Decide(2, 0, "redo")] * 4
    assert len(cluster.state.book.faults) == 1, "told once, not four times"
    assert cluster.state.book.faults[0].card == "b/1"


def test_a_bad_step_on_the_replaced_card_too_is_skipped(cluster: Cluster) -> None:
    def vote(attempt: int) -> m.Decide | None:
        before = len(cluster.sent)
        for proc in cluster.state.roster.places:
            cluster.say(proc.host, proc.slot, m.Bad(cluster.state.generation, 2, attempt, [3]))
        cluster.run(0.3)
        answers = [c.message for _, c in cluster.sent[before:] if isinstance(c, p.ToSlots) and isinstance(c.message, m.Decide)]
        return answers[0] if answers else None

    assert [answer and answer.action for answer in (vote(0), vote(1))] == ["redo", "rotate"]
    assert vote(2) is None and cluster.state.generation == 2, "bad with other data too: the card is replaced"
    answer = vote(0)
    assert answer is not None and answer.action == "skip", "the other card found the same"


def test_an_outlier_is_applied_where_the_guard_only_advises(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Watch(action="advise"))
    cluster.begin()
    cluster.step(0)
    answers = []
    for attempt in range(3):
        before = len(cluster.sent)
        for proc in cluster.state.roster.places:
            cluster.say(proc.host, proc.slot, m.Bad(1, 2, attempt, [3], "outlier", ["own gradient = 20"]))
        cluster.run(0.3)
        sent = [c.message for _, c in cluster.sent[before:] if isinstance(c, p.ToSlots)]
        answers.append({message.action for message in sent if isinstance(message, m.Decide)})
    assert answers == [{"redo"}, {"rotate"}, {"apply"}]
    (fault,) = cluster.state.book.faults
    assert (fault.cause, fault.rank, fault.state) == ("outlier", 3, "advised") and cluster.state.stage == "run"
    assert "own gradient = 20" in str(fault.evidence.facts)


def test_a_rule_of_the_training_ends_the_job(cluster: Cluster) -> None:
    for proc in cluster.state.roster.places:
        cluster.say(proc.host, proc.slot, m.Halt(1, 2, "step 2: the loss jumped, the card"))
    cluster.run(0.2)
    assert cluster.state.over and "job.failed" in cluster.kinds() and not cluster.state.book.faults


def test_a_stale_generation_cannot_commit_a_checkpoint(cluster: Cluster) -> None:
    def permits() -> list[bool]:
        return [c.message.allowed for c in cluster.commands(p.ToSlots) if isinstance(c.message, m.Permit)]

    proc = cluster.state.roster.places[1]
    cluster.say(proc.host, proc.slot, m.MayCommit(1, 1))
    cluster.drain()
    assert permits() == [True]
    cluster.end(2)
    cluster.run(0.3)
    cluster.say(proc.host, proc.slot, m.MayCommit(1, 1))
    cluster.drain()
    assert permits() == [True], "a question of generation 1 gets no permission any more"


def test_a_restarted_controller_goes_on_without_a_new_generation(cluster: Cluster) -> None:
    cluster.c = cluster.start()
    assert cluster.stage() == "recover" and cluster.state.generation == 1
    cluster.run(1.0)
    assert cluster.state.stage == "run" and cluster.state.generation == 1 and "controller.recovered" in cluster.kinds()
    cluster.end(2)
    cluster.run(0.3)
    assert cluster.state.generation == 2 and cluster.state.stage == "run"


def test_a_controller_restarted_during_a_regroup_declares_a_newer_generation(cluster: Cluster) -> None:
    cluster.answering = False
    cluster.end(2)
    cluster.drain()
    assert cluster.state.stage == "collect" and cluster.state.generation == 2
    cluster.answering = True
    cluster.c = cluster.start()
    cluster.run(1.0)
    assert cluster.stage() == "run" and cluster.state.generation == 3
    assert cluster.state.roster.places[2].card == "b/2"


def test_a_restarted_controller_remembers_what_was_lost(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, spares=2)
    cluster.begin()
    cluster.step(0)
    cluster.mute.add("b")
    cluster.run(5.0)
    cluster.mute.clear()
    cluster.c = cluster.start()
    cluster.run(1.0)
    assert cluster.state.roster.lost == {"b"} and cluster.state.stage == "run"
    assert cluster.commands(p.Refused)


def test_injected_faults_are_shown_as_injected_and_each_once(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, Watch(action="act", card_failures=99), [Injected("kill", 2, 1)])
    cluster.begin()
    cluster.step(0)
    cluster.end(2)
    cluster.run(0.3)
    cluster.step(1)
    cluster.end(2)
    cluster.run(0.3)
    assert [fault.injected for fault in cluster.state.book.faults] == [True, False]


def test_a_slow_card_is_told_once_and_replaced_when_a_spare_is_ready(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, spares=0)
    cluster.begin()
    cluster.step(3)
    slow = Verdict("slow", (1,), "its own work takes longer", (), onset=1.0)
    window = cluster.state.fleet.window(cluster.now)
    remedies = cluster.c._remedies
    remedies.fault(slow, window)
    assert [fault.state for fault in cluster.state.book.faults] == ["advised"]
    assert remedies.is_borne(slow, window), "it would be told again every tenth of a second"
    cluster.slots["a"][2] = next(cluster.pids)
    cluster.tell("a", lambda n: p.Started(n, 2, cluster.slots["a"][2]))
    cluster.say("a", 2, m.Ready())
    cluster.drain()
    assert not remedies.is_borne(slow, window)
    remedies.fault(slow, window)
    cluster.run(0.5)
    cluster.step(4)
    cluster.run(0.5)
    assert [(fault.id, fault.state) for fault in cluster.state.book.faults] == [("F-0001", "repaired")]
    assert cluster.kinds().count("fault.named") == 1
