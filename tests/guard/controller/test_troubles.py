"""What hosts tell of themselves, in the controller: one fault with its reason, advice told once, and who is moved for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ninthsky.guard import protocol as p
from ninthsky.guard.controller.journal import Journal
from ninthsky.guard.faults import Fault, read_faults
from ninthsky.guard.probe import messages as m
from ninthsky.guard.probe.record import Phase
from ninthsky.guard.spec import Watch
from ninthsky.guard.telemetry.note import Note
from tests.guard.controller.test_conductor import Cluster

XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=77, GPU has fallen off the bus."


def cluster(folder: Path, **watch: Any) -> Cluster:
    made = Cluster(folder, Watch(**{"action": "act", "selftest": "off", **watch}))
    made.begin()
    return made


def note(weight: Any = "hard", cause: str = "gpu_fell_off_bus", slot: int = 0, text: str = XID, **fields: Any) -> Note:
    return Note(fields.pop("source", "kernel"), weight, cause, slot, text, **fields)


def tell(made: Cluster, host: str, *notes: Note, problems: list[str] | None = None) -> None:
    made.tell(host, lambda n: p.Notes(n, list(notes), problems or []))
    made.drain()


def ends(made: Cluster, host: str, slot: int, status: int, tail: str = "") -> None:
    pid = made.slots[host][slot]
    made.tell(host, lambda n: p.Exited(n, slot, pid, status, 0, "log", tail))
    del made.slots[host][slot]
    made.drain()


def train(made: Cluster, seconds: float) -> None:
    """Steps of 0.4 s."""
    for _ in range(round(seconds / 0.4)):
        made.step(made.records[made.state.roster.places[0].pid][2])
        made.run(0.4)


def faults(made: Cluster) -> list[Fault]:
    return read_faults(made.folder / "faults")


def named(made: Cluster) -> int:
    return made.kinds().count("fault.named")


def test_an_exit_after_the_host_told_of_the_card_is_one_fault(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    tell(made, "b", note(age=1.0))
    made.run(1.0)
    ends(made, "b", 0, 1, "RuntimeError: CUDA error: unspecified launch failure")
    made.run(8.0)
    (fault,) = faults(made)
    assert (fault.cause, fault.card, named(made)) == ("exit", "b/0", 1)
    assert fault.evidence.where["playbook"] == "gpu_fell_off_bus"
    assert str(fault.evidence.facts[0].value) == XID and "2.0 s before" in fault.evidence.facts[0].source
    assert "gone from the bus" in fault.evidence.verdict and fault.evidence.confidence == 1.0


def test_errors_of_the_program_at_one_step_are_the_cards_where_both_hosts_say_so(tmp_path: Path) -> None:
    """A program that dies of a lost card ends with a traceback and status 1, on two cards at one step: no error of its own."""
    made = cluster(tmp_path)
    tell(made, "b", note())
    ends(made, "b", 0, 1, "RuntimeError")
    made.run(1.0)
    tell(made, "a", note(slot=1, text=XID + " again"))
    ends(made, "a", 1, 1, "RuntimeError")
    assert not made.state.over and [fault.evidence.where["playbook"] for fault in faults(made)] == ["gpu_fell_off_bus"] * 2


def test_a_reason_that_comes_late_is_added_and_told_once(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    ends(made, "b", 0, -6)
    train(made, 1.0)
    late = note(source="exporter", text="Xid 79")
    tell(made, "b", late)
    tell(made, "b", note(age=1.2))
    tell(made, "b", note(slot=1, text="of another card"), note("said", "user_code", text="Xid 13"))
    train(made, 12.0)
    (fault, other) = faults(made)
    assert fault.evidence.where["playbook"] == "gpu_fell_off_bus" and len(fault.evidence.facts) > 2
    assert {str(fact.value) for fact in fault.evidence.facts[:2]} == {XID, "Xid 79"}
    assert (other.cause, other.card) == ("trouble", "b/1")
    assert named(made) == 2 and made.kinds().count("fault.evidence") == 1


def test_a_cards_own_fault_takes_a_lesser_reasons_place(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    tell(made, "b", note("warning", "pcie", 0, "PCIe replays 20 a second", source="exporter"))
    ends(made, "b", 0, -9)
    tell(made, "b", note("warning", "nic_link", -1, "mlx5_core: Link down"))
    tell(made, "b", note(source="exporter", text="Xid 79"))
    tell(made, "b", note("hard", "gpu_ecc", 0, "uncorrectable", source="exporter"))
    (fault,) = faults(made)
    assert fault.evidence.where["playbook"] == "gpu_fell_off_bus" and fault.evidence.verdict.count("behind it") == 1
    assert made.kinds().count("fault.evidence") == 1


def test_a_cards_own_fault_where_it_holds_no_rank_puts_it_in_doubt(tmp_path: Path) -> None:
    made = cluster(tmp_path, selftest="suspected")
    tell(made, "b", note("hard", "gpu_ecc", 2, "Xid 48"))
    train(made, 12.0)
    assert made.state.roster.suspected == {"b/2"}
    ((host, order),) = [(host, sent) for host, sent in made.sent if isinstance(sent, p.SelfTest)]
    assert (host, order.slot) == ("b", 2)


def test_a_cards_own_fault_alone_moves_its_rank_after_a_while(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    tell(made, "a", note(cause="gpu_ecc", slot=1, text="NVRM: Xid (PCI:0000:3b:00): 95, uncontained"))
    train(made, 1.0)
    assert not faults(made), "an exit or a hang may follow, and is the better name"
    train(made, 4.0)
    (fault,) = faults(made)
    assert (fault.cause, fault.card, fault.evidence.where["playbook"]) == ("trouble", "a/1", "gpu_ecc")
    assert "behind it" not in fault.evidence.verdict and len(fault.evidence.facts) == 1
    assert made.state.generation == 2 and made.state.roster.places[1].card == "a/2"
    train(made, 10.0)
    assert named(made) == 1


def test_where_only_advice_is_allowed_it_is_advised_once(tmp_path: Path) -> None:
    made = cluster(tmp_path, action="advise")
    tell(made, "a", note())
    train(made, 20.0)
    (fault,) = faults(made)
    assert (fault.cause, fault.state, made.state.generation, named(made)) == ("trouble", "advised", 1, 1)


def test_a_warning_moves_nobody_and_is_told_once(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    hot = note("warning", "thermal", 1, "temperature 91 C", source="exporter", value=91.0, limit=87.0, unit="C")
    for _ in range(5):
        tell(made, "b", hot)
        train(made, 5.0)
    (fault,) = faults(made)
    assert (fault.cause, fault.state, fault.card, fault.rank) == ("warning", "advised", "b/1", 3)
    assert "drain b/1 at the next checkpoint" in fault.evidence.remedy
    assert named(made) == 1 and made.state.generation == 1


def test_a_warning_of_a_host_and_one_of_its_spare(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    down = note("warning", "nic_link", -1, "mlx5_core 0000:01:00.0 eth2: Link down")
    tell(made, "b", down, note("hard", "gpu_ecc", 2, "Xid 48"))
    tell(made, "a", down)
    train(made, 15.0)
    assert sorted((fault.cause, fault.host, fault.card) for fault in faults(made)) == [
        ("warning", "a", ""), ("warning", "b", ""), ("warning", "b", ""),
    ]  # fmt: skip
    assert made.state.generation == 1


def test_a_fault_that_comes_of_a_warning_goes_on_under_its_number(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    tell(made, "b", note("warning", "pcie", 0, "PCIe replays 1200 added", source="exporter"))
    train(made, 15.0)
    assert [fault.cause for fault in faults(made)] == ["warning"]
    pid = made.slots["b"][0]
    made.stopped.add(pid)
    made.run(3.0)
    (fault,) = faults(made)
    assert (fault.cause, fault.card, fault.rank) == ("frozen", "b/0", 2)
    assert fault.state == "open" and "told as a warning before" in fault.evidence.remedy
    assert made.state.generation == 2 and fault.timeline.began is not None and fault.timeline.began > made.now - 15
    assert made.kinds().count("fault.named") == 1 and made.kinds().count("fault.rung") == 1


def test_nobody_is_behind_but_one_card_told_of_itself(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    tell(made, "b", note("hard", "nvlink", 1, "NVRM: Xid (PCI:0000:5e:00): 74"))
    for rank in range(4):
        proc = made.state.roster.places[rank]
        made.say(proc.host, proc.slot, m.Broken(1, 4, "NCCL error"))
    made.run(2.5)
    (fault,) = faults(made)
    assert (fault.cause, fault.card, fault.evidence.where["playbook"]) == ("trouble", "b/1", "nvlink")
    assert made.state.roster.places[3].card != "b/1"


def test_two_cards_that_told_of_themselves_are_evidence_and_no_name(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    tell(made, "b", note("hard", "nvlink", 1, "NVRM: Xid (PCI:0000:5e:00): 74"))
    tell(made, "a", note("hard", "nvlink", 0, "NVRM: Xid (PCI:0000:3b:00): 74"))
    proc = made.state.roster.places[0]
    made.say(proc.host, proc.slot, m.Broken(1, 4, "NCCL error"))
    made.run(2.5)
    (fault,) = faults(made)
    assert (fault.cause, fault.rank) == ("unknown", None) and fault.evidence.facts[0].name == "kernel log"


def test_what_is_told_again_after_a_lost_message_is_not_new(tmp_path: Path) -> None:
    made = cluster(tmp_path, action="advise")
    tell(made, "a", note())
    train(made, 1.0)
    again = msgspec.structs.replace(made.register("a"), notes=[note(age=1.0)])
    made.queue.append(("a", again))
    train(made, 20.0)
    assert len(faults(made)) == 1


def test_sources_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    tell(made, "a", problems=["http://127.0.0.1:9400/metrics: Connection refused"])
    assert [e["text"] for e in made.events if e["kind"] == "telemetry.problem"] == [
        "http://127.0.0.1:9400/metrics: Connection refused"
    ]
    assert not faults(made)


@pytest.mark.parametrize("count", [10_000])
def test_a_flood_of_notes_stays_small(tmp_path: Path, count: int) -> None:
    made = cluster(tmp_path, action="advise")
    for number in range(count // 20):
        tell(made, "a", *[note("warning", "thermal", 1, f"temperature {number * 20 + k}") for k in range(20)])
    train(made, 20.0)
    assert len(list(made.state.sightings.all())) <= 64 and len(faults(made)) == 1


def anomaly(**fields: Any) -> m.Anomaly:
    given = {"generation": 1, "step": 9, "onset": 8, "record": "C-000009-rise", "rule": "rise", "remedy": "rolled back"}
    given |= {"verdict": "the loss climbs", "facts": ["loss z = 7 (threshold 6)"], "ruled_out": ["one batch"]}
    return m.Anomaly(**{**given, **fields})


def test_a_loss_anomaly_is_filed_beside_what_happened_to_cards(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    made.step(8)
    made.run(0.5)
    ends(made, "b", 0, -9)
    made.run(2.0)
    generation = made.state.generation
    for _ in range(2):  # its step was done again
        made.say("a", 0, anomaly(generation=generation))
        made.drain()
    exit_, loss = faults(made)
    assert (loss.cause, loss.state, loss.rank, loss.evidence.where["record"]) == ("loss", "repaired", None, "C-000009-rise")
    assert any(exit_.id in str(fact.value) for fact in loss.evidence.facts)
    assert loss.evidence.remedy == "rolled back" and made.state.generation == generation
    made.say("a", 0, m.Halt(generation, 10, "the loss climbs: n9 why C-000009-rise"))
    made.drain()
    assert faults(made)[1].state == "stopped" and made.state.stage == "failed"
    assert Journal(made.folder / "journal.jsonl").entries[-1]["kind"] == "done"


def test_a_loss_anomaly_that_is_injected_says_so(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    made.say("a", 0, anomaly(injected=True, remedy="advised only: step skipped"))
    made.drain()
    (fault,) = faults(made)
    assert fault.injected and "injected" in fault.evidence.verdict and fault.state == "advised"
    assert fault.evidence.remedy == "advised by [train.control]: step skipped"
    assert any("no fault since it began" in text for text in fault.evidence.ruled_out)


def test_storage_stalls_are_borne_and_over_when_ranks_get_on(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    for step in range(6):
        made.step(step)
        made.run(0.4)
    for pid, (generation, rank, step, _) in list(made.records.items()):
        made.records[pid] = (generation, rank, step, Phase.DATA)
    made.run(8.0)
    (fault,) = faults(made)
    assert (fault.cause, fault.state, fault.rank) == ("data", "advised", None) and made.state.generation == 1
    made.step(7)
    made.run(0.5)
    assert faults(made)[0].state == "repaired" and named(made) == 1
