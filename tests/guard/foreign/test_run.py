"""`n9 guard run` itself: real processes, a script that knows nothing of us, struck from outside."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ninthsky.errors import UserError
from ninthsky.guard.agent.store import remove_folder
from ninthsky.guard.faults import Fault, read_faults
from ninthsky.guard.foreign.command import INJECT
from ninthsky.guard.foreign.run import Options, Run, main, parse_hosts
from ninthsky.guard.probe import watch
from ninthsky.guard.probe.record import parse
from ninthsky.guard.spec import Watch

N9 = [sys.executable, "-m", "ninthsky", "guard", "run"]
SCRIPT = Path(__file__).parent / "scripts" / "ddp.py"
WAIT = 90.0


def wait_for(what: str, test: object) -> None:
    deadline = time.monotonic() + WAIT
    while not test():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what}: not within {WAIT:.0f} s"
        time.sleep(0.02)


def process_of(job: Path, rank: int, step: int) -> int:
    """Of the rank, once it is past the step."""
    found = 0

    def look() -> bool:
        nonlocal found
        for path in Path("/dev/shm").glob(f"n9-{job.name}-*/*.record"):
            try:
                record = parse(path.read_bytes())
            except (OSError, ValueError):
                continue
            if record is not None and record.rank == rank and record.step >= step:
                found = int(path.stem)
        return found != 0 and os.path.exists(f"/proc/{found}")

    wait_for(f"rank {rank} at step {step}", look)
    return found


@pytest.mark.slow
def test_killed_then_frozen_and_it_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    job = tmp_path / f"job{os.getpid()}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    script = [str(SCRIPT), "--out", str(tmp_path), "--steps", "100000", "--save-every", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*N9, "--job", str(job), "--act", "--restarts", "1", "--", *torchrun, *script]
    guard = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        os.kill(process_of(job, 1, 6), signal.SIGKILL)

        def found(number: int) -> bool:
            return len(read_faults(job / "faults")) >= number

        wait_for("the kill to be named", lambda: found(1))
        wait_for("all to train again", lambda: read_faults(job / "faults")[0].state == "repaired")
        frozen = process_of(job, 2, 6)
        os.kill(frozen, signal.SIGSTOP)
        out, _ = guard.communicate(timeout=WAIT)
    finally:
        if guard.poll() is None:
            guard.terminate()
            guard.wait(WAIT)
    killed, stopped = read_faults(job / "faults")
    assert (killed.cause, killed.rank, killed.state) == ("exit", 1, "repaired")
    assert killed.resume_step is not None and killed.resume_step >= 1 and "resumes at step" in out
    assert (stopped.cause, stopped.rank, stopped.state) == ("frozen", 2, "stopped")
    assert _process(stopped) == str(frozen) and "used up" in stopped.evidence.remedy
    assert guard.returncode == 1  # --restarts 1 is used up: the frozen rank is ended, and the command with it
    wait_for("the frozen rank to be gone", lambda: not os.path.exists(f"/proc/{frozen}"))
    assert not list(Path("/dev/shm").glob(f"n9-{job.name}-*"))
    assert "resumes at step" in (job / "logs" / "command-2.out").read_text()


def _process(fault: Fault) -> object:
    return next(fact.value for fact in fault.evidence.facts if fact.name == "process")


def test_output_status_and_another_sitecustomize_pass_through(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.of_the_cluster = 'chained'\n")
    script = "import sys; print(of_the_cluster); print('trouble', file=sys.stderr); sys.exit(7)"
    command = [*N9, "--job", str(tmp_path / "job"), "--", sys.executable, "-c", script]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert (done.returncode, done.stdout) == (7, "chained\n") and "trouble" in done.stderr
    assert (tmp_path / "job" / "logs" / "command-1.out").read_text() == "chained\n"


def test_a_signal_passes_through_and_the_command_outlives_its_guard(tmp_path: Path) -> None:
    told = "import signal as s, sys, time; s.signal(s.SIGTERM, lambda *a: sys.exit(5)); print('up', flush=True); time.sleep(99)"
    guard = subprocess.Popen([*N9, "--job", str(tmp_path / "a"), "--", sys.executable, "-c", told], stdout=subprocess.PIPE)
    assert guard.stdout is not None and guard.stdout.readline() == b"up\n"
    guard.send_signal(signal.SIGTERM)
    assert guard.wait(WAIT) == 5

    lives = "import time; print('up', flush=True); time.sleep(1); print('done', flush=True)"
    guard = subprocess.Popen([*N9, "--job", str(tmp_path / "b"), "--", sys.executable, "-c", lives], stdout=subprocess.PIPE)
    assert guard.stdout is not None and guard.stdout.readline() == b"up\n"
    guard.kill()
    guard.wait(WAIT)
    log, left = tmp_path / "b" / "logs" / "command-1.out", Path(f"/dev/shm/n9-b-{guard.pid}")
    wait_for("the command to go on", lambda: log.read_text() == "up\ndone\n")
    assert left.exists()
    run = Run(["x"], Options(tmp_path / "b", Watch(), 0, 30.0))  # the next guard in this folder cleans up
    assert not left.exists()
    remove_folder(run.shared)


def test_a_command_that_cannot_be_started_is_said_so(tmp_path: Path) -> None:
    run = Run(["no-such-program"], Options(tmp_path, Watch(), 0, 30.0))
    with pytest.raises(UserError, match="cannot be started") as told:
        asyncio.run(run.run())
    assert told.value.code == "N9-GRD-060" and not run.shared.exists()


def test_what_does_not_fit_together_is_one_clear_error(tmp_path: Path) -> None:
    for hosts, host in (("a:2,b", "a"), ("a:2,b:2", "c")):
        with pytest.raises(UserError, match="N9-GRD-060"):
            parse_hosts(hosts, host)
    with pytest.raises(UserError, match="no command"):
        main([], Options(tmp_path, Watch(action="act"), 1, 30.0))


def test_without_a_guard_a_script_of_two_lines_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not watch(tmp_path)
    assert "n9 guard run --job" in capsys.readouterr().err


def test_where_the_probe_fails_the_script_goes_on(tmp_path: Path) -> None:
    """With a torch that has nothing of what the probe needs, but for the hook on optimizers."""
    package = tmp_path / "torch" / "optim"
    package.mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "optimizer.py").write_text(
        "hooks = []\nregister_optimizer_step_pre_hook = register_optimizer_step_post_hook = hooks.append\n"
        "def step():\n    for hook in hooks: hook(None, (), {})\n"
    )
    script = "import torch.optim.optimizer as o; o.step(); o.step(); print(len(o.hooks), 'done')"
    environment = {**os.environ, "PYTHONPATH": f"{INJECT}{os.pathsep}{tmp_path}", "N9_RANKS": str(tmp_path), "N9_SOURCE": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert done.stdout == "2 done\n" and done.returncode == 0
    assert done.stderr.count("cannot be watched from within") == 1 and "Traceback" not in done.stderr
