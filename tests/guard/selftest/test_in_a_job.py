"""Real agents test a suspected card, all cards of a host by hand, and the link between two hosts, while ranks train."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ninthsky.guard.job import run_job

pytestmark = pytest.mark.slow

# A stand-in for `n9 train vet --quick`, which needs torch: it notes which card it was started for.
VET = (
    "import json, os; open({log!r}, 'a').write(os.environ['N9_HOST'] + '/' + os.environ['N9_SLOT'] + '\\n');"
    "print(json.dumps({answer!r}))"
)


def test_suspected_cards_hosts_and_links(make_job: Any, tmp_path: Path) -> None:
    log = tmp_path / "tested"
    vet = VET.format(log=str(log), answer={"good": True, "device": "made up", "products": 4})
    fault = {"kind": "nan", "rank": 3, "step": 5, "sticks": "card", "card": "host-1/1"}
    spec = make_job("doubt", [fault], plan={"steps": 10**6, "work_ms": 40.0}, selftest="suspected")
    spec = msgspec.structs.replace(spec, vet=[sys.executable, "-S", "-c", vet])
    asked: list[subprocess.Popen[str]] = []
    events: list[dict[str, Any]] = []

    def ask(*words: str) -> None:
        command = [sys.executable, "-m", "ninthsky", "guard", "selftest", spec.folder, "--json", *words]
        asked.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        if event["kind"] == "selftest.done" and event["fault"]:
            ask("--host", "host-0")
            ask("--link", "host-0", "--link", "host-1")
        if asked and all(process.poll() is not None for process in asked):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(spec, on_event)
    cards, link = ([json.loads(line) for line in process.communicate()[0].splitlines()] for process in asked)
    assert [process.returncode for process in asked] == [0, 0]
    assert [(event["kind"], event["card"]) for event in cards] == [("selftest.done", f"host-0/{slot}") for slot in range(3)]
    assert link[0]["kind"] == "link.done" and link[0]["hosts"] == "host-0, host-1" and link[0]["figures"]["damaged"] == 0
    tested = log.read_text().split()
    assert tested[:3] == ["host-1/1"] * 3 and tested[3:] == ["host-0/0", "host-0/1", "host-0/2"]
    kinds = [event["kind"] for event in events]
    assert "card.kept_out" not in kinds and kinds.count("fault.named") == 1
