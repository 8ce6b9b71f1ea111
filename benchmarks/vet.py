"""What `n9 train vet` finds of planted faults, and how often it cries over a sound device.

    python -m benchmarks.vet [--seeds 10]

Every fault is planted in the simulated device and all operators are examined; found means that an operator fails which the
fault is blamed on. Three lists: faults known while the tests were written, faults written afterwards (for one of which a test
was added), and faults written after the last change.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

from benchmarks.report import publish
from ninthsky.train.vet import simulated
from ninthsky.train.vet.examine import Examination, examine
from ninthsky.train.vet.faults import KNOWN, Planted
from ninthsky.train.vet.heldback import HELD, LATE


def asked(device: torch.device, seed: int, golden: int = 0, speeds: bool = False) -> Examination:
    return examine(device, seed, times=4, golden=golden, size=64 if speeds else 0, bytes_=16 << 20, collectives=False)


def found(device: torch.device, planted: dict[str, Planted]) -> tuple[list[str], list[str]]:
    """-> (found, missed), each told as it comes."""
    lists: tuple[list[str], list[str]] = ([], [])
    for name, fault in planted.items():
        with simulated.planted(fault.make()):
            failed = {verdict.name for verdict in asked(device, 0, speeds="speeds" in fault.blamed).failed}
        missed = not failed & set(fault.blamed)
        lists[missed].append(name)
        print(f"{'MISSED' if missed else 'found '}  {name:24s} {', '.join(sorted(failed))}", flush=True)
    return lists


def alarms(device: torch.device, seeds: range) -> list[str]:
    """What a sound device is accused of."""
    told = []
    for seed in seeds:
        seen = asked(device, seed, golden=20 if seed < seeds.start + 4 else 0)
        told += [f"{device.type}, seed {seed}: {verdict.name}: {verdict.problem}" for verdict in seen.failed]
    print("\n".join(told) or f"no alarm on {device.type}", flush=True)
    return told


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seeds", type=int, default=10)
    seeds = options.parse_args().seeds
    torch.set_num_threads(1)
    device = simulated.register()
    lists = {"known": found(device, KNOWN), "held": found(device, HELD), "late": found(device, LATE)}
    begin = time.process_time()
    false = [alarm for on in (torch.device("cpu"), device) for alarm in alarms(on, range(100, 100 + seeds))]
    seconds = (time.process_time() - begin) / (2 * seeds)
    quick = subprocess.run(
        [sys.executable, "-m", "ninthsky", "train", "vet", "--device", "cpu", "--quick"], check=True, capture_output=True
    )
    figures: dict[str, object] = {"false_alarms": len(false), "examinations": 2 * seeds, "cpu_seconds_per_examination": seconds}
    titles = {
        "known": "faults known while the tests were written",
        "held": "faults written afterwards (a test was added for one)",
        "late": "faults written after the last change",
    }
    rows = []
    for name, (seen, missed) in lists.items():
        figures |= {f"found_{name}": len(seen), f"planted_{name}": len(seen) + len(missed)}
        rows.append((titles[name], f"{len(seen)} of {len(seen) + len(missed)} found", ", ".join(missed)))
    rows.append(("sound devices (cpu, simulated)", f"{len(false)} false alarms", f"{2 * seeds} examinations"))
    rows.append(("an examination, without speeds", f"{seconds:.1f} CPU seconds", "golden run in four of ten"))
    rows.append(("--quick, one JSON line", f"{len(quick.stdout.splitlines())} line", ""))
    publish("vet", rows, figures, ("what", "measured", ""))


if __name__ == "__main__":
    main()
