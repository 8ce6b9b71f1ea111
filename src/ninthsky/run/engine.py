"""Plans and runs stages: each runs when something it depends on changed, and the plan says what."""

from __future__ import annotations

import graphlib
import importlib
import shutil
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ninthsky.config.schema import Settings
from ninthsky.errors import UserError
from ninthsky.run.folder import RunFolder, digest, read_json, write_json
from ninthsky.run.progress import Screen, duration
from ninthsky.run.stage import Stage, StageContext


@dataclass(frozen=True)
class Decision:
    """Whether a stage runs, and why."""

    stage: Stage
    runs: bool
    reason: str


def in_order(stages: Iterable[Stage]) -> list[Stage]:
    """Stages with every need before its user; the given order otherwise."""
    by_name = {stage.name: stage for stage in stages}
    sorter = graphlib.TopologicalSorter({stage.name: stage.needs for stage in by_name.values()})
    order = {name: index for index, name in enumerate(by_name)}
    sorter.prepare()
    result: list[Stage] = []
    waiting: list[str] = []
    while sorter.is_active():
        waiting = sorted({*waiting, *sorter.get_ready()}, key=order.__getitem__)
        name = waiting.pop(0)
        result.append(by_name[name])
        sorter.done(name)
    return result


def used_settings(stage: Stage, settings: Settings) -> dict[str, Any]:
    """The settings that the stage's result depends on, as plain values."""
    tree = settings.model_dump(mode="json")
    used = {dotted: _setting(tree, dotted) for dotted in stage.uses}
    for dotted in stage.files:
        named = _setting(tree, dotted)
        for name in [named] if isinstance(named, str) else named or ():
            if seen := _fingerprint(Path(name)):
                used[f"files of {name}"] = seen
    return used


def _setting(tree: dict[str, Any], dotted: str) -> Any:
    value: Any = tree
    for part in dotted.split("."):
        value = value[part]
    return value


def _fingerprint(path: Path) -> str:
    """Number, sizes and newest time of the files there; empty where there is nothing. Contents may be big and are not read."""
    files = [path] if path.is_file() else sorted(inner for inner in path.rglob("*") if inner.is_file())
    if not files:
        return ""
    states = [file.stat() for file in files]
    return f"{len(files)} files, {sum(s.st_size for s in states)} bytes, newest {max(s.st_mtime_ns for s in states)}"


def plan(folder: RunFolder, settings: Settings, stages: list[Stage]) -> list[Decision]:
    """What `n9 run` would do now, stage by stage, with one reason each."""
    decisions: list[Decision] = []
    rerun: set[str] = set()
    for stage in in_order(stages):
        reason = _reason(folder, settings, stage, rerun)
        if reason:
            rerun.add(stage.name)
        decisions.append(Decision(stage, bool(reason), reason or "nothing it depends on has changed"))
    return decisions


def _reason(folder: RunFolder, settings: Settings, stage: Stage, rerun: set[str]) -> str:
    manifest = read_json(folder.stage(stage.name) / "manifest.json")
    if manifest is None:
        return "was interrupted, goes on" if folder.stage(stage.name).exists() else "has not run yet"
    if manifest["version"] != stage.version:
        return f"its version went from {manifest['version']} to {stage.version}"
    used = used_settings(stage, settings)
    for key in sorted({*used, *manifest["settings"]}):
        before, now = manifest["settings"].get(key), used.get(key)
        if before != now:
            return _changed(key, before, now)
    for need in stage.needs:
        if need in rerun:
            return f"needs `{need}`, which runs"
        upstream = read_json(folder.stage(need) / "manifest.json")
        if upstream is None or upstream["digest"] != manifest["inputs"].get(need):
            return f"the result of `{need}` changed"
    for name, output in manifest["outputs"].items():
        path = folder.stage(stage.name) / name
        if not path.exists() or path.stat().st_size != output["size"]:
            return f"its output {name} is missing or was cut"
    return ""


