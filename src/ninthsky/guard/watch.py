"""What a person sees of a run as it happens: stages, steps, faults with their evidence, repairs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ninthsky.guard.faults import Fault

POLL_SECONDS = 0.2
LAST = "run.end"


def follow(run_folder: Path, json_lines: bool, *, forever: bool = True) -> None:
    """Prints a run's events.jsonl and goes on with what is added, until Ctrl-C or the end of the run.

    On a terminal the newest step stands in a live line at the foot; `forever=False` stops at the end of the file.
    """
    events = _events(run_folder / "events.jsonl", forever)
    if json_lines:
        for event in events:
            print(json.dumps(event, ensure_ascii=False), flush=True)
    elif sys.stdout.isatty():
        _follow_live(events)
    else:
        for event in events:
            text = line_of(event)
            if text:
                print(text, flush=True)


def _follow_live(events: Iterator[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        for event in events:
            text = line_of(event)
            if event["kind"] == "commit":
                live.update(Text(text, style="cyan"))
            elif text:
                if event["kind"] == "fault.named":
                    name = event.get("card") or event.get("host") or "nobody"
                    live.console.rule(Text(f"  {name}  ", style="bold white on red"))
                live.console.print(Text(text, style=_STYLES.get(event["kind"], "")))


def _events(path: Path, forever: bool) -> Iterator[dict[str, Any]]:
    offset = 0
    while True:
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    offset += len(line)
                    event = json.loads(line)
                    yield event
                    if event["kind"] == LAST:
                        return
        if not forever:
            return
        time.sleep(POLL_SECONDS)


_STYLES = {
    "fault.named": "bold red",
    "fault.rung": "yellow",
    "fault.advised": "bold yellow",
    "fault.repaired": "green",
    "job.failed": "bold red",
    "control.fired": "bold yellow",
    "control.order": "cyan",
    "stage.start": "bold",
    "stage.done": "green",
    "stage.fail": "bold red",
    "host.refused": "yellow",
    "job.shrunk": "yellow",
    "rollback": "yellow",
    "approval.done": "green",
    "approval.useless": "yellow",
    "drain.done": "yellow",
    "drain.failed": "bold red",
    "selftest.failed": "bold red",
    "link.failed": "bold red",
    "telemetry.problem": "yellow",
}


def line_of(event: dict[str, Any]) -> str:
    """An event as a person reads it; nothing for those that only matter to programs."""
    kind = event["kind"]
    clock = time.strftime("%H:%M:%S", time.localtime(event["time"])) if "time" in event else ""
    text = _text(kind, event)
    if not text:
        return ""
    head, *rest = text.split("\n")
    return "\n".join([f"{clock}  {head}", *(f"{' ' * len(clock)}    {line}" for line in rest)])


def _text(kind: str, e: dict[str, Any]) -> str:
    if kind in {"fault.named", "fault.rung"}:
        head = (
            f"FAULT {e['fault']}  {e['subject']}: {e['verdict']}" if kind == "fault.named" else f"{e['fault']}  {e['verdict']}"
        )
        lines = [head + (f"  (step {e['step']})" if kind == "fault.named" else "")]
        lines += [f"evidence   {fact}" for fact in e["facts"]]
        lines += [f"ruled out  {line}" for line in e["ruled_out"]]
        lines.append(f"remedy     {e['remedy']}")
        return "\n".join(lines)
    if kind == "fault.repaired":
        took = f"{e['seconds']:.2f} s after it began" if e["seconds"] is not None else ""
        place = f", {e['now']} took the place of {e['was']}" if e["now"] else ""
        return (
            f"repaired {e['fault']}: training again {took}{place}; {e['steps_redone']} steps redone, "
            f"{e['committed_steps_lost']} committed steps lost"
        )
    texts = {
        "run.start": "run {name}, size {size}",
        "run.end": "run ended: {status}, {seconds_text}",
        "stage.start": "stage {stage}",
        "stage.done": "stage {stage} done in {seconds:.1f} s",
        "stage.fail": "stage {stage} FAILED: {error}",
        "commit": "step {step} committed (generation {generation})",
        "generation": "generation {generation}: {reason}",
        "command.started": "start {attempt} of the command",
        "joined": "all ranks joined generation {generation}, going on after step {resume_step}",
        "inject": "injected: {fault} on rank {rank} at step {step}, attempt {attempt}",
        "control.fired": "control {id}: {verdict}; {remedy}",
        "control.order": "ordered: {text}, from step {step} on",
        "control.refused": "orders are not listened to: {reason}",
        "fault.advised": "{fault}: advised only: {remedy}",
        "fault.evidence": "{fault}: its reason came: {text}",
        "selftest.ordered": "{who} ordered self-tests: {order}",
        "selftest.done": "self-test of card {card}: {text}",
        "selftest.failed": "self-test of card {card}: {text}",
        "link.done": "link between {hosts}: {text}",
        "link.failed": "link between {hosts}: {text}",
        "telemetry.problem": "host {host}: {text}",
        "approval.done": "{fault}: {who} approved what was advised, and it is done",
        "approval.useless": "{fault}: {who} approved what was advised, but nothing waited for it any more",
        "drain.done": "host {host} was drained",
        "drain.failed": "host {host} could not be drained: {text}",
        "host.refused": "host {host} came back and was refused: it was replaced",
        "card.kept_out": "card {card} is kept out: {reason}",
        "spare.ready": "card {host}/{slot} has a spare ready",
        "spare.wanted": "no spare is left: waiting for a restarted process",
        "job.shrunk": "shrunk from {before} to {ranks} ranks: {reason}",
        "job.grown": "grown from {before} to {ranks} ranks: {reason}",
        "rollback": "went back to step {step}: {steps_lost} committed steps lost",
        "controller.restarted": "the controller was restarted",
        "controller.recovered": "the controller goes on from its journal",
        "refused": "turned away at {host}: {counts}",
        "watch.ranks": "watching ranks {ranks} of {world} on {host}",
        "watch.waits": "{text}: waiting for them",
        "watch.blind": "cannot be seen: {text}",
        "watch.end": "watched for {seconds} s with {processor_share_per_rank:.2%} of a processor for each rank",
        "job.done": "job done, {faults} faults",
        "job.failed": "job FAILED: {reason}",
    }
    return texts[kind].format(**e) if kind in texts else ""


def fault_text(fault: Fault) -> str:
    """A fault as `n9 guard faults` prints it."""
    lines = [fault.evidence.render(), f"  state      {fault.state}"]
    for mark in ("named", "aborted", "assigned", "joined", "trained"):
        seconds = fault.seconds(mark)
        if seconds is not None:
            lines.append(f"  {mark:<10} {seconds:.3f} s after it began")
    lines.append(f"  cost       {fault.steps_redone} steps redone, {fault.committed_steps_lost} committed steps lost")
    if fault.replaced_by:
        lines.append(f"  now        {fault.replaced_by}")
    return "\n".join(lines)
