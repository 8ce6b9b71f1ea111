"""Cost of a data run against the size of its input: processor time and peak memory per MB of HTML, driver and workers apart.

    python -m benchmarks.growth [PAGES.parquet] [--mb 10 50 250] [--steps data.pages data.corpus data.tokens]

The input is real pages, repeated with changes: each copy has its own words in one of five places, so that texts are neither
equal nor near duplicates of each other, while their markup and lengths stay. Measured is each stage of `n9 run --only data` by
itself: processor seconds of driver and workers (getrusage), peak memory of the driver over what it starts with.
10, 50, 250 MB: about 5 minutes quiet. `--mb 10 50 250 1000 2000`: about 25 minutes and 8 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.pages import DEFAULT, pages_file
from benchmarks.report import publish

STEPS = ("data.pages", "data.corpus", "data.tokens")
_WORD = re.compile(rb"(?<![\w&<>/=\"'-])[a-z]{5,9}(?![\w>=\"';-])")
_HAN = re.compile("[\u4e00-\u9fff]")


def copy_of(html: bytes, seed: int) -> bytes:
    """The page with one word (or Chinese character) in five replaced by another of the same page's."""
    rng = random.Random(seed)
    words = _WORD.findall(html)
    if words:
        html = _WORD.sub(lambda found: rng.choice(words) if rng.random() < 0.2 else found[0], html)
    try:
        text = html.decode()
    except UnicodeDecodeError:
        return html
    if characters := _HAN.findall(text):
        text = _HAN.sub(lambda found: rng.choice(characters) if rng.random() < 0.2 else found[0], text)
    return text.encode()


def write_input(source: list[bytes], megabytes: float, path: Path) -> tuple[int, int]:
    """A Parquet file of that size of HTML; (pages, bytes)."""
    schema = pa.schema([("id", pa.string()), ("html", pa.binary())])
    pages = size = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while size < megabytes * 1e6:
            rows = []
            for _ in range(64):
                html = copy_of(source[pages % len(source)], pages)
                rows.append({"id": f"page-{pages:08d}", "html": html})
                pages, size = pages + 1, size + len(html)
                if size >= megabytes * 1e6:
                    break
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return pages, size


def _run(settings: str, folder: str, step: str, answer: Any) -> None:
    """One stage in a process of its own: (driver's seconds, workers' seconds, driver's peak MB over its start)."""
    from ninthsky.config.load import parse_settings
    from ninthsky.data.stages import STAGES
    from ninthsky.run.engine import resolve, run_stage
    from ninthsky.run.folder import RunFolder
    from ninthsky.run.progress import PlainScreen

    stage = next(stage for stage in STAGES if stage.name == step)
    resolve(stage.run)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _memory("VmRSS")
    seconds = resource.getrusage(resource.RUSAGE_SELF)
    run_stage(RunFolder(Path(folder)), parse_settings(settings, "growth"), stage, PlainScreen(), fresh=True)
    own, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = own.ru_utime + own.ru_stime - seconds.ru_utime - seconds.ru_stime
    answer.send((used, theirs.ru_utime + theirs.ru_stime, _memory("VmHWM") - before, theirs.ru_maxrss / 1024))


def _memory(name: str) -> float:
    """MB that /proc tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure(settings: str, folder: Path, step: str) -> dict[str, float]:
    """Figures of one stage."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(settings, str(folder), step, theirs))
    process.start()
    theirs.close()
    try:
        driver, workers, memory, worker_memory = ours.recv()
    except EOFError:
        sys.exit(f"{step} failed")
    process.join()
    return {"driver_s": driver, "workers_s": workers, "driver_mb": memory, "worker_mb": worker_memory}


def main(source: Path, sizes: list[float], steps: list[str]) -> None:
    """Prints the table and, last, one JSON object."""
    pages = [row["html"] for row in pq.read_table(source, columns=["html"]).to_pylist() if len(row["html"]) < 1_000_000]
    random.Random(0).shuffle(pages)  # the file is sorted by set
    rows: list[list[Any]] = []
    figures: dict[str, Any] = {}
    costs: dict[str, list[float]] = {step: [] for step in steps}
    for megabytes in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "input.parquet"
            count, size = write_input(pages, megabytes, file)
            settings = (
                f'size = "nano"\n[where]\nworkers = 2\n[data]\nsources = ["{file}"]\nmax_pages = 100000000\npage_seconds = 60'
            )
            for step in steps:
                found = measure(settings, Path(scratch) / "run", step)
                mb = size / 1e6
                cost = (found["driver_s"] + found["workers_s"]) / mb
                costs[step].append(cost)
                rows.append(
                    [
                        f"{step}, {mb:,.0f} MB, {count:,} pages",
                        1000 * cost,
                        1000 * found["driver_s"] / mb,
                        found["driver_mb"],
                        found["worker_mb"],
                    ]
                )
                for name, value in found.items():
                    figures[f"{step}_{round(megabytes)}mb_{name}"] = round(value, 3)
                print(json.dumps({"mb": mb, "step": step, **found}), file=sys.stderr, flush=True)
            documents = json.loads((Path(scratch) / "run" / "stages" / "data.corpus" / "funnel.json").read_text())["documents"]
            figures[f"documents_{round(megabytes)}mb"] = documents
    for step, values in costs.items():
        figures[f"{step}_growth"] = round(values[-1] / values[0], 3)
        rows.append([f"{step}: cost per MB, largest over smallest", figures[f"{step}_growth"], "", "", ""])
    publish(
        "growth", rows, figures, columns=("stage and input", "CPU ms/MB", "of it driver", "driver peak MB", "worker peak MB")
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pages_file, nargs="?", default=str(DEFAULT))
    parser.add_argument("--mb", type=float, nargs="+", default=[10, 50, 250])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    chosen = parser.parse_args()
    main(chosen.source, chosen.mb, chosen.steps)
