from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.radio.rows import rows_of

Write = Callable[..., Path]

# A finder that has no torch, as on a machine with only `ninthsky[radio]`.
WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "safetensors", "tokenizers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from ninthsky.cli import main
sys.argv[0] = "n9"
main()
"""


def n9(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "radio", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_plan_why_and_backtest_of_a_file_without_torch(write: Write, tmp_path: Path) -> None:
    path, out = str(write(rows_of(days=21))), str(tmp_path / "out")
    plan = n9("plan", path, "--out", out, "--json")
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["stations"] == 1
    why = n9("why", "S@3", "--plan", out)
    assert "2 of 3 carriers asleep" in why.stdout
    backtest = n9("backtest", path)
    assert backtest.returncode == 0, backtest.stderr
    for word in ("fast path", "hour-of-day mean", "hourly maximum", "night window", "perfect foresight", "Assumed"):
        assert word in backtest.stdout


def test_what_is_wrong_is_said_without_a_traceback(write: Write, tmp_path: Path) -> None:
    bad = n9("plan", str(write([(*row[:3], 100 * row[3]) for row in rows_of(days=21)])), "--out", str(tmp_path / "out"))
    assert bad.returncode == 1
    assert bad.stderr.startswith("error[N9-RAD-001]") and "--unit percent" in bad.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--epsilon", "1.5"), ("--min-off-hours", "0"), ("--column", "load"), ("--column", "x=y")])
def test_impossible_options_end_with_status_2(write: Write, option: tuple[str, str]) -> None:
    from ninthsky.errors import UserError
    from ninthsky.radio.cli import app

    with pytest.raises(UserError) as caught:
        app(["plan", "counters.csv", *option], exit_on_error=False, result_action="return_value")
    assert caught.value.code == "N9-CFG-012"  # the front door gives settings errors the status 2
