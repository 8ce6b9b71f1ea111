"""report.html: one offline file, made from what the stages wrote (summary.json, figures.json, manifests) and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ninthsky.run.folder import HashedFile, RunFolder, read_json
from ninthsky.run.progress import duration
from ninthsky.run.stage import Stage

ROOMS = {
    "data": "Data: raw pages to tokens",
    "layout": "Layout: how the model is cut",
    "train": "Training, with faults on the way",
    "align": "Align: what the model refuses",
    "signal": "Signal: the same model reads signals",
    "radio": "Radio: forecast and energy plan",
    "serve": "Serve: the exported checkpoint",
}

SHOWN_ROWS = 8  # of a table; the rest unfolds on a click


@dataclass
class Section:
    """One room of the report."""

    room: str
    title: str
    stages: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)


def headlines(folder: RunFolder, stages: list[Stage]) -> list[dict[str, Any]]:
    """The lines of the box at the end of a run, in the order of the road."""
    found: list[dict[str, Any]] = []
    for stage in stages:
        found += (read_json(folder.stage(stage.name) / "summary.json") or {}).get("headlines", [])
    return found


def build_report(folder: RunFolder, stages: list[Stage]) -> Path:
    """Writes report.html of a run, finished or not, and returns its path."""
    sections: dict[str, Section] = {}
    limits: list[tuple[str, str]] = []
    for stage in stages:
        path = folder.stage(stage.name)
        manifest = read_json(path / "manifest.json")
        summary = read_json(path / "summary.json") or {}
        room = stage.name.partition(".")[0]
        section = sections.setdefault(room, Section(room, ROOMS.get(room, room)))
        section.stages.append(
            {
                "name": stage.name,
                "title": stage.title,
                "done": manifest is not None,
                "time": duration(manifest["seconds"]) if manifest else "not finished",
                "digest": manifest["digest"] if manifest else "",
                "numbers": {key: _shown(value) for key, value in summary.items() if key not in {"headlines", "limits"}},
            }
        )
        section.figures += read_json(path / "figures.json") or []
        limits += [(stage.name, text) for text in summary.get("limits", [])]
    path = folder.path / "report.html"
    write_page(
        path,
        folder.path.name,
        list(sections.values()),
        status=read_json(folder.path / "STATUS.json") or {"status": "unfinished"},
        headlines=headlines(folder, stages),
        limits=limits,
        settings=read_json(folder.path / "settings.json") or {},
        environment=read_json(folder.path / "env.json") or {},
    )
    return path


def write_page(path: Path, name: str, sections: list[Section], **run: Any) -> None:
    """One offline page of sections with tables and plots; `run`: status, headlines, limits, settings, environment of a run."""
    from jinja2 import Environment, PackageLoader, select_autoescape
    from plotly.offline import get_plotlyjs

    jinja = Environment(loader=PackageLoader("ninthsky.run", "templates"), autoescape=select_autoescape(), trim_blocks=True)
    jinja.filters["shown"] = _shown
    page = jinja.get_template("report.html").render(
        name=name,
        sections=sections,
        run=bool(run),
        **run,
        synthetic=any(line["synthetic"] for line in run.get("headlines", ())),
        plots=[figure for section in sections for figure in section.figures if figure["kind"] == "plot"],
        plotly=get_plotlyjs(),
        shown_rows=SHOWN_ROWS,
    )
    with HashedFile(path) as file:
        file.write(page.encode())


def _shown(value: Any) -> str:
    """A figure as the report prints it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value)
