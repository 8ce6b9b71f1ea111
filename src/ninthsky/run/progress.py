"""What a long job shows: what it does, how fast, how long is left. A bar on a terminal, a line per ten seconds elsewhere."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Protocol


class Progress(Protocol):
    """One task's progress. `advance` is cheap: call it per item."""

    def advance(self, count: float = 1, **figures: Any) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


class Screen(Protocol):
    """Where progress goes: terminal, plain lines, or JSON lines."""

    def task(self, title: str, total: float | None, unit: str) -> Progress: ...
    def line(self, text: str, style: str = "") -> None: ...


def duration(seconds: float) -> str:
    """`7 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"


class _Task:
    """Counts, and prints through a screen's `show` at most every `period` seconds."""

    def __init__(self, screen: PlainScreen, title: str, total: float | None, unit: str, period: float) -> None:
        self.screen, self.title, self.total, self.unit, self.period = screen, title, total, unit, period
        self.done = 0.0
        self.figures: dict[str, Any] = {}
        self.started = self.shown = time.monotonic()

    def advance(self, count: float = 1, **figures: Any) -> None:
        self.done += count
        self.figures.update(figures)
        now = time.monotonic()
        if now - self.shown >= self.period:
            self.shown = now
            self.screen.show(self)

    def note(self, text: str) -> None:
        self.screen.line(f"    {text}")

    def finish(self) -> None:
        self.screen.show(self, last=True)

    def rate(self) -> float:
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def left(self) -> float | None:
        rate = self.rate()
        return (self.total - self.done) / rate if self.total and rate > 0 else None

    def text(self) -> str:
        total = f" / {self.total:,.0f}" if self.total else ""
        extra = "".join(
            f"  {key} {value:.4g}" if isinstance(value, float) else f"  {key} {value}" for key, value in self.figures.items()
        )
        left = self.left()
        remains = f"  {duration(left)} left" if left is not None and left >= 0.5 else ""
        return f"{self.title}  {self.done:,.0f}{total} {self.unit}  {self.rate():,.4g} {self.unit}/s{extra}{remains}"


class PlainScreen:
    """Lines for logs and pipes: one per task every ten seconds, one at its end."""

    period = 10.0

    def task(self, title: str, total: float | None, unit: str) -> Progress:
        return _Task(self, title, total, unit, self.period)

    def show(self, task: _Task, last: bool = False) -> None:
        self.line(("  " if last else "  ... ") + task.text())

    def line(self, text: str, style: str = "") -> None:
        print(text, flush=True)


class JsonScreen(PlainScreen):
    """The same as JSON lines, for programs."""

    period = 1.0

    def show(self, task: _Task, last: bool = False) -> None:
        self._print(
            {
                "kind": "progress",
                "task": task.title,
                "done": task.done,
                "total": task.total,
                "unit": task.unit,
                "rate": task.rate(),
                "seconds_left": task.left(),
                "finished": last,
                **task.figures,
            }
        )

    def line(self, text: str, style: str = "") -> None:
        self._print({"kind": "line", "text": text})

    def _print(self, record: dict[str, Any]) -> None:
        print(json.dumps(record, ensure_ascii=False, default=str), flush=True)


class TerminalScreen(PlainScreen):
    """A live line per task at the foot of the terminal; finished tasks scroll up."""

    period = 0.1

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console()
        self._live_type = Live
        self._live: Live | None = None

    def show(self, task: _Task, last: bool = False) -> None:
        from rich.text import Text

        text = task.text()
        if task.total:
            filled = int(24 * min(task.done / task.total, 1.0))
            text = f"{'━' * filled}{'╌' * (24 - filled)}  {text}"
        if last:
            if self._live is not None:
                self._live.stop()
                self._live = None
            self.console.print(Text(f"  {task.text()}", style="dim"))
            return
        if self._live is None:
            self._live = self._live_type(console=self.console, refresh_per_second=8, transient=True)
            self._live.start()
        self._live.update(Text(f"  {text}", style="cyan"))

    def line(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self.console.print(Text(text, style=style))


def screen_for(json_lines: bool) -> Screen:
    """Terminal, plain or JSON, by where the output goes."""
    if json_lines:
        return JsonScreen()
    return TerminalScreen() if sys.stdout.isatty() else PlainScreen()