def _changed(key: str, before: Any, now: Any) -> str:
    """`data.quality.min_words 40 -> 80`: the innermost setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for inner in sorted({*before, *now}):
            if before.get(inner) != now.get(inner):
                return _changed(f"{key}.{inner}", before.get(inner), now.get(inner))
    return f"{key} {before!r} -> {now!r}"


def run_stages(folder: RunFolder, settings: Settings, stages: list[Stage], screen: Screen) -> None:
    """Runs what has to run, in order. Raises UserError N9-RUN-003 naming the stage that failed; what is finished stays."""
    decisions = plan(folder, settings, stages)
    write_json(folder.path / "plan.json", [{"stage": d.stage.name, "runs": d.runs, "reason": d.reason} for d in decisions])
    rerun: set[str] = set()
    for number, decision in enumerate(decisions, 1):
        stage = decision.stage
        # Asked again: an upstream stage that ran may have given the same bytes, and then nothing here has to run.
        reason = _reason(folder, settings, stage, rerun)
        head = f"{number:2d}/{len(decisions)} {stage.title}"
        if not reason:
            screen.line(f"{head}: as before", "dim")
            continue
        screen.line(f"{head}  ({reason})", "bold")
        run_stage(folder, settings, stage, screen, fresh=reason != "was interrupted, goes on")


def run_stage(folder: RunFolder, settings: Settings, stage: Stage, screen: Screen, *, fresh: bool) -> None:
    """Runs one stage and commits it with its manifest. `fresh` empties its folder first; else it goes on from what it left."""
    out = folder.stage(stage.name)
    # The settings of an unfinished stage are kept beside it: going on under other settings would mix two results.
    started = {"version": stage.version, "settings": used_settings(stage, settings), "inputs": _input_digests(folder, stage)}
    if fresh or read_json(out / "started.json") != started:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "started.json", started)
    context = StageContext(stage, settings, folder, screen, out, {need: folder.stage(need) for need in stage.needs})
    folder.event("stage.start", stage=stage.name)
    begin = time.monotonic()
    try:
        resolve(stage.run)(context)
    except ModuleNotFoundError as error:
        folder.event("stage.fail", stage=stage.name, error=str(error))
        if error.name and error.name.startswith("ninthsky"):
            raise
        raise UserError(
            "N9-RUN-004", f"stage `{stage.name}` needs the package {error.name!r}", stage.run, "pip install 'ninthsky[all]'"
        ) from error
    except UserError as error:
        folder.event("stage.fail", stage=stage.name, error=str(error))
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        folder.event("stage.fail", stage=stage.name, error=told)
        (out / "error.txt").write_text(traceback.format_exc(), "utf-8")
        raise UserError(
            "N9-RUN-003",
            f"stage `{stage.name}` failed: {told}",
            f"{out / 'error.txt'} has the traceback",
            "the same command goes on from here once the cause is mended",
        ) from error
    context.write_records()
    seconds = time.monotonic() - begin
    commit(out, started, context.outputs, seconds)
    folder.event("stage.done", stage=stage.name, seconds=seconds)
    screen.line(f"  done in {duration(seconds)}", "green")


def commit(out: Path, started: dict[str, Any], outputs: dict[str, dict[str, Any]], seconds: float) -> None:
    """Writes manifest.json: the moment from which the stage counts as done. Its digest leaves out times and speeds."""
    lasting = {name: output["xxh3"] for name, output in outputs.items() if not output["volatile"]}
    write_json(
        out / "manifest.json",
        {**started, "outputs": outputs, "digest": digest({**started, "outputs": lasting}), "seconds": round(seconds, 3)},
    )


def _input_digests(folder: RunFolder, stage: Stage) -> dict[str, str]:
    return {need: (read_json(folder.stage(need) / "manifest.json") or {}).get("digest", "") for need in stage.needs}


def resolve(path: str) -> Any:
    """The object behind `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
