"""The verbs that act on a whole run: demo, run, plan, init, why, watch, report, explain, config."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ninthsky import errors
from ninthsky.cli import STAGE_MODULES
from ninthsky.config import Settings, SettingsError, load_settings
from ninthsky.errors import OK, UserError
from ninthsky.evidence import Evidence, encode, find
from ninthsky.run.engine import in_order, resolve, run_stages
from ninthsky.run.engine import plan as plan_stages
from ninthsky.run.environment import environment
from ninthsky.run.folder import RunFolder, find_run, write_json
from ninthsky.run.progress import Screen, duration, screen_for
from ninthsky.run.report import build_report, headlines
from ninthsky.run.stage import Stage

Json = Annotated[bool, Parameter(name="--json", negative="", help="JSON lines instead of text.")]
Set = Annotated[tuple[str, ...], Parameter(name="--set", negative="", help="Override a setting: --set train.budget=30s")]


def stages(rooms: str | None = None) -> list[Stage]:
    """Every room's stages in the order of the road; with `rooms` ("data,layout") only theirs and what they need."""
    every = in_order(stage for module in STAGE_MODULES for stage in resolve(f"{module}:STAGES"))
    if rooms is None:
        return every
    wanted = {room.strip() for room in rooms.split(",")}
    known = {stage.name.partition(".")[0] for stage in every}
    if unknown := wanted - known:
        raise UserError(
            "N9-CFG-012", f"no such room: {', '.join(sorted(unknown))}", "--only", f"rooms: {', '.join(sorted(known))}"
        )
    keep: set[str] = set()
    for stage in reversed(every):
        if stage.name.partition(".")[0] in wanted or stage.name in keep:
            keep |= {stage.name, *stage.needs}
    return [stage for stage in every if stage.name in keep]


def demo(size: str = "tiny", *, store: str = "runs", set_: Set = (), json_: Json = False) -> int:
    """The whole road on this machine: pages to energy plan, with faults on the way.

    Parameters
    ----------
    size:
        The dial: nano (a minute or two, for tests) or tiny.
    store:
        Folder for the run's folder.
    """
    path = Path(str(files("ninthsky").joinpath("demo.toml")))
    return run(path, store=store, set_=(f"size={size}", *set_), json_=json_)


def run(file: Path, *, store: str | None = None, only: str | None = None, set_: Set = (), json_: Json = False) -> int:
    """Run what FILE describes. Started again, it goes on where it was interrupted, and reruns only what changed.

    Parameters
    ----------
    file:
        A run.toml; `n9 init` prints one.
    only:
        Rooms to run, with what they need: --only data,layout
    """
    folder, settings = _open(file, store, set_)
    chosen = stages(only)
    screen = screen_for(json_)
    began = time.time()
    with folder.lock():
        if file.resolve() != (folder.path / "run.toml").resolve():
            shutil.copyfile(file, folder.path / "run.toml")
        write_json(folder.path / "settings.json", settings.model_dump(mode="json"))
        write_json(folder.path / "env.json", environment())
        screen.line(f"n9: run `{settings.name}`, size {settings.size}, {os.cpu_count()} cores, in {folder.path}", "bold")
        folder.event("run.start", name=settings.name, size=settings.size, pid=os.getpid())
        status: dict[str, Any] = {"status": "interrupted"}
        try:
            run_stages(folder, settings, chosen, screen)
            status = {"status": "ok"}
        except KeyboardInterrupt:
            raise
        except Exception as error:
            status = {"status": "failed", "stage": _last_stage(folder), "error": str(error)}
            raise
        finally:
            seconds = time.time() - began
            status |= {"seconds": round(seconds, 1), "seconds_text": duration(seconds)}
            write_json(folder.path / "STATUS.json", status)
            folder.event("run.end", **status)
            report_path = build_report(folder, chosen)
            if status["status"] == "failed":
                screen.line(f"what was finished is kept; report: {report_path}", "red")
    _box(screen, folder, chosen, seconds, report_path, json_)
    return OK


def plan(file: Path, *, store: str | None = None, only: str | None = None, set_: Set = (), json_: Json = False) -> int:
    """Each stage of FILE: whether it would run now, and why. Changes nothing."""
    folder, settings = _open(file, store, set_)
    decisions = plan_stages(folder, settings, stages(only))
    for number, decision in enumerate(decisions, 1):
        if json_:
            print(json.dumps({"stage": decision.stage.name, "runs": decision.runs, "reason": decision.reason}))
        else:
            print(f"{number:2d} {decision.stage.name:16s} {'RUN ' if decision.runs else 'skip'}  {decision.reason}")
    return OK


def init() -> int:
    """Print a commented run.toml: `n9 init > run.toml`."""
    print(files("ninthsky").joinpath("template.toml").read_text("utf-8"), end="")
    return OK


