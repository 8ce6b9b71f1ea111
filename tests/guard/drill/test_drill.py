"""The drill on a made clock: scenario files, the simulated fleet, and small drills of every kind of fault."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ninthsky.errors import UserError
from ninthsky.guard.drill import rates
from ninthsky.guard.drill.clocked import ClockedDrill
from ninthsky.guard.drill.noise import recorded, relative
from ninthsky.guard.drill.quiet import quiet_days
from ninthsky.guard.drill.scenario import Conditions, Effects, Scenario, load, parse, shipped
from ninthsky.guard.drill.sheet import as_text, poisson_upper, run_clocked, sheet
from ninthsky.guard.drill.simulator import FREE, LOCAL, Layout, SimulatedFleet, Strike
from ninthsky.guard.probe.record import Phase
from ninthsky.guard.probe.record import parse as parse_record
from ninthsky.guard.spec import HostSpec, JobSpec

FILE = """
order = "given"
[conditions]
skew = 500.0
lost = 0.01
delay = 0.3
[[fault]]
name = "frozen in the rack"
like = "freeze"
[[fault]]
name = "transport of one pipeline"
expect = "unknown"
effects = { halts = "pp", whole_group = true }
[[fault]]
name = "all agents late"
who = "fleet"
expect = "nothing"
effects = { late = 0.8, lasts = 6.0 }
"""


# -- scenario files --------------------------------------------------------------------------------------------------------


def test_a_scenario_begins_from_kinds_and_says_what_is_other(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(FILE)
    scenario = load(path)
    first, second, _ = scenario.fault
    assert first.effects == shipped().named("freeze").effects and (first.expect, first.measure) == ("frozen", "hang")
    assert second.effects == Effects(halts="pp", whole_group=True) and scenario.conditions.skew == 500.0
    assert scenario.named("kill").expect == "exit"
    as_json = tmp_path / "mine.json"
    as_json.write_text(json.dumps({"fault": [{"name": "x", "like": "kill", "effects": {"exit": 3}}]}))
    assert load(as_json).fault[0].effects.exit == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fault = 3", "at least one"),
        ("[[fault]", "not a scenario"),
        ('[[fault]]\nname = "x"', "no effect"),
        ('[[fault]]\nname = "x"\neffects = { wal = 2.0 }', "wal"),
        ('[[fault]]\nname = "x"\nlike = "nobody"', "'nobody'"),
        ('[[fault]]\nname = "x"\neffects = { wall = -1.0 }', "factors over 0"),
        ('[[fault]]\nname = "x"\nalso = "nobody"\neffects = { exit = 1 }', "'nobody'"),
        ('[[fault]]\nname = "x"\neffects = { exit = 1, on = 3.0 }', "go together"),
        ('[[fault]]\nname = "x"\ncount = 0\neffects = { exit = 1 }', "count"),
        ('[conditions]\nlost = 0.9\n[[fault]]\nname = "x"\neffects = { exit = 1 }', "conditions.lost"),
        ('[[fault]]\nname = "x"\nexpect = "magic"\neffects = { exit = 1 }', "magic"),
    ],
)
def test_what_is_wrong_in_a_scenario_is_one_clear_error(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, "mine.toml")
    assert caught.value.code == "N9-GRD-040" and said in caught.value.what and caught.value.where == "mine.toml"


def test_a_missing_scenario_and_an_odd_fleet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="N9-GRD-040"):
        load(tmp_path / "nothing.toml")
    with pytest.raises(UserError, match="N9-GRD-041"):
        ClockedDrill(60, shipped(), 1)
    with pytest.raises(UserError, match="N9-GRD-041"):
        ClockedDrill(1_000_000, shipped(), 1)


def test_rates_replace_the_weights_of_what_they_are_about(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("cause,expected_per_day_at_18432\nGPU HBM3 memory,2.0\npower supply,1.0\nsomething else,9.0\n")
    weights = {fault.name: fault.weight for fault in rates.weighed(shipped(), path).fault}
    assert weights["kill"] == pytest.approx(weights["error"]) == pytest.approx(weights["host_cut"])
    assert weights["stuck"] == shipped().named("stuck").weight
    assert sum(weights[name] for name in ("kill", "error", "host_cut")) == pytest.approx(0.6 * sum(weights.values()))


# -- the simulated fleet ---------------------------------------------------------------------------------------------------


def made_fleet(world: int = 64) -> SimulatedFleet:
    fleet = SimulatedFleet(world, 1, recorded(), Conditions(noise=0.1), np.random.default_rng(3))
    for rank in range(world):
        process = rank // 8 * 9 + rank % 8
        fleet.rank[process], fleet.generation[process], fleet.holder[rank] = rank, 1, process
    fleet.start(1, 0, 100.0)
    return fleet


def test_every_rank_is_in_one_group_of_each_kind_and_groups_have_their_size() -> None:
    layout = Layout(512)
    for name, group in layout.group.items():
        assert (np.bincount(group) == layout.sizes[name]).all(), name
    assert math.prod(layout.sizes[name] for name in ("tp", "pp", "dp")) == 512


def test_a_rank_that_stays_holds_its_groups_one_after_the_other() -> None:
    fleet = made_fleet()
    victim = 13
    process = fleet.holder[[victim]]
    fleet.strike(Strike(Effects(halts="local"), process, frozenset([1]), 100.1), 100.1)
    fleet.advance(110.0)
    assert fleet.step == 0 and fleet.stays[victim] == LOCAL and (fleet.stays != FREE).all()
    mates = np.flatnonzero(fleet.layout.group["tp"] == fleet.layout.group["tp"][victim])
    assert (fleet.stays[mates[mates != victim]] == 1).all()
    record = parse_record(fleet.records(fleet.holder[[victim]], 110.0)[0].tobytes())
    assert record is not None and (record.rank, record.phase, record.step) == (victim, Phase.LOCAL, 0)
    assert all(group.enqueued == group.completed for group in record.groups)
    waiting = parse_record(fleet.records(fleet.holder[mates[:1]], 110.0)[0].tobytes())
    assert waiting is not None and any(group.enqueued == group.completed + 1 for group in waiting.groups)
    fleet.heal(111.0)
    fleet.advance(115.0)
    assert fleet.step > 0 and (fleet.stays == FREE).all()


def test_slow_work_makes_the_rank_slow_and_the_step_with_it() -> None:
    fleet = made_fleet()
    fleet.strike(Strike(Effects(wall=3.0), fleet.holder[[5]], frozenset([0]), 100.0), 100.0)
    fleet.advance(120.0)
    assert fleet.local[5] > 2.5 * np.median(fleet.local) and fleet.end - fleet.begun > fleet.local[5]


def test_noise_is_relative_to_each_rank_and_both_clocks_belong_together() -> None:
    noise = relative([np.array([[10.0, 5.0]] * 25 + [[20.0, 6.0]]), np.array([[1.0, 1.0]] * 3)], "made")
    assert noise.wall.max() == 2.0 and noise.cpu.max() == pytest.approx(1.2) and len(noise.wall) == 21
    shipped_noise = recorded()
    assert len(shipped_noise.wall) == len(shipped_noise.cpu) > 1000 and "torch ranks" in shipped_noise.how
    assert np.median(shipped_noise.wall) == pytest.approx(1.0, abs=0.02)


# -- drills ----------------------------------------------------------------------------------------------------------------


def outcomes(drill: ClockedDrill) -> dict[str, list[Any]]:
    return {outcome.name: [outcome.result, outcome.told] for outcome in drill.outcomes}


def test_every_kind_that_ends_at_once_or_hangs_is_named() -> None:
    quick = [fault for fault in shipped().fault if fault.expect != "slow" and not fault.effects.lasts]
    drill = ClockedDrill(64, Scenario(fault=quick, order="given"), 6)
    drill.run(len(quick))
    assert {name: result for name, (result, _) in outcomes(drill).items()} == {fault.name: "exact" for fault in quick}
    assert all(outcome.evicted_wrongly == 0 for outcome in drill.outcomes)
    figures = sheet(drill, quiet_days(0.0, 64, drill.noise, 0.1, 0.0, 1.1, drill.chance))
    assert figures["exact"] == 1.0 and figures["p99_hang_s"] > 2.0 and figures["wrong_evictions_upper_per_30_days"] is None
    assert figures["classes"]["two_at_once"]["n"] == 2 and as_text(figures).startswith("SIMULATED")


def test_slow_ranks_are_named_and_noisy_neighbours_are_not() -> None:
    kinds = [fault for fault in shipped().fault if fault.name in {"slow_work", "slow_duty", "noisy_neighbour"}]
    drill = ClockedDrill(128, Scenario(fault=kinds, order="given"), 7)
    drill.run(3)
    assert [outcome.result for outcome in drill.outcomes] == ["exact"] * 3, outcomes(drill)


def test_a_scenario_under_lost_and_late_messages_and_skewed_clocks() -> None:
    figures = run_clocked(64, 3, 8, parse(FILE, "mine.toml"), 0.02, lambda _: None)
    assert (figures["exact"], figures["wrong"], figures["simulated"]) == (1.0, 0.0, True), figures["classes"]
    assert figures["quiet_days"] == pytest.approx(0.02) and figures["quiet_evictions"] == 0


def test_a_wrong_name_counts_as_wrong() -> None:
    scenario = parse('[[fault]]\nname = "x"\nlike = "kill"\nexpect = "frozen"', "mine.toml")
    drill = ClockedDrill(64, scenario, 9)
    drill.run(1)
    assert [outcome.result for outcome in drill.outcomes] == ["wrong"]


@pytest.mark.parametrize(("hosts", "seconds"), [(2, 0.1), (230, 0.1), (1152, 0.5), (2304, 1.0), (9000, 1.0)])
def test_large_fleets_report_less_often(hosts: int, seconds: float) -> None:
    specs = [HostSpec(name=f"h{number}", slots=1) for number in range(hosts)]
    spec = JobSpec(run_id="x", folder="x", command=["x"], world=hosts, hosts=specs)
    assert spec.report_seconds == pytest.approx(seconds, abs=0.001)


def test_no_event_in_n_days_bounds_the_rate_by_three_in_n_days() -> None:
    assert poisson_upper(0) == pytest.approx(2.996, abs=1e-3) and poisson_upper(3) == pytest.approx(7.754, abs=1e-3)
