"""`n9 data`: extraction for use from outside, a look at a page, the card of a corpus."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from ninthsky.errors import OK, UserError

app = App(name="data", help="Pages to documents to tokens.")

Json = Annotated[bool, Parameter(name="--json", negative="", help="JSON lines instead of text.")]


@app.command
def extract(
    *paths: str, languages: str = "en,zh", workers: int | None = None, page_seconds: float = 5.0, json_: Json = False
) -> int:
    """Articles of HTML, WARC, WET, JSON lines, Parquet or text files, or folders of them: one line per page.

    Parameters
    ----------
    paths:
        What to read: paths, or URLs that fsspec opens.
    languages:
        Languages to keep; pages in others are dropped, with that reason.
    workers:
        Processes; as many as cores otherwise.
    page_seconds:
        A page that takes longer is dropped.
    """
    from ninthsky.config.schema import Data
    from ninthsky.data.batch import extract as extracted

    if not paths:
        raise UserError(
            "N9-DATA-001", "no path was given", "n9 data extract", "n9 data extract PAGE.html FOLDER pages.parquet --json"
        )
    data = Data(languages=tuple(languages.split(",")), page_seconds=page_seconds)
    kept = total = 0
    for record in extracted(paths, data, workers or os.cpu_count() or 1):
        total += 1
        kept += record["decision"] == "kept"
        print(json.dumps(record, ensure_ascii=False) if json_ else _line(record), flush=True)
    if not json_:
        print(f"{kept} of {total} pages kept", file=sys.stderr)
    return OK


def _line(record: dict[str, Any]) -> str:
    reason = record["reason"]
    why = f"{reason['stage']}: {reason['rule']} = {reason['figure']:.4g}, {reason['detail']}" if reason else ""
    share, length = record["figures"].get("kept_share", 0.0), len(record["text"])
    return f"{record['decision']:8s} {record['language']:8s} {length:>8,} characters ({share:4.0%})  {record['id']}  {why}"


@app.command
def look(page: str, *, run: str | None = None, store: str = "runs", json_: Json = False) -> int:
    """A page with what was kept in green and what was dropped in red.

    Parameters
    ----------
    page:
        A file of HTML, or the id of a page of a run (doc-...).
    run:
        Name or folder of the run; the newest one otherwise.
    """
    from rich.console import Console

    from ninthsky.config.schema import Data, Settings
    from ninthsky.data.formats import Raw
    from ninthsky.data.look import as_decided, find_page, page_view, painted
    from ninthsky.data.why import find_row
    from ninthsky.run.folder import find_run, read_json

    if page.startswith("doc-"):
        folder = find_run(Path(store), run)
        name, raw = find_page(folder, page)
        row = find_row(folder.stage("data.corpus"), page)
        data = Settings.model_validate(read_json(folder.path / "settings.json") or {}).data
    else:
        path = Path(page)
        if not path.is_file():
            raise UserError(
                "N9-DATA-001", f"no such file: {page}", "n9 data look", "give a file of HTML, or an id that starts with doc-"
            )
        name, raw, data, row = page, Raw(page, path.read_bytes()), Data(), None
    view = page_view(raw, data)
    if row is not None:
        view = as_decided(view, row, data)
    if json_:
        print(json.dumps({"page": name, **view}, ensure_ascii=False))
        return OK
    console = Console(highlight=False)
    console.print(painted(view), end="")
    console.print(f"{name}: {view['language']}, read as {view['encoding']}; {view['decision']}", style="bold", markup=False)
    return OK


@app.command
def card(run: str | None = None, *, store: str = "runs", json_: Json = False) -> int:
    """Sources, licences, counts, languages, rules and tokens of a run's corpus.

    Parameters
    ----------
    run:
        Name or folder of the run; the newest one otherwise.
    """
    from ninthsky.data.card import card as corpus_card
    from ninthsky.data.card import card_lines
    from ninthsky.run.folder import find_run

    content = corpus_card(find_run(Path(store), run))
    if json_:
        print(json.dumps(content, ensure_ascii=False))
        return OK
    print("\n".join(card_lines(content)))
    return OK


@app.command
def diff(
    run_a: str, run_b: str, *, store: str = "runs", examples: int = 3, html: Path | None = None, json_: Json = False
) -> int:
    """What changed between the corpora of two runs: settings, counts by reason, documents kept by one only, other texts.

    Parameters
    ----------
    run_a:
        Name or folder of the run before.
    run_b:
        Name or folder of the run after.
    examples:
        Pages shown for each kind of change.
    html:
        File to write a page with tables and a figure to.
    """
    from ninthsky.data.diff import diff as difference
    from ninthsky.data.diff import diff_lines, diff_page
    from ninthsky.run.folder import find_run

    found = difference(find_run(Path(store), run_a), find_run(Path(store), run_b), examples)
    if html is not None:
        diff_page(found, html)
    print(json.dumps(found, ensure_ascii=False) if json_ else "\n".join(diff_lines(found)))
    return OK
