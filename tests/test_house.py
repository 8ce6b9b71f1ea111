"""The house itself: floors, light imports, no torch for who needs none, every verb there, every stage well formed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ninthsky import errors
from ninthsky.cli import STAGE_MODULES, VERBS
from ninthsky.config.schema import Settings
from ninthsky.road import stages
from tests.conftest import ROOT

BIN = Path(sys.executable).parent


def n9(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "n9", *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def imported_by(program: str) -> set[str]:
    code = f"{program}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_floors() -> None:
    result = subprocess.run([BIN / "lint-imports"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout


def test_help_imports_nothing_heavy() -> None:
    modules = imported_by("from ninthsky.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass")
    assert not modules & {"torch", "numpy", "pyarrow", "pydantic", "plotly", "zmq", "numba"}


@pytest.mark.parametrize(
    "module", [*STAGE_MODULES, "ninthsky.guard.cli", "ninthsky.guard.controller.process", "ninthsky.guard.agent.process"]
)
def test_planning_and_watching_need_no_torch(module: str) -> None:
    assert "torch" not in imported_by(f"import {module}")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    result = n9(verb, "--help")
    assert result.returncode == 0, result.stderr
    assert verb in result.stdout


def test_stages_are_well_formed() -> None:
    every = stages()
    names = {stage.name for stage in every}
    assert len(names) == len(every)
    tree = Settings().model_dump()
    for stage in every:
        assert set(stage.needs) <= names
        for path in filter(None, (stage.run, stage.explain)):
            module, _, function = path.partition(":")
            assert callable(getattr(importlib.import_module(module), function))
        for dotted in stage.uses:
            value = tree
            for part in dotted.split("."):
                assert isinstance(value, dict), dotted
                value = value[part]


def test_every_code_in_the_source_is_explained() -> None:
    import re

    source = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert set(re.findall(r"N9-[A-Z]+-\d{3}", source)) == set(errors.EXPLANATIONS)


def test_bad_settings_end_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    mistakes = 'name = "x"\nsise = "tiny"\n[guard]\naction = "adivse"\ntolerence = 1\n[train]\nsteps = "many"\nlr = -1\n'
    (tmp_path / "run.toml").write_text(mistakes)
    result = n9("run", "run.toml", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("error[N9-CFG-") == 5
    assert "did you mean" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert len(json.loads((tmp_path / "runs" / "error.json").read_text())) == 5


@pytest.mark.parametrize(
    "arguments",
    [("run", "missing.toml"), ("plan", "missing.toml"), ("nosuchverb",), ("run",), ("plan", "run.toml", "--only", "kitchen")],
)
def test_usage_errors_end_with_status_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('name = "x"\n')
    result = n9(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize("arguments", [("why", "doc-1"), ("report",), ("watch",)])
def test_without_a_run_the_message_says_what_to_type(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = n9(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert "N9-RUN-001" in result.stderr
    assert "n9 demo" in result.stderr


def test_the_shipped_settings_are_valid(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(n9("init").stdout)
    for file in (tmp_path / "run.toml", ROOT / "src/ninthsky/demo.toml"):
        result = n9("config", str(file), "--json", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert {row["origin"] for row in rows} == {"file", "size", "default"}
        assert n9("plan", str(file), cwd=tmp_path).returncode == 0
