from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ninthsky.address import is_loopback
from ninthsky.errors import UserError
from ninthsky.guard.page.listen import listen
from tests.guard.page.job_files import JobFiles


def refused(folder: Path, host: str = "0.0.0.0", **changes: Any) -> str:
    given = {"certificate": None, "key": None, "behind_proxy": False, "names": (), "look_freely": False, "json_lines": True}
    with pytest.raises(UserError) as caught:
        listen(folder, host, changes.pop("port", 0), **{**given, **changes})
    assert caught.value.code == "N9-GRD-030"
    return caught.value.what


def test_what_would_be_open_to_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    JobFiles(tmp_path)
    monkeypatch.delenv("N9_METRICS_TOKEN", raising=False)
    file = tmp_path / "no.pem"
    file.write_text("none")
    assert "without TLS" in refused(tmp_path) and "without TLS" in refused(tmp_path, "::")
    assert "without its" in refused(tmp_path, "127.0.0.1", key=file)
    assert "/metrics would be open" in refused(tmp_path, behind_proxy=True)
    monkeypatch.setenv("N9_METRICS_TOKEN", "short")
    assert "shorter" in refused(tmp_path, behind_proxy=True)
    monkeypatch.setenv("N9_METRICS_TOKEN", "t" * 16)
    assert "certificate cannot be used" in refused(tmp_path, certificate=file, key=file)
    assert "cannot listen" in refused(tmp_path, "no.such.name.invalid", behind_proxy=True)


def test_only_this_machine_is_loopback() -> None:
    loopback = [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "node7")]
    assert loopback == [True] * 3 + [False] * 3