def why(id: str, *, run: str | None = None, store: str = "runs", json_: Json = False) -> int:
    """Why a document was dropped, a card blamed, a layout chosen, a carrier put to sleep.

    Parameters
    ----------
    id:
        doc-..., F-0001, layout-..., answer-..., STATION@HOUR: every stage prints the ids of what it decided.
    run:
        Name or folder of the run, or a folder that `n9 train vet --out` wrote; the newest run otherwise.
    """
    alone = Path(run or ".") / "evidence.jsonl"  # a folder of records that belongs to no run: `n9 train vet --out`
    if run is not None and alone.exists():
        where, record = alone.parent, find((alone,), id)
    else:
        folder = find_run(Path(store), run)
        where, record = folder.path, _look_up(folder, id)
    if record is None:
        raise UserError(
            "N9-WHY-001", f"no record has the id {id!r}", str(where), "ids are printed by the stages and the report"
        )
    print(encode(record).decode() if json_ else record.render())
    return OK


def watch(*, run: str | None = None, store: str = "runs", json_: Json = False) -> int:
    """Follow a run as it happens: stages, steps, faults with the name of the card. Ctrl-C ends the watching only."""
    from ninthsky.guard.watch import follow

    follow(find_run(Path(store), run).path, json_)
    return OK


def report(*, run: str | None = None, store: str = "runs", json_: Json = False) -> int:
    """Build a run's report.html again from what its stages wrote, and print its path."""
    folder = find_run(Path(store), run)
    path = build_report(folder, stages())
    print(json.dumps({"report": str(path)}) if json_ else path)
    return OK


def explain(code: str, *, json_: Json = False) -> int:
    """What an error code means and how it is mended: n9 explain N9-CFG-010."""
    text = errors.EXPLANATIONS.get(code.upper())
    if text is None:
        raise UserError("N9-CFG-012", f"no error has the code {code!r}", "explain", f"codes: {', '.join(errors.EXPLANATIONS)}")
    print(json.dumps({"code": code.upper(), "text": text}) if json_ else f"{code.upper()}\n{text}")
    return OK


def config(file: Path | None = None, *, schema: bool = False, set_: Set = (), json_: Json = False) -> int:
    """Every value of FILE and where it comes from (file, size, preset, default); or the JSON schema of run.toml."""
    if schema or file is None:
        print(json.dumps(Settings.model_json_schema(), indent=1))
        return OK
    settings = load_settings(file, _overrides(set_))
    given = _flat(tomllib.loads(file.read_text("utf-8"))) | _flat(_nested(_overrides(set_)))
    defaults = _flat(Settings().model_dump(mode="json"))
    for key, value in _flat(settings.model_dump(mode="json")).items():
        derived = "preset" if settings.model.preset and key.startswith("model.") else "size"
        origin = "file" if key in given else "default" if defaults.get(key) == value else derived
        print(json.dumps({"key": key, "value": value, "origin": origin}) if json_ else f"{key:28s} {value!r:24}  {origin}")
    return OK


# ---------------------------------------------------------------------------------------------------------------------------


def _open(file: Path, store: str | None, overrides: tuple[str, ...]) -> tuple[RunFolder, Settings]:
    """The settings of a file and its run folder. A file with mistakes leaves error.json beside the runs."""
    try:
        settings = load_settings(file, _overrides(overrides))
    except SettingsError as error:
        path = Path(store or "runs") / "error.json"
        write_json(path, [{"code": m.code, "what": m.what, "where": m.where, "help": m.help} for m in error.mistakes])
        raise
    return RunFolder(Path(store or settings.where.store) / settings.name), settings


def _overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError("N9-CFG-012", f"--set {pair}: no `=`", "--set", "write --set block.key=value")
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text  # bare text: --set size=nano
    return values


def _nested(dotted: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in dotted.items():
        *parents, last = key.split(".")
        block = tree
        for parent in parents:
            block = block.setdefault(parent, {})
        block[last] = value
    return tree


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _look_up(folder: RunFolder, id: str) -> Evidence | None:
    every = stages()
    record = find((folder.stage(stage.name) / "evidence.jsonl" for stage in every), id)
    for stage in every:
        if record is None and stage.explain and folder.stage(stage.name).exists():
            record = resolve(stage.explain)(folder.stage(stage.name), id)
    return record


def _last_stage(folder: RunFolder) -> str:
    return next((event["stage"] for event in reversed(list(folder.events())) if event["kind"] == "stage.start"), "")


def _box(screen: Screen, folder: RunFolder, chosen: list[Stage], seconds: float, report_path: Path, json_lines: bool) -> None:
    """Six headline figures, each beside its rival's and the command that shows it; the time; the report's path."""
    lines = headlines(folder, chosen)
    installed = float(os.environ.get("N9_INSTALL_SECONDS", "0"))
    times = f"run {duration(seconds)}" + (f", with installation {duration(seconds + installed)}" if installed else "")
    if json_lines:
        print(
            json.dumps(
                {
                    "kind": "box",
                    "headlines": lines,
                    "seconds": seconds,
                    "install_seconds": installed,
                    "report": str(report_path),
                },
                ensure_ascii=False,
            )
        )
        return
    from rich import box
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1), expand=False)
    for column in ("", "Ninthsky", "beside", "shown by"):
        table.add_column(column, overflow="fold")
    for line in lines:
        label = line["label"] + (" (synthetic data)" if line["synthetic"] else "")
        table.add_row(label, f"[bold]{line['value']}[/]", f"{line['rival']}: {line['rival_value']}", line["command"])
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(Panel(table, title=f"Ninthsky · {folder.path.name}", subtitle=times, expand=False))
    console.print(f"report: {report_path.resolve()}", soft_wrap=True)
