"""The report of a toy run in a real browser: everything shown, nothing fetched, no script error."""

from __future__ import annotations

from pathlib import Path

import pytest

from ninthsky.config.load import parse_settings
from ninthsky.run.engine import run_stages
from ninthsky.run.folder import RunFolder, write_json
from ninthsky.run.progress import PlainScreen
from ninthsky.run.report import build_report, headlines
from tests.browser import opened
from tests.run.toy import STAGES


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "toy")
    settings = parse_settings('name = "toy"', "run.toml")
    run_stages(folder, settings, list(STAGES), PlainScreen())
    write_json(folder.path / "settings.json", settings.model_dump(mode="json"))
    write_json(folder.path / "STATUS.json", {"status": "ok"})
    return folder


def test_headlines_come_in_the_order_of_the_road(folder: RunFolder) -> None:
    assert [line["label"] for line in headlines(folder, list(STAGES))] == ["sum", "<script>alert(1)</script>"]


@pytest.mark.browser
def test_report_in_a_browser(folder: RunFolder, chromium: str) -> None:
    path = build_report(folder, list(STAGES))
    with opened(chromium, path) as page:
        assert page.locator("#status").inner_text() == "ok"
        assert page.locator("#plot-squares svg").count() > 0
        assert page.locator("#table-numbers tbody tr").count() == 3
        assert "real numbers" in page.locator("#limits").inner_text()
        assert "<script>alert(1)</script>" in page.locator(".card").nth(1).inner_text()


@pytest.mark.browser
def test_a_failed_run_gets_a_report_too(folder: RunFolder, chromium: str) -> None:
    write_json(folder.path / "STATUS.json", {"status": "failed", "stage": "toy.sum", "error": "the sum did not come out"})
    (folder.stage("toy.sum") / "manifest.json").unlink()
    with opened(chromium, build_report(folder, list(STAGES))) as page:
        assert page.locator("#status").inner_text() == "failed"
        assert "the sum did not come out" in page.locator("header").inner_text()
