"""Fewer ranks, all processes anew, older state: the upper rungs, on a made clock."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ninthsky.guard import protocol as p
from ninthsky.guard.controller.known import known_cause
from ninthsky.guard.controller.ladder import History, Means, climb
from ninthsky.guard.controller.placement import Card, choose_resume_step, crowd
from ninthsky.guard.controller.worlds import Worlds, largest
from ninthsky.guard.judges import Verdict
from ninthsky.guard.probe import messages as m
from ninthsky.guard.protocol import ShardInfo
from ninthsky.guard.spec import Watch
from tests.guard.controller.test_conductor import Cluster

DISK_FULL = "Traceback (most recent call last):\nOSError: [Errno 28] No space left on device: '/data/step-40'\n"


def shrinking(folder: Path, **watch: float) -> Cluster:
    """Four ranks on two hosts without spares, that may become three or two."""
    cluster = Cluster(folder, Watch(action="act", **watch), spares=0, worlds=[3, 2])  # type: ignore[arg-type]
    cluster.begin()
    cluster.step(0)
    cluster.step(1)
    return cluster


def assigned(cluster: Cluster) -> dict[int, m.Assign]:
    """Of the newest generation."""
    places = [
        place for form in cluster.commands(p.Form) if form.generation == cluster.state.generation for place in form.places
    ]
    return {place.assign.rank: place.assign for place in places}


def end_for_good(cluster: Cluster, rank: int) -> None:
    """Its process ends, and no other takes its slot."""
    proc = cluster.state.roster.places[rank]
    cluster.end_process(proc.host, proc.slot, respawn=False)


# -- what is pure ---------------------------------------------------------------------------------------------------------


def test_a_step_belongs_to_the_ranks_that_did_it() -> None:
    worlds = Worlds([(-1, 8), (10, 6), (20, 4)])
    assert [worlds.at(step) for step in (0, 10, 11, 20, 21)] == [8, 8, 6, 6, 4]
    worlds.begin(15, 8)  # rolled back, and grown
    assert [worlds.at(step) for step in (10, 15, 16, 30)] == [8, 6, 8, 8]
    assert Worlds(worlds.rows).rows == worlds.rows


@given(st.lists(st.tuples(st.integers(-1, 30), st.integers(1, 9)), min_size=1, max_size=8))
def test_worlds_are_as_if_each_generation_wrote_over_the_rest(rows: list[tuple[int, int]]) -> None:
    worlds, steps = Worlds([(-1, 5)]), [5] * 40
    for after, ranks in rows:
        worlds.begin(after, ranks)
        steps[after + 1 :] = [ranks] * (39 - after)
    assert [worlds.at(step) for step in range(40)] == steps


def test_shards_of_another_number_of_ranks_make_no_whole() -> None:
    held = [ShardInfo(rank, step, 1, "") for rank, step in ((0, 10), (1, 10), (2, 10), (0, 11), (1, 11), (0, 12))]
    worlds = Worlds([(-1, 4), (10, 2)])
    assert choose_resume_step({"a": held}, worlds) == 11
    assert choose_resume_step({"a": held}, worlds, verified=10) == -1, "of the four that did step 10 one is gone"
    assert choose_resume_step({"a": [*held, ShardInfo(3, 10, 1, "")]}, worlds, verified=10) == 10


def test_fewer_ranks_sit_host_by_host_and_who_trained_goes_on() -> None:
    before = [Card("a", 0, 1), Card("a", 1, 2), Card("b", 0, 3), Card("b", 1, 4)]
    left = [Card("b", 1, 4), Card("a", 2, 9), Card("b", 0, 3), Card("a", 0, 1)]
    assert crowd(before, ["a", "b"], left, 3, {}) == [Card("a", 0, 1), Card("b", 0, 3), Card("b", 1, 4)]
    with pytest.raises(ValueError):
        crowd(before, ["a", "b"], left, 5, {})
    assert [largest(8, [6, 4], cards) for cards in (9, 8, 7, 5, 3)] == [8, 8, 6, 4, 0]


# -- the ladder's upper rungs -----------------------------------------------------------------------------------------------

NOBODY, EXIT = Verdict("unknown", (), "", ()), Verdict("exit", (1,), "", ())
WATCH = Watch(action="act")


def test_nobody_to_blame_rebuild_rebuild_restart_all_roll_back_stop() -> None:
    rungs = [climb(NOBODY, History(rebuilds=tried), WATCH, 5, 0.0, 0, Means(4, 4, 0, 40)).rung for tried in range(5)]
    assert rungs == ["rebuild", "rebuild", "restart", "rollback", "stop"]
    assert climb(NOBODY, History(rebuilds=3), WATCH, 5, 0.0, 0, Means(4, 4, 0, 40)).verified == 39
    assert climb(NOBODY, History(rebuilds=3), WATCH, 5, 0.0, 0, Means(4, 4, 0)).rung == "stop", "there is no checkpoint"
    often = History(rebuilds=2, restarts=[10.0, 20.0, 30.0])
    assert climb(NOBODY, often, WATCH, 5, 40.0, 0, Means(4, 4, 0)).rung == "stop"
    assert climb(NOBODY, often, WATCH, 5, 3700.0, 0, Means(4, 4, 0)).rung == "restart", "an hour ago"


def test_fewer_ranks_only_where_no_card_is_left() -> None:
    assert climb(EXIT, History(), WATCH, 5, 0.0, -9, Means(4, 4, 0)).rung == "regroup", "its process is started again"
    fewer = climb(EXIT, History(), WATCH, 5, 0.0, -9, Means(4, 3, 0))
    assert (fewer.rung, fewer.evict) == ("shrink", (1,)) and "3 ranks of 4" in fewer.text
    assert climb(EXIT, History(), WATCH, 5, 0.0, -9, Means(4, 0, 0)).rung == "stop"


@pytest.mark.parametrize(
    ("tail", "cause"),
    [
        (DISK_FULL, "disk_full"),
        ("Traceback (most recent call last):\nPermissionError: [Errno 13] Permission denied: '/data/x'\n", "permission"),
        ("Traceback (most recent call last):\nModuleNotFoundError: No module named 'flash'\n", "version_mismatch"),
        ("Traceback (most recent call last):\nIndexError: list index out of range\n", "user_code"),
        ("Traceback (most recent call last):\nKeyError: 'labels'\n", "user_code"),
    ],
)
def test_what_the_playbook_forbids_is_never_started_again(tail: str, cause: str) -> None:
    known = known_cause(tail)
    assert known is not None and known.cause == cause
    remedy = climb(EXIT, History(), WATCH, 5, 0.0, 1, Means(4, 4, 1), known)
    assert remedy.rung == "stop" and known.person in remedy.text


def test_a_cause_of_the_card_gets_the_rungs_that_it_allows() -> None:
    known = known_cause("RuntimeError: CUDA error: uncorrectable ECC error encountered\n")
    assert known is not None and known.cause == "gpu_ecc"
    assert climb(EXIT, History(), WATCH, 5, 0.0, 1, Means(4, 4, 1), known).rung == "regroup"
    assert climb(EXIT, History(), WATCH, 5, 0.0, 1, Means(4, 3, 0), known).rung == "shrink"
    loader = known_cause("RuntimeError: DataLoader worker (pid(s) 77) exited unexpectedly\n")
    assert loader is not None and loader.ladder == ("restart",)
    again = climb(EXIT, History(), WATCH, 5, 0.0, 1, Means(4, 4, 1), loader)
    assert again.rung == "regroup" and not again.blamed
    assert climb(EXIT, History(), WATCH, 5, 0.0, 1, Means(4, 3, 0), loader).rung == "stop"


def test_words_that_say_little_bind_nobody() -> None:
    assert known_cause("") is None
    assert known_cause("Traceback (most recent call last):\nRuntimeError: something odd\n") is None
    assert known_cause("RuntimeError: Connection closed by peer [10.0.0.1]:46273\n") is None


# -- whole jobs -------------------------------------------------------------------------------------------------------------


def test_a_host_lost_without_spares_shrinks_the_job(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path)
    cluster.mute.add("b")
    cluster.run(5.0)
    assert cluster.stage() == "run" and cluster.state.world == 2
    assert [proc.card for proc in cluster.state.roster.places] == ["a/0", "a/1"]
    (form,) = [form for form in cluster.commands(p.Form) if form.generation == 2]
    assert set(form.held) == {0, 1, 2, 3} and not any(place.source for place in form.places)
    assert {(a.world, a.state_world, a.resume_step) for a in assigned(cluster).values()} == {(2, 4, 1)}
    cluster.step(2)
    (fault,) = cluster.state.book.faults
    assert fault.state == "repaired" and fault.committed_steps_lost == 0
    assert "shrunk from 4 to 2 ranks" in fault.evidence.remedy
    assert next(event for event in cluster.events if event["kind"] == "job.shrunk")["ranks"] == 2


def test_after_a_shrink_the_next_fault_starts_from_the_new_ranks_shards(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path)
    cluster.mute.add("b")
    cluster.run(5.0)
    cluster.end(0)  # at once: only the four's shards are there
    cluster.run(0.3)
    assert {(a.world, a.state_world, a.resume_step) for a in assigned(cluster).values()} == {(2, 4, 1)}
    cluster.step(2)
    cluster.step(3)
    cluster.end(1)
    cluster.run(0.3)
    assert {(a.world, a.state_world, a.resume_step) for a in assigned(cluster).values()} == {(2, 0, 3)}
    assert not [form for form in cluster.commands(p.Form) if form.generation == cluster.state.generation and form.held]


def test_a_card_that_failed_twice_leaves_the_others_to_go_on(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path)
    for step in (2, 3):
        cluster.end(2)
        cluster.run(0.3)
        cluster.step(step)
    assert cluster.state.world == 3 and cluster.state.roster.kept_out == {"b/0"}
    assert [proc.card for proc in cluster.state.roster.places] == ["a/0", "a/1", "b/1"]
    assert cluster.state.book.faults[-1].evidence.remedy.startswith("going on with 3 ranks of 4")
    for step in (4, 5):
        cluster.end(2)
        cluster.run(0.3)
        cluster.step(step)
    assert cluster.state.world == 2 and [proc.card for proc in cluster.state.roster.places] == ["a/0", "a/1"]


def test_too_few_cards_for_any_mesh_page_a_person(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path, card_failures=1)
    for step in (2, 3):
        cluster.end(0)
        cluster.run(0.3)
        cluster.step(step)
    assert cluster.state.world == 2
    cluster.end(0)
    cluster.run(0.3)
    assert cluster.stage() == "failed" and "too few cards are left" in cluster.state.reason
    assert cluster.state.book.faults[-1].state == "stopped"


def test_a_restarted_process_is_waited_for_then_the_job_shrinks_then_it_grows(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path, spare_seconds=20.0)
    host, slot = (proc := cluster.state.roster.places[3]).host, proc.slot
    end_for_good(cluster, 3)
    cluster.run(10.0)
    assert cluster.stage() == "wait"
    cluster.run(11.0)
    assert cluster.stage() == "run" and cluster.state.world == 3
    cluster.step(2)
    cluster.slots[host][slot] = next(cluster.pids)
    cluster.say(host, slot, m.Ready())
    cluster.run(8.0)
    assert cluster.state.world == 3, "not while it has hardly begun"
    cluster.run(5.0)
    assert cluster.stage() == "run" and cluster.state.world == 4 and "job.grown" in cluster.kinds()
    assert {(a.world, a.state_world, a.resume_step) for a in assigned(cluster).values()} == {(4, 3, 2)}
    assert len(cluster.state.book.faults) == 1, "to grow is no fault"


def test_a_shrunk_job_does_not_wait_to_grow_when_a_rank_dies(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path, spare_seconds=5.0)
    end_for_good(cluster, 3)
    cluster.run(6.0)
    assert cluster.state.world == 3
    cluster.step(2)
    cluster.end(0)
    cluster.run(0.5)
    assert cluster.stage() == "run" and cluster.state.world == 3


def test_a_restarted_controller_remembers_how_many_ranks_there_are(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path)
    cluster.mute.add("b")
    cluster.run(5.0)
    cluster.step(2)
    cluster.c = cluster.start()
    cluster.run(1.0)
    assert cluster.stage() == "run" and cluster.state.world == 2 and cluster.state.generation == 2
    assert cluster.state.worlds.rows == [(-1, 4), (1, 2)]


def test_a_full_disk_stops_the_job_at_its_first_word(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path)
    proc = cluster.state.roster.places[2]
    pid = cluster.slots[proc.host].pop(proc.slot)
    cluster.tell(proc.host, lambda n: p.Exited(n, proc.slot, pid, 1, 0, "log", DISK_FULL))
    cluster.run(0.2)
    assert cluster.stage() == "failed" and cluster.state.generation == 1
    (fault,) = cluster.state.book.faults
    assert fault.state == "stopped" and "No space left" in str(fault.evidence.facts)


def broken(cluster: Cluster) -> None:
    """A collective breaks, and every process lives."""
    proc = cluster.state.roster.places[1]
    cluster.say(proc.host, proc.slot, m.Broken(cluster.state.generation, 1, "connection reset"))
    cluster.run(2.0)


def test_groups_that_do_not_form_get_new_processes_then_an_older_state(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path)
    cluster.step(2)
    proc = cluster.state.roster.places[0]
    cluster.say(proc.host, proc.slot, m.MayCommit(1, 1))
    cluster.run(0.1)
    first = [proc.pid for proc in cluster.state.roster.places]
    broken(cluster)
    broken(cluster)
    assert [proc.pid for proc in cluster.state.roster.places] == first, "rebuilt with the same processes"
    broken(cluster)
    assert cluster.stage() == "wait", "all are started anew"
    dismissed = {command.pid for command in cluster.commands(p.Dismiss)}
    assert dismissed == set(first)

    def all_anew() -> None:
        for host, slots in cluster.slots.items():
            for slot in list(slots):
                cluster.end_process(host, slot, -signal.SIGKILL)
        cluster.run(0.5)

    all_anew()
    assert cluster.stage() == "run" and not set(first) & {proc.pid for proc in cluster.state.roster.places}
    assert {a.resume_step for a in assigned(cluster).values()} == {2}, "from the agents' shards, nothing lost"
    assert not cluster.state.roster.kept_out and not cluster.state.history.card_failures
    broken(cluster)
    all_anew()
    assert {(a.resume_step, a.verified) for a in assigned(cluster).values()} == {(-1, 0)}, "the checkpoint holds one step"
    assert cluster.state.committed == -1 and "rollback" in cluster.kinds()
    assert "rolled back" in cluster.state.book.faults[-1].evidence.remedy
    broken(cluster)
    assert cluster.stage() == "failed" and "4 repairs without a step" in cluster.state.reason


def test_a_state_that_is_not_trusted_is_not_gone_on_from(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path)
    cluster.step(2)
    cluster.c._regroup.begin("the replay disagreed from step 2 on", verified=1)
    cluster.run(0.3)
    assert {(a.resume_step, a.verified) for a in assigned(cluster).values()} == {(1, 1)}
    cluster.c._regroup.begin("and from step 1 on", verified=0)
    cluster.run(0.3)
    assert {(a.resume_step, a.verified) for a in assigned(cluster).values()} == {(-1, 0)}, "nobody holds it: the disk"
    cluster.step(1)
    cluster.c._regroup.begin("something else")
    cluster.run(0.3)
    assert {a.verified for a in assigned(cluster).values()} == {None}, "what was done since is trusted again"


def test_two_hosts_that_held_each_others_copies_send_the_job_to_the_disk(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path)
    cluster.shards = {"a": [info for info in cluster.shards["a"] if info.rank < 2], "b": []}
    cluster.mute.add("b")
    cluster.run(5.0)
    assert {(a.world, a.state_world, a.resume_step) for a in assigned(cluster).values()} == {(2, 0, -1)}
    fault = cluster.state.book.faults[0]
    assert "nobody holds rank 2, 3" in fault.evidence.remedy and fault.committed_steps_lost > 0


def test_a_host_that_went_silent_in_a_regroup_is_told_as_a_fault(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path)
    cluster.mute.add("b")
    cluster.end(0)
    cluster.run(6.0)
    assert cluster.stage() == "run" and cluster.state.world == 2
    assert [(fault.cause, fault.host) for fault in cluster.state.book.faults] == [("exit", "a"), ("host", "b")]
    cluster.step(2)
    assert {fault.state for fault in cluster.state.book.faults} == {"repaired"}


def test_what_breaks_while_a_host_is_silent_waits_for_the_judge_of_hosts(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path)
    cluster.mute.add("b")
    cluster.say("a", 0, m.Broken(1, 1, "connection reset"))
    cluster.run(5.0)
    assert [(fault.cause, fault.host) for fault in cluster.state.book.faults] == [("host", "b")]


def test_with_no_host_left_a_person_is_called_and_nothing_is_done(tmp_path: Path) -> None:
    cluster = shrinking(tmp_path)
    cluster.mute |= {"a", "b"}
    cluster.run(25.0)
    assert [(fault.cause, fault.host, fault.state) for fault in cluster.state.book.faults] == [("host", "", "advised")]
    assert cluster.stage() == "run" and cluster.state.generation == 1 and "fault.advised" in cluster.kinds()
    cluster.mute.clear()
    cluster.run(1.0)
    assert cluster.state.book.faults[0].state == "repaired", "it was the controller's own network"


def test_bad_gradients_of_fewer_ranks_are_another_story(tmp_path: Path) -> None:
    """Rank 2's card was replaced for them, and by the shrink rank 2 is another one: it is asked from the beginning."""
    cluster = shrinking(tmp_path, card_failures=1)

    def vote(attempt: int) -> set[str]:
        before = len(cluster.sent)
        for proc in cluster.state.roster.places:
            cluster.say(proc.host, proc.slot, m.Bad(cluster.state.generation, 2, attempt, [2]))
        cluster.run(0.3)
        sent = [c.message for _, c in cluster.sent[before:] if isinstance(c, p.ToSlots)]
        return {message.action for message in sent if isinstance(message, m.Decide)}

    assert [vote(0), vote(1), vote(2)] == [{"redo"}, {"rotate"}, set()]
    assert cluster.state.world == 3 and cluster.stage() == "run"
    assert vote(0) == {"redo"}
