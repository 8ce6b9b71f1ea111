"""The whole road through the real command line, at the smallest size, and what it left behind."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ninthsky.errors import OK, PARTIAL
from ninthsky.guard.faults import read_faults
from ninthsky.road import stages
from ninthsky.run.folder import RunFolder, read_json, read_lines
from tests.browser import opened
from tests.conftest import ROOT
from tests.test_house import n9

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunFolder, subprocess.CompletedProcess[str]]]:
    """`n9 demo --size nano`, once for all tests of this file."""
    place = tmp_path_factory.mktemp("demo")
    result = n9("demo", "--size", "nano", cwd=place)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    yield RunFolder(place / "runs" / "demo"), result
    leftovers = [path.name for path in Path("/dev/shm").glob("n9-*") if "demo" in path.name]
    assert leftovers == []


Demo = tuple[RunFolder, subprocess.CompletedProcess[str]]


def test_every_stage_is_committed(demo: Demo) -> None:
    folder, _ = demo
    assert [stage.name for stage in stages() if not (folder.stage(stage.name) / "manifest.json").exists()] == []
    assert read_json(folder.path / "STATUS.json")["status"] == "ok"  # type: ignore[index]


def test_the_box_has_six_figures_beside_their_rivals(demo: Demo) -> None:
    folder, result = demo
    from ninthsky.run.report import headlines

    lines = headlines(folder, stages())
    assert len(lines) == 6
    for line in lines:
        assert line["rival_value"]
        assert line["command"].startswith("n9 ")
    assert "report:" in result.stdout
    assert "synthetic" in result.stdout


def test_every_fault_is_named_and_repaired_without_losing_a_committed_step(demo: Demo) -> None:
    folder, _ = demo
    settings = read_json(folder.path / "settings.json")
    assert settings is not None
    injected = {(fault["kind"], fault["rank"]) for fault in settings["train"]["inject"]}
    kinds = {"exit": "kill", "frozen": "freeze", "nonfinite": "nan", "slow": "slow"}
    faults = read_faults(folder.stage("train.pretrain") / "faults")
    # At two sequences a rank a page may stand out by itself: then it is the data, and no card is blamed for it.
    others = [fault for fault in faults if not fault.injected]
    assert all(fault.cause == "outlier" and "the data" in fault.evidence.verdict and not fault.replaced_by for fault in others)
    faults = [fault for fault in faults if fault.injected]
    assert {(kinds.get(fault.cause, fault.cause), fault.rank) for fault in faults} == injected
    for fault in faults:
        assert fault.state == "repaired"
        assert fault.committed_steps_lost == 0
        assert fault.host
        assert fault.card
        assert fault.evidence.facts


def test_the_faulty_run_equals_its_faultless_twin_bit_for_bit(demo: Demo) -> None:
    folder, _ = demo
    faulty, twin = (read_json(folder.stage(f"train.{name}") / "result.json") for name in ("pretrain", "twin"))
    assert faulty is not None
    assert twin is not None
    assert faulty["digest"] == twin["digest"]


def test_each_dropped_document_says_why(demo: Demo) -> None:
    folder, _ = demo
    corpus = folder.stage("data.corpus")
    dropped = pq.read_table(corpus / "dropped").to_pylist()
    kept = pq.read_table(corpus / "documents", columns=["id"]).to_pylist()
    pages = pq.read_table(folder.stage("data.pages") / "pages", columns=["id"]).num_rows
    assert pages >= 300
    assert len(dropped) + len(kept) == pages
    assert all(row["stage"] and row["rule"] for row in dropped)
    for row in (dropped[0], kept[0]):
        answer = n9("why", row["id"], "--run", str(folder.path))
        assert answer.returncode == 0, answer.stderr
        assert row["id"] in answer.stdout


def test_why_answers_for_every_kind_of_verdict(demo: Demo) -> None:
    folder, _ = demo
    layout = next(read_lines(folder.stage("layout") / "evidence.jsonl"))["id"]
    answer = next(read_lines(folder.stage("align.dpo") / "generated.jsonl"))["id"]
    (plan, *_) = sorted((folder.stage("radio.plan") / "plan").glob("*.parquet"))
    station = pq.ParquetFile(plan).read(columns=["station"])["station"][0].as_py()
    for id in ("F-0001", layout, answer, f"{station}@3"):
        result = n9("why", id, "--run", str(folder.path), "--json")
        assert result.returncode == 0, result.stderr
        record = json.loads(result.stdout)
        assert record["id"] == id
        assert record["verdict"]
        assert record["facts"]
    missing = n9("why", "F-9999", "--run", str(folder.path))
    assert missing.returncode == 1
    assert "N9-WHY-001" in missing.stderr


def test_the_export_answers_and_equals_transformers(demo: Demo) -> None:
    folder, _ = demo
    proof = read_json(folder.stage("serve.proof") / "proof.json")
    assert proof is not None
    assert proof["logit_difference"] <= 1e-5 * proof["largest_logit"]
    chat = n9("chat", "Debian", "--run", str(folder.path), "--json")
    assert chat.returncode == 0, chat.stderr
    assert json.loads(chat.stdout)["answer"] is not None


def test_a_second_run_reruns_nothing_and_a_changed_setting_only_what_depends_on_it(demo: Demo) -> None:
    folder, _ = demo
    file = str(folder.path / "run.toml")
    again = n9("plan", file, "--store", str(folder.path.parent), "--set", "size=nano", "--json")
    assert {json.loads(line)["stage"] for line in again.stdout.splitlines() if json.loads(line)["runs"]} == set()
    changed = n9(
        "plan", file, "--store", str(folder.path.parent), "--set", "size=nano", "--set", "radio.load_limit=0.5", "--json"
    )
    rows = [json.loads(line) for line in changed.stdout.splitlines()]
    assert {row["stage"] for row in rows if row["runs"]} == {"radio.plan"}
    assert "radio.load_limit 0.6 -> 0.5" in {row["reason"] for row in rows}


def test_what_the_readme_shows_runs(demo: Demo) -> None:
    """Every `n9` command of the README, in the folder of a demo, beside a person's own page.html and counters.csv."""
    folder, _ = demo
    place = folder.path.parent.parent
    (place / "page.html").write_text(
        "<html><body><nav><a href=/>home</a></nav><p>" + "The quick brown fox. " * 60 + "</p></body></html>"
    )
    hours = [(cell, day, hour) for cell in "abc" for day in range(1, 29) for hour in range(24)]
    rows = [f"2026-01-{day:02d}T{hour:02d}:00,S1,{cell},{0.1 + 0.02 * hour}" for cell, day, hour in hours]
    (place / "counters.csv").write_text("ts,station,cell,load\n" + "\n".join(rows) + "\n")
    shown = re.findall(r"(?:^|`)(n9 [^`\n]+?)(?=`|  |$)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(shown) > 12
    elsewhere = {
        "n9 why ID": "a pattern, not a command",
        "n9 demo": "ran already",
        "n9 run run.toml": "the same road at full size",
        "n9 serve": "serves until it is stopped: tests/serve",
    }
    for line in sorted({line.strip(".,:") for line in shown} - set(elsewhere)):
        words, _, target = line.partition(" > ")
        result = n9(*shlex.split(words)[1:], cwd=place)
        assert result.returncode in (OK, PARTIAL), f"{line}: {result.stdout[-800:]}{result.stderr[-800:]}"
        if target:
            (place / target).write_text(result.stdout)


@pytest.mark.browser
def test_the_report_in_a_browser(demo: Demo, chromium: str) -> None:
    folder, _ = demo
    with opened(chromium, folder.path / "report.html") as page:
        assert page.locator("#status").inner_text() == "ok"
        assert page.locator(".card").count() == 6
        for room in ("data", "layout", "train", "align", "signal", "radio", "serve", "limits"):
            assert page.locator(f"section#{room}").count() == 1
        assert page.locator(".plot svg.main-svg").count() >= 4
        assert page.get_by_text("synthetic").count() > 0
        for text in ("F-0001", "F-0004"):
            assert page.get_by_text(text).count() > 0
