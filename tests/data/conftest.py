"""A small corpus made of files: the same stages as a real run, without fetching anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ninthsky.config.load import parse_settings
from ninthsky.data.made import made_pages
from ninthsky.data.stages import STAGES
from ninthsky.run.engine import run_stages
from ninthsky.run.folder import RunFolder, write_json
from ninthsky.run.progress import PlainScreen

ARTICLES = {page.name: page.article for page in made_pages() if page.article}


def page_of(*paragraphs: str) -> str:
    menu = "".join(f'<li><a href="/{i}">Menu entry {i}</a></li>' for i in range(8))
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    head = f"<html><head><title>{paragraphs[0]}</title></head>"
    return f"{head}<body><ul class='nav'>{menu}</ul><article>{body}</article></body></html>"


def bad_pages() -> dict[str, bytes]:
    """The five kinds that the stage must survive."""
    article = ARTICLES["en-bees"].splitlines()
    whole = page_of(*article).encode()
    return {
        "empty.html": b"",
        "white.html": b" \n\t ",
        "cut.html": whole[: len(whole) - 300],
        "cut-in-a-tag.html": b"<html><body><p>Text</p><div class='x",
        "wrong-encoding.html": b'<html><head><meta charset="utf-8"></head><body><p>'
        + bytes(range(128, 256)) * 40
        + b"</p></body></html>",
        "binary.html": bytes(range(256)) * 200,
        "huge.html": b"<html><body>" + b"<p>filling text of a page that is too large</p>" * 1_100_000,
        "deep.html": ("<html><body>" + "<div>" * 100_000 + "<p>bottom</p>").encode(),
    }


@pytest.fixture(scope="session")
def pages_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good pages in two languages, exact and near duplicates, a page in French, and every kind of bad page."""
    folder = tmp_path_factory.mktemp("pages")
    for name, article in ARTICLES.items():
        (folder / f"{name}.html").write_text(page_of(*article.splitlines()), "utf-8")
    bees = ARTICLES["en-chess"].splitlines()
    (folder / "exact.html").write_text(page_of(*bees), "utf-8")
    (folder / "near.html").write_text(page_of(*bees[:-1], bees[-1] + " The end."), "utf-8")
    french = (
        "Le boulanger du village allume le four avant l'aube, et les habitants viennent chercher leur pain quand il est chaud.",
        "Chaque famille apporte le bois à son tour, selon une liste que le maire affiche sur la porte de l'église.",
        "Personne ne se souvient de l'année où la coutume a commencé, mais les pierres du four portent une date ancienne.",
        "Les enfants préfèrent les derniers jours de l'automne, quand on y fait cuire des pommes avec du miel.",
    )
    (folder / "french.html").write_text(page_of("Le four du village", *french), "utf-8")
    (folder / "short.html").write_text(page_of("Hello", "This page has nothing to say, and says it in one line."), "utf-8")
    for name, data in bad_pages().items():
        (folder / name).write_bytes(data)
    return folder


Run = Callable[..., RunFolder]


@pytest.fixture(scope="session")
def run_data(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run_data(folder of HTML, **settings)` runs the three stages into a fresh or given run folder."""

    def run(source: Path | str, into: Path | None = None, **data: Any) -> RunFolder:
        path = into or tmp_path_factory.mktemp("run")
        lines = [f"{key} = {json.dumps(value)}" for key, value in data.items()]
        settings = parse_settings(
            "\n".join(['size = "nano"', "[data]", f"sources = [{json.dumps(str(source))}]", *lines]), "test"
        )
        folder = RunFolder(path)
        write_json(path / "settings.json", settings.model_dump(mode="json"))
        run_stages(folder, settings, list(STAGES), PlainScreen())
        return folder

    return run


@pytest.fixture(scope="session")
def corpus(run_data: Run, pages_folder: Path) -> RunFolder:
    """A finished run over `pages_folder`."""
    return run_data(pages_folder, page_seconds=20, held_out=0.1)
