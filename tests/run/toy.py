"""Stages of a toy room, for the engine's tests: two numbers are made, then summed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ninthsky.run import Stage, StageContext

STAGES = (
    Stage("toy.numbers", "Numbers", 1, "tests.run.toy:numbers", uses=("seed",)),
    Stage("toy.sum", "Sum", 1, "tests.run.toy:total", needs=("toy.numbers",), uses=("radio.epsilon",)),
)


def numbers(ctx: StageContext) -> None:
    """Twenty shards, each finished one kept over a crash."""
    with ctx.progress("shards", 20, "shards") as bar:
        for shard in range(20):
            name = f"numbers/{shard:02d}.txt"
            if not (ctx.out / name).exists():
                _stumble(f"before-{shard}")
                with ctx.open(name, rows=1) as file:
                    file.write(str(ctx.settings.seed * shard).encode())
                _stumble(f"after-{shard}")
            else:
                ctx.adopt(name, rows=1)
            bar.advance()
    ctx.summary(made=20)


def total(ctx: StageContext) -> None:
    """The sum of all numbers."""
    value = sum(int(path.read_text()) for path in sorted((ctx.inputs["toy.numbers"] / "numbers").glob("*.txt")))
    with ctx.open("sum.txt") as file:
        file.write(str(value).encode())
    ctx.headline("sum", str(value), "nothing", "0", "n9 why sum")
    # What a hostile page might have put into a title must reach the report as text.
    ctx.headline(
        "<script>alert(1)</script>", "</script><script>alert(2)</script>", "nothing", "0", "n9 why sum", synthetic=True
    )
    ctx.plot("squares", "Squares", [{"type": "scatter", "x": [1, 2, 3], "y": [1, 4, 9], "name": "</script>"}])
    ctx.table("numbers", "Numbers", ["n", "name"], [[1, "one"], [2.5, "two and a half"], [3, "三"]], note="made for the test")
    ctx.limit("real numbers")


def _stumble(place: str) -> None:
    """Dies by SIGKILL at a place that the test names, the first time it comes by."""
    wanted = os.environ.get("TOY_DIES_AT")
    marker = Path(os.environ.get("TOY_MARKER", "/nonexistent"))
    if wanted == place and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)
