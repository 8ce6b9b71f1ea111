"""Judges on made windows: who is named, who is not, and that `unknown` is said where nobody can be."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ninthsky.guard.controller.fleet import RECORD_TYPE, STEPS, Window
from ninthsky.guard.judges import Limits
from ninthsky.guard.judges.exit import judge_exit
from ninthsky.guard.judges.hang import SETTLING_STEPS, WaitFor, judge_frozen, judge_hang, judge_stuck, stuck_limit
from ninthsky.guard.judges.host import judge_host
from ninthsky.guard.judges.nonfinite import Vote, judge_nonfinite
from ninthsky.guard.judges.slow import judge_slow
from ninthsky.guard.probe.record import Phase
from ninthsky.guard.protocol import Exited

LIMITS = Limits()


def window(ranks: int = 4, per_host: int = 2, **fields: Any) -> Window:
    """A healthy fleet in its twentieth step, with some fields replaced."""
    record = np.zeros(ranks, RECORD_TYPE)
    record["generation"], record["rank"], record["step"], record["phase"] = 1, np.arange(ranks), 20, Phase.LOCAL
    record["groups"]["id"][:, 0] = 77
    record["groups"]["enqueued"][:, 0] = record["groups"]["completed"][:, 0] = 40
    hosts = tuple(f"host-{rank // per_host}" for rank in range(ranks))
    healthy = Window(
        now=100.0, generation=1, hosts=hosts, cards=tuple(rank % per_host for rank in range(ranks)), record=record,
        known=np.ones(ranks, bool), heartbeat_age=np.full(ranks, 0.1), stale_cpu=np.zeros(ranks),
        busy_cpu=np.zeros(ranks), state=("S",) * ranks,
        unheld=np.zeros(ranks), quiet=np.full(ranks, 0.05), host_silence=dict.fromkeys(hosts, 0.05),
        host_late=dict.fromkeys(hosts, 0.0), local_wall=np.full((ranks, STEPS), 50.0), local_cpu=np.full((ranks, STEPS), 40.0),
        steps_seen=20, longest_gap=0.2,
    )  # fmt: skip
    return dataclasses.replace(healthy, **fields)


def enter(w: Window, ranks: list[int], group: int = 0) -> None:
    """The ranks have entered one more collective of a group and stand in it."""
    w.record["groups"]["enqueued"][ranks, group] += 1


def add_group(w: Window, name: int, members: list[int], column: int) -> None:
    w.record["groups"]["id"][members, column] = name
    w.record["groups"]["enqueued"][members, column] = w.record["groups"]["completed"][members, column] = 5


# -- hang ------------------------------------------------------------------------------------------------------------------


def test_healthy_fleet_gives_no_verdict() -> None:
    assert judge_hang(window(), LIMITS) == judge_host(window(), LIMITS) == judge_slow(window(), LIMITS) == []


def test_a_stopped_process_is_named_with_state_and_age() -> None:
    w = window(heartbeat_age=np.array([0.1, 0.1, 2.6, 0.1]), state=("S", "S", "T", "S"), quiet=np.full(4, 2.5))
    enter(w, [0, 1, 3])
    (verdict,) = judge_hang(w, LIMITS)
    assert (verdict.cause, verdict.ranks, verdict.confidence) == ("frozen", (2,), 1.0)
    assert {fact.name for fact in verdict.facts} >= {"heartbeat age", "process state", "collectives behind its group"}
    assert verdict.onset == pytest.approx(2.6)


def test_a_stopped_process_is_not_named_before_its_time() -> None:
    assert not judge_hang(window(heartbeat_age=np.array([0.1, 0.1, 2.4, 0.1]), state=("S", "S", "T", "S")), LIMITS)


def test_a_silent_heart_with_busy_processor_is_not_frozen() -> None:
    """An interpreter that is held by a long call (a compilation) beats not, and works."""
    w = window(
        heartbeat_age=np.array([0.1, 0.1, 5.0, 0.1]), stale_cpu=np.array([0, 0, 4.9, 0]), quiet=np.array([2.0, 2.0, 5.0, 2.0])
    )
    assert not judge_frozen(w, LIMITS)


def test_a_starting_process_that_imports_is_not_frozen() -> None:
    w = window(heartbeat_age=np.array([0.1, 0.1, 9.0, 0.1]), quiet=np.full(4, 9.0))
    w.record["phase"][2] = Phase.START
    assert not judge_frozen(w, LIMITS)


def test_a_process_that_waits_for_a_processor_is_not_frozen() -> None:
    """On a crowded machine it is runnable, gets no turn, and cannot beat."""
    age, quiet = np.array([0.1, 0.1, 3.0, 0.1]), np.full(4, 3.0)
    assert judge_frozen(window(heartbeat_age=age, quiet=quiet, state=("S", "S", "D", "S")), LIMITS)
    assert not judge_frozen(window(heartbeat_age=age, quiet=quiet, state=("S", "S", "R", "S")), LIMITS)


def test_when_every_heart_stops_the_machine_stood_still() -> None:
    assert not judge_frozen(window(heartbeat_age=np.full(4, 6.0), quiet=np.full(4, 6.0)), LIMITS)


def test_no_hang_is_judged_while_an_agent_itself_is_late() -> None:
    w = window(
        heartbeat_age=np.array([0.1, 0.1, 2.6, 0.1]), state=("S", "S", "T", "S"), host_late={"host-0": 1.0, "host-1": 0.0}
    )
    assert not judge_hang(w, LIMITS)


def test_stuck_in_code_is_named_by_who_has_not_arrived() -> None:
    w = window(quiet=np.full(4, 3.0))
    enter(w, [0, 1, 2])
    (verdict,) = judge_hang(w, LIMITS)
    assert (verdict.cause, verdict.ranks) == ("stuck", (3,))
    assert "LOCAL" in verdict.text


def test_a_chain_of_waits_leads_to_its_root() -> None:
    """0 and 1 wait for 2 in one group, 2 waits for 3 in another: 3 holds everybody up."""
    w = window(quiet=np.full(4, 3.0))
    add_group(w, 88, [2, 3], 1)
    enter(w, [0, 1])
    enter(w, [2], group=1)
    w.record["groups"]["id"][3, 0] = 0
    graph = WaitFor(w.record)
    assert graph.waited_for.tolist() == [False, False, True, True]
    (verdict,) = judge_stuck(w, LIMITS)
    assert verdict.ranks == (3,)


def test_a_rank_that_never_entered_the_group_is_found() -> None:
    w = window(quiet=np.full(4, 30.0), steps_seen=0)
    w.record["groups"][1] = 0
    enter(w, [0, 2, 3])
    (verdict,) = judge_stuck(w, LIMITS)
    assert verdict.ranks == (1,)


def test_all_arrived_and_nobody_leaves_is_unknown() -> None:
    w = window(quiet=np.full(4, 3.0))
    enter(w, [0, 1, 2, 3])
    (verdict,) = judge_hang(w, LIMITS)
    assert (verdict.cause, verdict.ranks) == ("unknown", ())


def test_different_collectives_under_one_number_are_an_error_of_the_program() -> None:
    w = window(quiet=np.full(4, 3.0))
    enter(w, [0, 1, 2, 3])
    w.record["groups"]["op"][:, 0] = [5, 5, 6, 5]
    (verdict,) = judge_hang(w, LIMITS)
    assert verdict.cause == "mismatch" and verdict.ranks == ()
    assert any(fact.value == "2" for fact in verdict.facts)


def test_a_rank_waiting_for_its_copy_is_not_blamed() -> None:
    w = window(quiet=np.full(4, 3.0), unheld=np.array([0, 0, 0, 3.0]))
    enter(w, [0, 1, 2])
    (verdict,) = judge_hang(w, LIMITS)
    assert (verdict.cause, verdict.ranks) == ("unknown", ()) and "copy" in verdict.text


def test_a_rank_that_writes_a_long_checkpoint_is_not_stuck() -> None:
    for fields in ({"busy_cpu": np.array([0, 0, 0, 2.0])}, {"state": ("S", "S", "S", "D")}):
        w = window(quiet=np.full(4, 3.0), **fields)
        enter(w, [0, 1, 2])
        assert not judge_hang(w, LIMITS)
    w = window(quiet=np.full(4, 30.0), busy_cpu=np.array([0, 0, 0, 29.0]))  # but for ever is too long
    enter(w, [0, 1, 2])
    assert judge_hang(w, LIMITS)[0].ranks == (3,)


def test_slow_first_steps_are_no_hang_and_long_steps_raise_the_limit() -> None:
    assert stuck_limit(window(steps_seen=SETTLING_STEPS - 1), LIMITS) > stuck_limit(window(), LIMITS)
    w = window(quiet=np.full(4, 3.0), steps_seen=1)
    enter(w, [0, 1, 2])
    assert not judge_hang(w, LIMITS)
    w = window(quiet=np.full(4, 3.0), longest_gap=2.0)  # a fleet whose normal steps are silent for two seconds
    enter(w, [0, 1, 2])
    assert not judge_hang(w, LIMITS)


@given(st.integers(3, 40), st.data())
def test_one_absent_rank_is_always_the_root(ranks: int, data: st.DataObject) -> None:
    absent = data.draw(st.integers(0, ranks - 1))
    w = window(ranks)
    enter(w, [rank for rank in range(ranks) if rank != absent])
    assert np.flatnonzero(WaitFor(w.record).roots).tolist() == [absent]


@given(st.integers(2, 6), st.integers(2, 6), st.data())
def test_the_root_is_found_in_a_grid_of_groups(rows: int, columns: int, data: st.DataObject) -> None:
    """Tensor groups (rows) and data groups (columns): the culprit's row waits for it, the others wait for that row."""
    ranks = rows * columns
    w = window(ranks)
    w.record["groups"]["id"] = 0
    culprit = data.draw(st.integers(0, ranks - 1))
    for rank in range(ranks):
        row, column = divmod(rank, columns)
        w.record["groups"]["id"][rank, :2] = [100 + row, 200 + column]
        same_row = row == culprit // columns
        w.record["groups"]["enqueued"][rank, :2] = [7 if rank != culprit else 6, 3 if same_row else 4]
        w.record["groups"]["completed"][rank, :2] = [6 if same_row else 7, 3]
    assert np.flatnonzero(WaitFor(w.record).roots).tolist() == [culprit]


