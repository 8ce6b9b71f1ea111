"""What every test shares: one thread per process, where real data lie, and a browser that is never skipped in silence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of third-party data for tests; the test is skipped, with the reason, where it is absent."""
    path = Path(os.environ.get("NINTHSKY_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"third-party test data are not at {path}: set NINTHSKY_DATA")
    return path


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the system's Chromium. Missing, it fails the test: a browser test is never skipped in silence."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.fail("no Chromium: apt-get install chromium (`make test` does so where it may)")
    return path
