from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ninthsky.errors import UserError
from ninthsky.guard.page import folder as folder_module
from ninthsky.guard.page.acts import Acts
from ninthsky.guard.page.folder import JobFolder, find_job
from ninthsky.guard.page.view import DELTA_BYTES, View
from ninthsky.guard.picture import FILE, LONGEST, Card, read_picture
from tests.guard.page.job_files import JobFiles


def view_of(files: JobFiles) -> View:
    return View(JobFolder(files.folder), Acts(files.folder))


def test_only_what_changed_is_told(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    view = view_of(files)
    snapshot = view.snapshot()
    assert snapshot["simulated"] and snapshot["injected"] == 1 and snapshot["cards"] == [6, Card.WORKING]
    files.cards[4] = Card.ACCUSED
    files.draw()
    fault = files.fault(injected=True)
    delta = view.step()
    assert delta["cards"] == [4, 1, Card.ACCUSED]
    assert [(shown["id"], shown["name"], shown["injected"]) for shown in delta["faults"]] == [(fault.id, "node-0001/1", True)]
    assert delta["steps"] == [(12, 0.5)] and delta["figures"]["step"] == 12
    assert not {"faults", "cards", "steps"} & set(view.step())
    assert view.snapshot()["faults"][0]["playbook"] == "hw_straggler"


def test_the_largest_fleet_changes_in_small_differences(tmp_path: Path) -> None:
    files = JobFiles(tmp_path, hosts=2304, slots=8)
    view = view_of(files)
    chance = np.random.default_rng(1)
    files.cards[:] = chance.integers(0, 8, len(files.cards))
    for number in range(1, 40):
        files.fault(number)
    sizes = []
    while True:
        files.draw()
        delta = view.step()
        sizes.append(len(msgspec.json.encode(delta)))
        if not {"cards", "faults"} & set(delta):
            break
    assert max(sizes) <= DELTA_BYTES + 200 < 20_000 and len(sizes) > 3
    assert len(view.snapshot()["faults"]) == 39
    assert (np.repeat(view.snapshot()["cards"][1::2], view.snapshot()["cards"][::2]) == files.cards).all()


def test_a_new_start_in_the_same_folder_begins_anew(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    fault = files.fault()
    view = view_of(files)
    view.acts.record("Ada", "here", "not a fault", fault)
    view.step()
    assert view.snapshot()["faults"] and view.snapshot()["figures"]["false_alarms"] == 1
    (files.folder / "events.jsonl").unlink()
    (files.folder / "faults" / f"{fault.id}.json").unlink()
    view.step()
    JobFiles(tmp_path).fault()
    assert view.step() == {"anew": True}
    again = View(view.job, view.acts)
    assert [shown["id"] for shown in again.snapshot()["faults"]] == [fault.id]
    assert again.snapshot()["figures"]["false_alarms"] == 0, "another job's fault of the same number"


def test_cut_and_foreign_files_are_borne(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = JobFiles(tmp_path)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('[1]\n{"kind": "refused", "time": 1, "host": "a", "counts": {"wrong key": 7}}\n{"time": 1, "ki')
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "F-0009.json").write_text("{")
    (tmp_path / FILE).write_bytes(b"no picture")
    job = JobFolder(tmp_path)
    assert job.look() == [] and job.picture is None
    assert job.refused == {"a": {"wrong key": 7}, "page": {"unreadable event": 1}}
    (tmp_path / FILE).write_bytes(b"x" * (LONGEST + 1))
    assert read_picture(tmp_path / FILE) is None
    monkeypatch.setattr(folder_module, "FAULTS_KEPT", 3)
    for number in range(1, 7):
        files.fault(number)
        job.look()
    assert list(job.faults) == ["F-0004", "F-0005", "F-0006"]


def test_the_newest_job_of_a_run_is_found(tmp_path: Path) -> None:
    older, newer = (JobFiles(tmp_path / "stages" / name).folder for name in ("one", "two"))
    os.utime(older / "job.json", (1, 1))
    assert find_job(tmp_path) == newer and find_job(older) == older
    with pytest.raises(UserError) as caught:
        find_job(tmp_path / "nothing")
    assert caught.value.code == "N9-RUN-001"


def test_a_picture_that_grows_old_is_called_old(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    view = view_of(files)
    assert view.snapshot()["figures"]["stale"] is False
    drawn = view.job.picture
    assert drawn is not None
    assert view.step(drawn.head.time + 60)["figures"]["stale"] is True
    files.event("job.done", generation=1, faults=0)
    assert view.step(drawn.head.time + 61)["figures"] | {"goodput": None} == {"stale": False, "end": "done", "goodput": None}