# -- host ------------------------------------------------------------------------------------------------------------------


def test_a_silent_host_is_named_when_others_wait() -> None:
    w = window(host_silence={"host-0": 0.1, "host-1": 4.2}, quiet=np.full(4, 3.0))
    enter(w, [0])
    assert not judge_host(w, LIMITS), "rank 1 is at work of its own: nobody is waited for yet"
    enter(w, [1])
    (verdict,) = judge_host(w, LIMITS)
    assert (verdict.cause, verdict.host, verdict.ranks) == ("host", "host-1", (2, 3))
    assert not judge_hang(w, LIMITS), "its ranks are not blamed one by one"


def test_a_silent_agent_is_no_fault_while_training_goes_on() -> None:
    assert not judge_host(window(host_silence={"host-0": 0.1, "host-1": 60.0}), LIMITS)


def test_hosts_that_go_silent_together_are_one_fault() -> None:
    silence = {f"host-{n}": 4.2 if n in (1, 5) else 0.1 for n in range(8)}
    w = window(16, host_silence=silence, quiet=np.full(16, 3.0))
    enter(w, [rank for rank in range(16) if rank // 2 not in (1, 5)])
    (verdict,) = judge_host(w, LIMITS)
    assert (verdict.host, verdict.ranks) == ("host-1, host-5", (2, 3, 10, 11)) and verdict.text.startswith("2 hosts")
    on_the_way = silence | {"host-5": 3.2}
    assert not judge_host(dataclasses.replace(w, host_silence=on_the_way), LIMITS), "the other is waited for"


def test_a_step_that_is_long_for_everybody_is_no_lost_host() -> None:
    w = window(host_silence={"host-0": 0.1, "host-1": 4.2}, quiet=np.full(4, 3.0), longest_gap=5.0)
    assert not judge_host(w, LIMITS)


def test_a_rank_on_a_silent_host_is_left_to_the_judge_of_hosts() -> None:
    silence = {f"host-{n}": 3.0 if n == 7 else 0.1 for n in range(32)}
    for root, named in ((14, []), (20, [(20,)])):
        w = window(64, quiet=np.full(64, 3.5), host_silence=silence)
        enter(w, [rank for rank in range(64) if rank != root])
        assert [verdict.ranks for verdict in judge_hang(w, LIMITS)] == named


def test_half_a_large_fleet_is_not_given_up_as_soon_as_one_host() -> None:
    silence = {f"host-{n}": 5.0 if n < 40 else 0.1 for n in range(100)}
    w = window(100, 1, host_silence=silence, quiet=np.full(100, 5.0))
    assert not judge_host(w, LIMITS), "it may be this controller that was deaf"
    gone = {host: 25.0 if seconds > 1 else 0.1 for host, seconds in silence.items()}
    (verdict,) = judge_host(dataclasses.replace(w, host_silence=gone), LIMITS)
    assert len(verdict.ranks) == 40


def test_if_every_host_is_silent_the_controller_is_the_one_cut_off() -> None:
    assert not judge_host(window(host_silence={"host-0": 9.0, "host-1": 9.0}, quiet=np.full(4, 9.0)), LIMITS)


# -- exit ------------------------------------------------------------------------------------------------------------------


def test_an_exit_names_the_signal_and_rules_out_memory() -> None:
    verdict = judge_exit(2, Exited(1, 0, 99, -signal.SIGKILL, 0, "log", ""), [(1, "connection reset")])
    assert "SIGKILL" in verdict.text and any("memory" in line for line in verdict.ruled_out)
    assert any("rank" in str(fact.value) for fact in verdict.facts)
    oom = judge_exit(2, Exited(1, 0, 99, -signal.SIGKILL, 1, "log", ""), [])
    assert any("OOM" in fact.name for fact in oom.facts)


def test_an_exit_with_a_status_shows_the_last_line_of_the_log() -> None:
    verdict = judge_exit(0, Exited(1, 0, 99, 1, 0, "x.log", "Traceback\n  ...\nValueError: boom\n"), [])
    assert any(fact.value == "ValueError: boom" for fact in verdict.facts)


# -- slow ------------------------------------------------------------------------------------------------------------------


def times(w: Window, wall: dict[int, float], cpu: dict[int, float], noise: float = 0.02, seed: int = 0) -> Window:
    """Ranks slowed by factors on each clock, with relative noise on every step."""
    rng = np.random.default_rng(seed)
    shape = w.local_wall.shape
    walls, cpus = w.local_wall * rng.normal(1, noise, shape), w.local_cpu * rng.normal(1, noise, shape)
    for rank, factor in wall.items():
        walls[rank] *= factor
    for rank, factor in cpu.items():
        cpus[rank] *= factor
    return dataclasses.replace(w, local_wall=walls, local_cpu=cpus)


def test_extra_work_shows_on_both_clocks() -> None:
    (verdict,) = judge_slow(times(window(), {1: 1.8}, {1: 2.0}), LIMITS)
    assert (verdict.cause, verdict.ranks) == ("slow", (1,))
    assert "processor clock and on the wall clock" in verdict.text


def test_extra_work_drowned_in_wall_noise_still_shows_on_the_processor_clock() -> None:
    (verdict,) = judge_slow(times(window(), {1: 1.25}, {1: 1.8}), LIMITS)
    assert verdict.ranks == (1,) and verdict.text.endswith("on the processor clock")


def test_a_rank_kept_from_running_shows_on_the_wall_only() -> None:
    (verdict,) = judge_slow(times(window(), {3: 1.8}, {}), LIMITS)
    assert verdict.ranks == (3,) and "wall clock only" in verdict.text
    assert any("processor time" in line for line in verdict.ruled_out)


def test_peers_that_were_kept_from_running_make_nobody_slow() -> None:
    """A rank with twice the processor time of the others, and the same wall time, is the only one that ran in peace."""
    assert not judge_slow(times(window(), {}, {2: 2.0}), LIMITS)


def test_a_rank_that_is_stopped_now_and_then_is_slow_on_average() -> None:
    fleet = times(window(steps_seen=STEPS + 10), {}, {})
    fleet.local_wall[1, ::6] *= 3.0  # in most steps it is as quick as the others
    (verdict,) = judge_slow(fleet, LIMITS)
    assert (verdict.cause, verdict.ranks) == ("slow", (1,))


def test_a_few_long_stops_are_no_slow_rank() -> None:
    fleet = times(window(steps_seen=STEPS + 10), {}, {})
    fleet.local_wall[1, 20:24] *= 30.0
    assert not judge_slow(fleet, LIMITS)


def test_a_busy_neighbour_that_slows_a_whole_host_blames_nobody() -> None:
    assert not judge_slow(times(window(), {2: 1.9, 3: 1.8}, {}), LIMITS)


def staged(w: Window) -> Window:
    """Two stages, the second with a third more work; its ranks, and those of the first, are a group each, over all hosts."""
    for stage, members in enumerate((range(0, w.ranks, 2), range(1, w.ranks, 2))):
        add_group(w, 90 + stage, list(members), 1)
    work = np.where(np.arange(w.ranks) % 2, 4 / 3, 1.0)[:, None]
    return dataclasses.replace(w, local_wall=w.local_wall * work, local_cpu=w.local_cpu * work)


def test_peers_are_those_that_do_the_same_work() -> None:
    sharp = dataclasses.replace(LIMITS, slow_ratio=1.1)
    assert not judge_slow(times(staged(window(32, 4)), {}, {}), sharp)
    (verdict,) = judge_slow(times(staged(window(32, 4)), {6: 1.2}, {6: 1.2}), sharp)
    assert verdict.ranks == (6,), "it is still faster than all of the heavier stage"


def test_two_slow_ranks_on_different_hosts_are_both_named() -> None:
    found = judge_slow(times(window(32, 4), {3: 1.8, 21: 1.8}, {3: 1.8, 21: 1.8}), LIMITS)
    assert sorted(verdict.ranks for verdict in found) == [(3,), (21,)]


def test_a_host_whose_ranks_are_slow_on_both_clocks_blames_no_card() -> None:
    slow = dict.fromkeys(range(8, 12), 1.8)
    assert not judge_slow(times(window(64, 4), slow, slow), LIMITS)


def test_a_burst_of_noise_blames_nobody() -> None:
    w = times(window(), {}, {})
    w.local_wall[0, -5:] *= 4
    assert not judge_slow(w, LIMITS)


def test_of_a_calm_fleet_less_is_too_slow_when_it_lasts() -> None:
    long = dataclasses.replace(window(8, 4), steps_seen=200)
    (verdict,) = judge_slow(times(long, {5: 1.2}, {5: 1.2}, 0.01), LIMITS)
    assert verdict.ranks == (5,)
    assert not judge_slow(dataclasses.replace(times(long, {5: 1.2}, {5: 1.2}, 0.01), steps_seen=20), LIMITS), "it must last"
    uneven = {5: 1.2, 2: 1.06, 6: 0.94}
    assert not judge_slow(times(long, uneven, uneven, 0.01), LIMITS), "not calm"
    assert not judge_slow(times(long, {5: 1.08}, {5: 1.08}, 0.01), LIMITS)


def test_without_enough_steps_nobody_is_slow() -> None:
    assert not judge_slow(dataclasses.replace(times(window(), {1: 3.0}, {1: 3.0}), steps_seen=LIMITS.slow_steps), LIMITS)
    assert not judge_slow(times(window(2), {1: 3.0}, {1: 3.0}), LIMITS), "of two, nobody can tell which one is normal"


@given(st.integers(0, 10_000), st.floats(0.02, 0.25))
def test_equal_ranks_under_noise_blame_nobody(seed: int, noise: float) -> None:
    assert not judge_slow(times(window(8, 4), {}, {}, noise, seed), LIMITS)


# -- gradients that are not finite -----------------------------------------------------------------------------------------


def test_redo_then_rotation_tells_card_from_data() -> None:
    once = [Vote(0, (2,))]
    assert judge_nonfinite(9, once, 4)[0] == "once"
    again = [*once, Vote(1, (2,))]
    assert judge_nonfinite(9, again, 4)[0] == "again"
    finding, verdict = judge_nonfinite(9, [*again, Vote(2, (2,), rotated=True)], 4)
    assert finding == "card" and verdict.ranks == (2,)
    finding, verdict = judge_nonfinite(9, [*again, Vote(2, (1,), rotated=True)], 4)
    assert finding == "data" and verdict.ranks == ()
    assert judge_nonfinite(9, [*again, Vote(2, (), rotated=True)], 4)[0] == "gone"


def test_rotation_follows_the_shares_of_the_batch_not_the_numbers_of_ranks() -> None:
    """Two stages of two data ranks, each cut over two tp ranks: rank 5's samples, share 0, go on to the ranks of share 1."""
    shares = (0, 0, 1, 1, 0, 0, 1, 1)
    bad = [Vote(0, (5,), shares=shares), Vote(1, (5,), shares=shares)]
    assert judge_nonfinite(9, [*bad, Vote(2, (7,), rotated=True, shares=shares)], 8)[0] == "data"
    assert judge_nonfinite(9, [*bad, Vote(2, (4,), rotated=True, shares=shares)], 8)[0] == "gone"
    assert judge_nonfinite(9, [*bad, Vote(2, (5,), rotated=True, shares=shares)], 8)[0] == "card"


def test_gradients_far_from_their_peers_are_told_apart_in_the_same_way() -> None:
    votes = [Vote(0, (2,), figures=("own gradient = 20",)), Vote(1, (2,)), Vote(2, (2,), rotated=True)]
    finding, verdict = judge_nonfinite(9, votes, 4, "outlier")
    assert (finding, verdict.cause, verdict.ranks) == ("card", "outlier", (2,))
    assert "far from its peers' with other data too: the card" in verdict.text
    assert any(fact.value == "own gradient = 20" for fact in verdict.facts)


def test_a_sum_that_overflows_blames_no_card() -> None:
    votes = [Vote(0, ()), Vote(1, ()), Vote(2, (), rotated=True)]
    for count in range(1, 4):
        finding, verdict = judge_nonfinite(9, votes[:count], 4)
        assert finding == "everywhere" and verdict.ranks == ()


def test_most_ranks_at_once_is_neither_card_nor_sample() -> None:
    assert judge_nonfinite(9, [Vote(0, (0, 1, 2)), Vote(1, (0, 1, 2))], 4)[0] == "everywhere"
