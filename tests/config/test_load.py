from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ninthsky.config import SettingsError, load_settings
from ninthsky.config.load import parse_settings
from ninthsky.config.schema import Settings
from ninthsky.config.size import SIZES
from ninthsky.errors import EXPLANATIONS, UserError

FIVE_MISTAKES = """\
name = "five"
sise = "tiny"

[guard]
action = "adivse"
tolerence = 0.2

[train]
steps = "many"
budget = "5 parsecs"
"""


def test_all_mistakes_are_told_at_once_with_line_and_suggestion() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(FIVE_MISTAKES, "run.toml")
    mistakes = {mistake.where: mistake for mistake in caught.value.mistakes}
    assert set(mistakes) == {f"run.toml:{line}" for line in (2, 5, 6, 9, 10)}
    assert "did you mean `size`?" in mistakes["run.toml:2"].help
    assert "did you mean 'advise'?" in mistakes["run.toml:5"].help
    assert mistakes["run.toml:6"].code == "N9-CFG-010"
    assert mistakes["run.toml:9"].code == "N9-CFG-011"
    assert "90s" in mistakes["run.toml:10"].what
    assert all(mistake.code in EXPLANATIONS for mistake in mistakes.values())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[mesh]\ndp_shard = 3\n", "N9-CFG-013"),
        ("[mesh]\ndp_shard = 4\nep = 3\n", "N9-CFG-013"),
        ('[train]\nsteps = 10\nbudget = "5s"\n', "N9-CFG-013"),
        ('[[train.inject]]\nkind = "kill"\nrank = 9\n', "N9-CFG-013"),
        ("[data]\nheld_out = 1.5\n", "N9-CFG-012"),
        ('[[train.inject]]\nkind = "kill"\nrank = 1\nwhen = 3\n', "N9-CFG-010"),
    ],
)
def test_impossible_values(text: str, code: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(text, "run.toml")
    assert [mistake.code for mistake in caught.value.mistakes] == [code]
    assert caught.value.mistakes[0].where.startswith("run.toml:")


def test_line_of_a_key_in_the_second_table_of_an_array() -> None:
    text = '[[train.inject]]\nkind = "kill"\nrank = 1\n\n[[train.inject]]\nkind = "nap"\nrank = 2\n'
    with pytest.raises(SettingsError) as caught:
        parse_settings(text, "run.toml")
    assert caught.value.mistakes[0].where == "run.toml:6"


def test_the_dial_fills_what_was_left_out_and_no_more() -> None:
    settings = parse_settings('size = "nano"\n[model]\nlayers = 3\n', "run.toml")
    assert settings.model.layers == 3
    assert settings.model.dim == SIZES["nano"]["model"]["dim"]
    assert settings.train.budget == SIZES["nano"]["train"]["budget"]


def test_steps_given_by_a_person_replace_the_budget() -> None:
    assert parse_settings("[train]\nsteps = 12\n", "run.toml").train.budget is None


def test_every_size_leaves_nothing_open() -> None:
    for size in SIZES:
        settings = parse_settings(f'size = "{size}"', "run.toml")
        for block in SIZES[size]:
            for key in SIZES[size][block]:
                assert getattr(getattr(settings, block), key) is not None


@pytest.mark.parametrize(("text", "seconds"), [('"90s"', 90), ('"4m"', 240), ('"2h"', 7200), ("30", 30), ('"1.5m"', 90)])
def test_times(text: str, seconds: float) -> None:
    assert parse_settings(f"[train]\nbudget = {text}\n", "run.toml").train.budget == seconds


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="N9-CFG-001"):
        load_settings(tmp_path / "missing.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"\n')
    with pytest.raises(UserError, match="N9-CFG-001"):
        load_settings(tmp_path / "latin.toml")
    (tmp_path / "cut.toml").write_text("[train\n")
    with pytest.raises(UserError, match="N9-CFG-002"):
        load_settings(tmp_path / "cut.toml")


@given(st.text(max_size=200))
def test_no_text_whatever_gives_a_traceback(text: str) -> None:
    try:
        parse_settings(text, "run.toml")
    except UserError as error:
        assert str(error)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)))
def test_no_value_whatever_gives_a_traceback(value: object) -> None:
    for key in Settings.model_fields:
        try:
            parse_settings('name = "x"', "run.toml", {key: value})
        except UserError as error:
            assert str(error)
