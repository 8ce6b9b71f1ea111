"""A data run that is killed at random moments ends in the same bytes: driver, workers, and on Ray nodes too.

    python -m benchmarks.kills [PAGES.parquet] [--points 20] [--executors local ray] [--pages 400] [--seed 7]

Each point is a run of its own (`n9 run --only data`), with SIGKILL at a moment drawn from the time that a run takes otherwise.
Where the driver was the victim, `n9 run` is called again. Compared are the digests of all stages, which cover all outputs.
Ray: a cluster of two nodes on this machine, loopback only. Quiet, about 4 minutes local and 8 on Ray for 20 points each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks.pages import DEFAULT, pages_file
from benchmarks.report import publish

STAGES = ("data.pages", "data.corpus", "data.tokens")
_SETTINGS = """
name = "{name}"
size = "nano"
[where]
store = "{store}"
workers = 2
executor = "{executor}"
{address}
[data]
sources = ["{source}"]
page_seconds = 120
max_pages = 100000
"""


class Cluster:
    """Ray, two nodes of one core; `node` may be killed and is replaced."""

    def __init__(self) -> None:
        os.environ.update(
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0", RAY_health_check_initial_delay_ms="500",
            RAY_health_check_period_ms="500", RAY_health_check_failure_threshold="4",
        )  # fmt: skip
        from ray.cluster_utils import Cluster as Nodes

        self._nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.node = self._nodes.add_node(num_cpus=1)
        self.address = str(self._nodes.address)

    def kill_node(self) -> None:
        self._nodes.remove_node(self.node, allow_graceful=False)
        self.node = self._nodes.add_node(num_cpus=1)

    def workers(self) -> list[psutil.Process]:
        """What does shards on the nodes: Ray's workers, and the watched processes under them."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ray::_do" in " ".join(process.cmdline()):
                    found += [process, *process.children()]
        return found

    def end(self) -> None:
        self._nodes.shutdown()


def start(settings: Path) -> subprocess.Popen[bytes]:
    """`n9 run`, as a person starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "ninthsky", "run", str(settings), "--only", "data"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits. Exits the benchmark where the run failed: a kill must not make a run fail."""
    said = process.communicate()[1]
    if process.returncode:
        sys.exit(f"the run ended with status {process.returncode}: {said.decode()[-3000:]}")


def digests(run: Path) -> dict[str, str]:
    """Digest of each stage's manifest."""
    return {stage: json.loads((run / "stages" / stage / "manifest.json").read_text())["digest"] for stage in STAGES}


def kill(victim: str, driver: subprocess.Popen[bytes], cluster: Cluster | None, rng: random.Random) -> str:
    """SIGKILL; returns who was hit: nobody where no worker was at work just then."""
    if victim == "driver":
        driver.kill()
        driver.communicate()
    elif victim == "node" and cluster is not None:
        cluster.kill_node()
    else:
        workers = cluster.workers() if cluster is not None else []
        with contextlib.suppress(psutil.Error):
            workers = workers or [p for p in psutil.Process(driver.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        if not workers:
            return "nobody"
        with contextlib.suppress(psutil.Error):
            rng.choice(workers).send_signal(signal.SIGKILL)
    return victim


def points(executor: str, pages: Path, count: int, seed: int, scratch: Path) -> Iterator[tuple[str, float, bool]]:
    """(victim, moment as a share of the run, same digests) of each point."""
    rng = random.Random(f"{seed}/{executor}")
    cluster = Cluster() if executor == "ray" else None
    address = f'ray_address = "{cluster.address}"' if cluster else ""
    victims = ("driver", "worker", "node") if cluster else ("driver", "worker")

    def settings(name: str) -> Path:
        path = scratch / f"{name}.toml"
        path.write_text(_SETTINGS.format(name=name, store=scratch / "runs", executor=executor, address=address, source=pages))
        return path

    try:
        whole = settings(f"{executor}-whole")
        finish(start(whole))  # what numba compiles is on disk afterwards
        shutil.rmtree(scratch / "runs" / whole.stem)
        began = time.monotonic()
        finish(start(whole))
        seconds = time.monotonic() - began
        wanted = digests(scratch / "runs" / whole.stem)
        for number in range(count):
            file = settings(f"{executor}-{number}")
            moment = rng.uniform(0.05, 0.95)
            driver = start(file)
            time.sleep(moment * seconds)
            hit = "nobody" if driver.poll() is not None else kill(victims[number % len(victims)], driver, cluster, rng)
            finish(start(file) if hit == "driver" else driver)
            run = scratch / "runs" / file.stem
            yield hit, moment, digests(run) == wanted
            shutil.rmtree(run)
    finally:
        if cluster is not None:
            cluster.end()


def main(source: Path, executors: list[str], count: int, pages: int, seed: int) -> None:
    """Prints the table and, last, one JSON object."""
    rows: list[list[Any]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        some = Path(scratch) / "pages.parquet"
        pq.write_table(pq.read_table(source, columns=["id", "html"]).slice(0, pages), some)
        for executor in executors:
            same, hits = 0, Counter[str]()
            for hit, moment, equal in points(executor, some, count, seed, Path(scratch)):
                same += equal
                hits[hit] += 1
                print(f"{executor}: {hit} at {moment:.0%}: {'same' if equal else 'OTHER'} bytes", file=sys.stderr, flush=True)
            killed = ", ".join(f"{victim} {times}" for victim, times in sorted(hits.items()))
            rows.append([f"same bytes, {executor}", f"{same} of {count}", killed])
            figures |= {f"kills_{executor}_same": same, f"kills_{executor}_points": count, f"kills_{executor}_hits": dict(hits)}
    publish("kills", rows, figures, columns=("what", "measured", "who was killed"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pages_file, nargs="?", default=str(DEFAULT))
    parser.add_argument("--executors", nargs="+", choices=("local", "ray"), default=["local", "ray"])
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    main(chosen.source, chosen.executors, chosen.points, chosen.pages, chosen.seed)
