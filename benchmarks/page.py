"""What the live page costs at 18,432 ranks: bytes a second to each reader, processor time of its process and of the controller.

Ten simulated minutes over made files, looked at once a second as `n9 guard serve` does; no socket, the bytes are those of the
event stream. A fault every 20 s (its card accused, all forming, all at work again), and 20 cards a second that stop getting on
and go on: assumed noise. Then a storm: every card in a state of its own, drawn by chance.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.report import publish
from ninthsky.evidence import Evidence, Fact
from ninthsky.guard.controller.state import JobState
from ninthsky.guard.faults import Fault, Timeline
from ninthsky.guard.page.acts import Acts
from ninthsky.guard.page.app import event_bytes
from ninthsky.guard.page.cards import Cards
from ninthsky.guard.page.folder import JobFolder
from ninthsky.guard.page.view import View
from ninthsky.guard.picture import FILE, Card, Head, Painter, slots_of
from ninthsky.guard.spec import HostSpec, JobSpec
from ninthsky.run.folder import append_line, write_json

HOSTS, SLOTS, SPARES = 2304, 8, 1
SECONDS = 600
FAULT_EVERY = 20
LIMIT = 20_000  # bytes a second: what was asked


def main() -> None:
    """Prints the table, keeps benchmarks/results/page.json."""
    with tempfile.TemporaryDirectory(prefix="n9-page-") as scratch:
        folder = Path(scratch)
        spec = JobSpec(
            run_id="page",
            folder=str(folder),
            command=["simulated_rank"],
            world=HOSTS * SLOTS,
            hosts=[HostSpec(name=f"node-{n:04d}", slots=SLOTS, spares=SPARES) for n in range(HOSTS)],
        )
        spec.save()
        figures: dict[str, float | int | bool] = {"simulated": True, "ranks": spec.world, **page(folder, spec), **paint(spec)}
    rows = [
        ("difference, mean of ten minutes", f"{figures['bytes_mean']:.0f} B/s", f"asked: at most {LIMIT:,}"),
        ("difference, largest of ten minutes", f"{figures['bytes_largest']} B", ""),
        ("storm of chance states, largest", f"{figures['storm_largest']} B", f"whole after {figures['storm_seconds']} s"),
        ("snapshot for who comes", f"{figures['snapshot_bytes']} B", "once"),
        ("page's process", f"{100 * float(figures['page_core']):.2f} % of a core", "mostly reading files"),
        ("controller's picture", f"{100 * float(figures['paint_core']):.2f} % of a core", "one a second"),
    ]
    publish("page", rows, figures)


def page(folder: Path, spec: JobSpec) -> dict[str, float | int | bool]:
    """Bytes and processor time of the page's side."""
    chance = np.random.default_rng(7)
    start = time.time()
    append_line(folder / "events.jsonl", {"time": start, "kind": "joined", "resume_step": -1})
    kinds = np.full(sum(slots_of(spec)), Card.WORKING, np.uint8)
    kinds[SLOTS :: SLOTS + SPARES] = Card.SPARE
    draw(folder, start, 0, kinds)
    view = View(JobFolder(folder), Acts(folder))
    sizes: list[int] = []
    spent, where = 0.0, 0
    for second in range(SECONDS):
        cards = kinds.copy()
        cards[chance.integers(0, len(cards), 20)] = Card.QUIET
        phase, number = second % FAULT_EVERY, second // FAULT_EVERY + 1
        if phase == 0:
            where = int(chance.integers(0, spec.world))
        if phase in (0, 1, 2):
            state = ("open", "open", "repaired")[phase]
            write_json(
                folder / "faults" / f"F-{number:04d}.json", msgspec.to_builtins(made(number, where, state, start + second))
            )
            if phase == 0:
                cards[where + where // SLOTS] = Card.ACCUSED
            elif phase == 1:
                cards[cards == Card.WORKING] = Card.FORMING
        draw(folder, start + second + 1, second, cards)
        before = time.process_time()
        data = event_bytes("delta", view.step(start + second + 1))
        spent += time.process_time() - before
        sizes.append(len(data))
    storm: list[int] = []
    cards = chance.integers(0, len(Card), len(kinds)).astype(np.uint8)
    while True:
        draw(folder, start + SECONDS + len(storm) + 2, SECONDS, cards)
        delta = view.step(start + SECONDS + len(storm) + 2)
        storm.append(len(event_bytes("delta", delta)))
        if "cards" not in delta:
            break
    return {
        "bytes_mean": float(np.mean(sizes)),
        "bytes_p99": float(np.quantile(sizes, 0.99)),
        "bytes_largest": max(sizes),
        "storm_largest": max(storm),
        "storm_seconds": len(storm) - 1,
        "snapshot_bytes": len(event_bytes("snapshot", view.snapshot())),
        "page_core": spent / SECONDS,
        "within": max(*sizes, *storm) <= LIMIT,
    }


def draw(folder: Path, at: float, step: int, cards: Cards) -> None:
    """What the controller writes."""
    head = Head(time=at, stage="run", generation=1, step=step, committed=step - 1, steps=((step, 1.0),))
    draft = folder / "draft"
    draft.write_bytes(msgspec.json.encode(head) + b"\n" + cards.tobytes())
    draft.replace(folder / FILE)


def made(number: int, rank: int, state: str, at: float) -> Fault:
    """A fault with as much evidence as the judge of slow cards gives."""
    host, card = f"node-{rank // SLOTS:04d}", f"node-{rank // SLOTS:04d}/{rank % SLOTS}"
    evidence = Evidence(
        id=f"F-{number:04d}",
        kind="fault",
        subject=f"card {card} (rank {rank})",
        verdict="own work takes longer, on both clocks: a slow core, or more work than its peers (injected by this run)",
        facts=tuple(
            Fact(f"local time against the peers' median, {n}", 1.72, 1.5, "x", "records of 64 steps") for n in range(6)
        ),
        ruled_out=("a neighbour on the host: its processor time grew as much as its wall time",),
        remedy="regrouped, another card takes its place: it does more work, or works slower, than every peer",
        confidence=0.98,
    )
    return Fault(
        id=evidence.id,
        cause="slow",
        state="repaired" if state == "repaired" else "open",
        injected=True,
        generation=1,
        step=number,
        rank=rank,
        host=host,
        card=card,
        timeline=Timeline(began=at - 3, named=at, aborted=at, trained=at + 2 if state == "repaired" else None),
        evidence=evidence,
    )


def paint(spec: JobSpec) -> dict[str, float]:
    """Processor time of the controller's side: a picture a second, and ten looks at the newest step."""
    state = JobState(spec, lambda *_: None, lambda *_, **__: None, time.monotonic, time.time)
    pids = itertools.count(1)
    for host in spec.hosts:
        for slot in range(SLOTS + SPARES):
            proc = state.roster.process(host.name, slot, next(pids))
            proc.ready = True
            if slot < SLOTS:
                state.roster.places.append(proc)
    state.generation = 1
    state.enter("run")
    state.fleet.begin(1, state.roster.table(), time.monotonic())
    painter = Painter(state)
    painter.write()
    begun = time.process_time()
    for _ in range(30):
        painter.write()
        for _ in range(10):
            state.fleet.step()
    return {"paint_core": (time.process_time() - begun) / 30}


if __name__ == "__main__":
    main()
