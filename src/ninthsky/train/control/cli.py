"""`n9 train set`, `pause` and `resume`: orders to a run that is training now."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ninthsky.errors import OK, UserError
from ninthsky.run.folder import RunFolder, find_run
from ninthsky.train.control.orders import FOLDER, give, parse

Json = Annotated[bool, Parameter(name="--json", negative=())]
STAGE = "train.pretrain"


def set_(*words: str, store: Path = Path("runs"), json_: Json = False) -> int:
    """Changes numbers of a live run from its next step on: n9 train set lr=1e-3 clip=0.5 RUN

    What can be set: lr (the peak; the schedule's shape stays), clip, weight_decay, balance, checkpoint_every. The change is
    recorded with its step, and is made again at that step by a resume and by the twin.

    Parameters
    ----------
    words
        name=value, as many as wanted, then the run's name or folder; the newest run where none is named.
    store
        Folder of runs.
    """
    assignments = tuple(word for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        what = f"{', '.join(map(repr, names))}: name=value is wanted, and one run"
        raise UserError("N9-TRN-010", what, "n9 train set", "n9 train set lr=1e-3 RUN")
    values = parse(assignments)
    run = _order(names[0] if names else None, store, "set", values)
    text = ", ".join(f"{name} = {value:g}" for name, value in values.items())
    return _told(run, f"{text}: from the next step on", json_, **values)


def pause(run: str | None = None, *, store: Path = Path("runs"), json_: Json = False) -> int:
    """Holds a live run between two steps until `n9 train resume`; its ranks stay alive, and watched.

    Parameters
    ----------
    run
        The run's name or folder; the newest run where none is named.
    store
        Folder of runs.
    """
    return _told(_order(run, store, "pause"), "pauses after the step under way", json_)


def resume(run: str | None = None, *, store: Path = Path("runs"), json_: Json = False) -> int:
    """Lets a paused run go on.

    Parameters
    ----------
    run
        The run's name or folder; the newest run where none is named.
    store
        Folder of runs.
    """
    return _told(_order(run, store, "resume"), "goes on", json_)


def _order(
    name: str | None, store: Path, verb: Literal["set", "pause", "resume"], values: dict[str, float] | None = None
) -> RunFolder:
    folder = find_run(store, name)
    if not _at_work(folder):
        raise UserError(
            "N9-TRN-011", f"run {folder.path.name!r} is not live: no n9 works in it", str(folder.path), "n9 run FILE goes on"
        )
    stage = _stage_at_work(folder)
    if stage != STAGE:
        what = f"run {folder.path.name!r} is in stage {stage or 'none'}: orders are for {STAGE}"
        raise UserError("N9-TRN-011", what, str(folder.path), "n9 watch shows where it is")
    give(folder.stage(STAGE) / FOLDER, verb, values)
    return folder


def _at_work(folder: RunFolder) -> bool:
    """Whether an `n9 run` holds the run's lock."""
    try:
        with (folder.path / "run.lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _stage_at_work(folder: RunFolder) -> str:
    stage = ""
    for event in folder.events():
        if event["kind"] == "stage.start":
            stage = event["stage"]
        elif event["kind"] in {"stage.done", "stage.fail", "run.start"}:
            stage = ""
    return stage


def _told(folder: RunFolder, text: str, json_: bool, **values: float) -> int:
    tree = {"run": folder.path.name, "ordered": text, **values}
    print(json.dumps(tree) if json_ else f"{folder.path.name}: {text}")
    return OK
