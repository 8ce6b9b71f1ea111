"""Our adapters inside the real libraries: every decision and text against `n9 data extract` on the same pages.

    python -m benchmarks.adapters [PAGES.parquet] [--pages 200]

datatrove and Ray Data each live in an environment of their own (.cache, made here), with this package beside them.
About three minutes, most of them for making the environments the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.pages import DEFAULT, pages_file
from benchmarks.peers import ROOT, interpreter
from benchmarks.report import publish
from ninthsky.config.schema import Data
from ninthsky.data.batch import extract
from ninthsky.data.blocks import decode

_DATATROVE = """
import json, sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from ninthsky.config.schema import Data
from ninthsky.data.adapters.datatrove import Ninthsky

if __name__ == "__main__":
    source, out = sys.argv[1:]
    dropped = JsonlWriter(out + "/dropped", compression=None)
    block = Ninthsky(Data(page_seconds=60), exclusion_writer=dropped)
    steps = [ParquetReader(source, text_key="html", id_key="id"), block, JsonlWriter(out + "/kept", compression=None)]
    LocalPipelineExecutor(steps, tasks=2, workers=2, logging_dir=out + "/logs").run()
"""
_RAY = """
import os, sys
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
import ray
from ninthsky.config.schema import Data
from ninthsky.data.adapters.ray_data import Ninthsky

if __name__ == "__main__":
    source, out = sys.argv[1:]
    ray.init(address="local", num_cpus=3, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    pages = ray.data.read_parquet(source)
    rows = pages.map_batches(
        Ninthsky, fn_constructor_args=(Data(page_seconds=60),), batch_format="pyarrow", batch_size=64, concurrency=2
    )
    rows.write_parquet(out + "/rows")
"""
_ENVIRONMENTS = {
    "datatrove 0.10.1": ("adapter-datatrove", ("datatrove[io]==0.10.1", "orjson", "regex"), _DATATROVE),
    "Ray Data 2.60": ("adapter-ray", ("ray[data]==2.60.*",), _RAY),
}


def _datatrove_answers(out: Path) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for folder in ("kept", "dropped"):
        for path in (out / folder).glob("*.jsonl"):
            for line in path.read_text("utf-8").splitlines():
                row = json.loads(line)
                reason = row["metadata"].get("filter_reason", "")
                found[row["id"]] = (reason, "" if reason else row["text"])
    return found


def _ray_answers(out: Path) -> dict[str, tuple[str, str]]:
    rows = [row for path in (out / "rows").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {
        row["id"]: ("" if row["rule"] is None else f"{row['stage']}: {row['rule']}", row["text"] if row["rule"] is None else "")
        for row in rows
    }


def main(source: Path, count: int) -> None:
    """Prints the table and, last, one JSON object."""
    # datatrove's documents are text: what reads them has decoded the page. All sides are given the same text.
    columns = pq.read_table(source, columns=["id", "html"]).slice(0, count).to_pylist()
    pages = pa.Table.from_pylist([{"id": row["id"], "html": decode(row["html"])[0]} for row in columns])
    rows: list[list[Any]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pages"
        folder.mkdir()
        half = len(pages) // 2
        for name, part in (("a", pages.slice(0, half)), ("b", pages.slice(half))):
            pq.write_table(part, folder / f"{name}.parquet")
        records = list(extract([str(folder)], Data(page_seconds=60), 2))
        ours = {
            r["id"]: (f"{r['reason']['stage']}: {r['reason']['rule']}", "") if r["reason"] else ("", r["text"]) for r in records
        }
        for name, (environment, packages, program) in _ENVIRONMENTS.items():
            python = interpreter(environment, *packages, f"{ROOT}[data]")
            out = Path(scratch) / environment
            script = out.with_suffix(".py")
            script.write_text(program)
            run = subprocess.run(
                [python, script, folder, out],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
                capture_output=True,
                text=True,
            )
            if run.returncode:
                sys.exit(f"{name}: {run.stdout[-2000:]}\n{run.stderr[-4000:]}")
            answers = _datatrove_answers(out) if "datatrove" in name else _ray_answers(out)
            same = sum(answers.get(id) == answer for id, answer in ours.items())
            for id, answer in ours.items():
                if answers.get(id) != answer:
                    print(f"{name}: {id}: {answers.get(id)} where ours is {answer}"[:300], file=sys.stderr)
            rows.append([f"same decision and text, {name}", f"{same} of {len(ours)}", f"{len(answers)} answered"])
            figures[f"{environment.replace('-', '_')}_equal"] = same / len(ours)
    figures["pages"] = len(ours)
    figures["kept"] = sum(not reason for reason, _ in ours.values())
    publish("adapters", rows, figures, columns=("what", "n9 data extract", "adapter"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pages_file, nargs="?", default=str(DEFAULT))
    parser.add_argument("--pages", type=int, default=200)
    chosen = parser.parse_args()
    main(chosen.source, chosen.pages)
