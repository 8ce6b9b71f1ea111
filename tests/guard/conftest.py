from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ninthsky.guard.spec import HostSpec, Injected, JobSpec, Watch
from tests.guard.out.receiver import Receiver

MakeJob = Callable[..., JobSpec]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def make_job(tmp_path: Path, job_maker: Callable[[Path], MakeJob]) -> MakeJob:
    """Builds a job under this test's own folder."""
    return job_maker(tmp_path)


@pytest.fixture(scope="session")
def job_maker() -> Callable[[Path], MakeJob]:
    """Of a folder: what builds jobs of four simulated ranks on two hosts with a spare each; no torch in it."""
    return _maker


def _maker(tmp_path: Path) -> MakeJob:
    def make(
        name: str,
        inject: list[dict[str, Any]] | None = None,
        *,
        plan: dict[str, Any] | None = None,
        spares: int = 1,
        **watch: Any,
    ) -> JobSpec:
        folder = tmp_path / name
        for part in ("marks", "checkpoints"):
            (folder / part).mkdir(parents=True)
        faults = inject or []
        folders = {part: str(folder / part) for part in ("marks", "checkpoints")}
        given = {"steps": 30, "inject": faults, **folders, **(plan or {})}
        return JobSpec(
            run_id=f"t-{abs(hash(str(folder))) % 10**10}",
            folder=str(folder),
            command=[sys.executable, "-m", "ninthsky.guard.drill.simulated_rank"],
            env={"N9_SIMULATED": json.dumps(given)},
            world=4,
            hosts=[HostSpec(name=f"host-{n}", slots=2, spares=spares) for n in range(2)],
            watch=Watch(**{"action": "act", "kernel_log": "off", "selftest": "off", **watch}),
            injected=[
                Injected(f["kind"], f["rank"], f["step"]) for f in faults if f["kind"] in {"kill", "freeze", "nan", "slow"}
            ],
        )

    return make
