"""The watch of one job on this host: samples its ranks, follows what is written, judges, tells. It changes and ends nothing."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ninthsky.errors import FAILED, OK, UserError
from ninthsky.evidence import Fact
from ninthsky.guard.agent.spawner import tail_of
from ninthsky.guard.faults import Fault
from ninthsky.guard.judges.verdict import Verdict
from ninthsky.guard.passive.live.crew import PAUSE_SECONDS, Crew, host_name, places_of
from ninthsky.guard.passive.live.ends import End, Ends, Gone, judge_ends
from ninthsky.guard.passive.live.glances import LASTS
from ninthsky.guard.passive.live.logs import Logs
from ninthsky.guard.passive.live.processes import Rank, command_of, find_ranks, log_files_of, may_be_read, read_process
from ninthsky.guard.passive.live.readings import Readings
from ninthsky.guard.passive.live.reasons import Reasons
from ninthsky.guard.passive.live.record import Record, key_of
from ninthsky.guard.passive.live.slowness import SPAN, SPANS, judge_slow
from ninthsky.guard.passive.live.stacks import Stacks, take_stacks
from ninthsky.guard.passive.live.verdicts import Stall, idle_seconds, judge_stall, judge_stopped, stalled_seconds
from ninthsky.guard.picture import Card
from ninthsky.guard.playbook.book import Playbook, shipped
from ninthsky.guard.telemetry.note import Note
from ninthsky.guard.telemetry.watcher import HostWatch

JUDGE_SECONDS = 0.5
SLOW_SECONDS = 2.5  # between two questions for slow ranks
SETTLE_SECONDS = 0.5  # after the first end: what the others do, and the last lines of logs
LOOK_SECONDS = 0.5  # between two looks at the logs
FIND_SECONDS = 5.0  # between two looks for ranks that were started anew
LATE_SECONDS = 60.0  # after the first ranks, others of the same start may come
SCRAPE_SECONDS = 10.0
FIRST_RANKS_SECONDS = 120.0  # for the launcher to start its ranks
STEPS_KNOWN = 5  # new step numbers seen in the logs: from then on they tell of progress
STEPS_FACTOR = 5.0  # patience against the longest time between two of them
GOES_ON_SECONDS = 2.0  # of work on all ranks until a fault counts as over
SLOW_OVER_SECONDS = 30.0  # without standing out
STANDS = frozenset({"frozen", "stuck", "mismatch", "unknown", "exit"})  # faults for which the job stands


@dataclass(frozen=True)
class Wish:
    """What is to be watched. `roots` gives the processes under which ranks are looked for, each time anew."""

    name: str
    roots: Callable[[], Sequence[int]]
    folder: Path
    logs: tuple[Path, ...] = ()
    exporters: tuple[str, ...] = ()
    kernel_log: str = "auto"
    patience: float = 10.0  # seconds without progress
    slow_ratio: float = 1.25


class Watcher:
    """`await run()` until the job's processes are gone."""

    def __init__(self, wish: Wish, record: Record, book: Playbook | None = None) -> None:
        self.wish, self.record = wish, record
        self.host = host_name()
        self._reasons = Reasons(book or shipped(), self.host)
        self._logs = Logs(list(wish.logs))
        self._ends = Ends(self._ended)
        self._crew: Crew | None = None
        self._roots: dict[int, End | None] = {}
        self._failed = False
        self._blind = ""  # why stacks could not be had, as it was told
        self._began, self._used = time.monotonic(), _used()

    async def run(self) -> int:
        """The exit status: FAILED where the job ended by a fault. Raises UserError N9-GRD-050 where there is no job."""
        crew = await self._first_ranks()
        telemetry = HostWatch(
            self.host, max(crew.cards().values()) + 1, " ".join(self.wish.exporters), self.wish.kernel_log, SCRAPE_SECONDS,
            self._noted, self._slot_of,
        )  # fmt: skip
        beside = asyncio.create_task(telemetry.run())
        try:
            await self._follow(telemetry)
        finally:
            beside.cancel()
            telemetry.close()
            self._ends.close()
            self._say_end()
        return FAILED if self._failed else OK

    # -- finding ------------------------------------------------------------------------------------------------------

    async def _first_ranks(self) -> Crew:
        deadline = time.monotonic() + FIRST_RANKS_SECONDS
        found: list[Rank] = []
        waits = False
        while time.monotonic() < deadline:
            roots = self.wish.roots()
            if not any(read_process(pid) is not None for pid in roots):
                what = f"no process {', '.join(map(str, roots))}"
                raise UserError("N9-GRD-050", what, self.wish.name, "n9 guard watch --pid PID, on the host where it runs")
            ranks = find_ranks(roots)
            if not may_be_read(roots):
                what = f"the environment of process {', '.join(map(str, roots))} may not be read"
                raise UserError("N9-GRD-050", what, self.wish.name, "watch as the job's user, or with sudo")
            if not ranks and not waits:
                waits = True
                self.record.event("watch.waits", text=f"no rank below process {', '.join(map(str, roots))} yet")
            if ranks and len(ranks) == len(found):
                return self._take(ranks, roots)  # twice the same number: all are started
            found = ranks
            await asyncio.sleep(0.5)
        raise UserError(
            "N9-GRD-050", "no rank below it: nobody's environment has RANK, OMPI_COMM_WORLD_RANK, PMI_RANK or SLURM_PROCID",
            self.wish.name, "give the launcher's PID (torchrun, mpirun, accelerate), as the job's user",
        )  # fmt: skip

    def _take(self, ranks: list[Rank], roots: Sequence[int]) -> Crew:
        generation = 0 if self._crew is None else self._crew.generation + 1
        self._crew = crew = Crew(ranks, generation)
        for pid in roots:
            self._roots.setdefault(pid, None)
        living = [pid for pid, end in self._roots.items() if end is None]
        for pid in self._ends.watch([*living, *(rank.pid for rank in ranks)]):
            self._ended(End(pid, None, time.time(), 0))
        owners: dict[Path, set[int]] = {}
        for rank in ranks:
            for path in log_files_of(rank.pid):
                owners.setdefault(path, set()).add(rank.rank)
        self._logs.add(owners, {path: next(iter(who)) for path, who in owners.items() if len(who) == 1})
        self.record.describe(self.wish.name, command_of(ranks[0].pid), self.host, ranks)
        self.record.event(
            "watch.ranks", host=self.host, ranks=[rank.rank for rank in ranks], pids=[rank.pid for rank in ranks],
            world=crew.world, generation=generation, logs=[str(path) for path in self._logs.paths],
        )  # fmt: skip
        return crew

    def _look_for_ranks(self, crew: Crew) -> bool:
        """New ranks become the new crew; False where the job is over."""
        if len(crew.alive) == len(crew.ranks) and time.monotonic() - crew.begun > LATE_SECONDS:
            return True
        ended = {one.end.pid for one in crew.gone}
        try:
            roots = self.wish.roots()
        except UserError as error:  # Slurm knows the job no more
            if crew.alive:
                self.record.event("watch.blind", text=error.what)
            return bool(crew.alive)
        ranks = [rank for rank in find_ranks(roots) if rank.pid not in ended]
        if any(rank.pid not in {known.pid for known in crew.ranks} for rank in ranks):
            self._take(ranks, roots)
            return True
        return bool(crew.alive) or any(end is None for end in self._roots.values())

    def _ended(self, end: End) -> None:
        """A rank or a launcher ended; called by the event loop at once."""
        if end.pid in self._roots:
            self._roots[end.pid] = end
        crew = self._crew
        rank = next((rank for rank in crew.ranks if rank.pid == end.pid), None) if crew is not None else None
        if crew is not None and rank is not None:
            mine = [path for path in self._logs.paths if self._logs.owner(path) == rank.rank]
            log, tail = (str(mine[-1]), tail_of(mine[-1])) if mine else ("", "")
            crew.gone.append(Gone(rank.rank, rank.local, end, log, tail))

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _follow(self, telemetry: HostWatch) -> None:
        judge_at = look_at = slow_at = 0.0
        find_at = time.monotonic() + FIND_SECONDS
        while (crew := self._crew) is not None:
            now = time.monotonic()
            if crew.alive:
                crew.sampler.sample()
            if now >= look_at:
                look_at = now + LOOK_SECONDS
                self._reasons.lines(self._logs.read(now), now)
            if crew.gone and time.time() - crew.gone[0].end.at >= SETTLE_SECONDS:
                self._judge_ends(crew, telemetry)
            elif now >= judge_at and crew.alive:
                judge_at = now + JUDGE_SECONDS
                await self._judge(crew)
                if now >= slow_at:
                    slow_at = now + SLOW_SECONDS
                    await self._judge_slow(crew)
            over = not crew.alive and time.time() - crew.gone[-1].end.at > SETTLE_SECONDS
            if now >= find_at or over:
                find_at = now + FIND_SECONDS
                if not self._look_for_ranks(crew):
                    self._judge_ends(crew, telemetry)  # all may have ended while something else was judged
                    return
            self._paint(crew, "run")
            # Not in step with anything that comes and goes with a period of its own.
            await asyncio.sleep(max(0.02, crew.sampler.every * random.uniform(0.7, 1.3) - (time.monotonic() - now)))

    # -- judging ------------------------------------------------------------------------------------------------------

    async def _judge(self, crew: Crew) -> None:
        readings = crew.sampler.readings()
        stopped = judge_stopped(readings)
        for verdict in stopped:
            if self._open(verdict) is None:
                stacks = await self._stacks([rank for rank in crew.alive if rank.rank in verdict.ranks])
                self._tell(crew, verdict, [Fact("it stands in", str(stack), source="py-spy") for stack in stacks.of.values()])
        runs_again = {rank.rank for rank in crew.alive} - {rank for verdict in stopped for rank in verdict.ranks}
        for fault in [f for f in self.record.open.values() if f.cause == "frozen" and f.rank in runs_again]:
            self.record.close(fault, "it was continued by somebody")
        seconds = stalled_seconds(readings)
        crew.note_pause(seconds, told=self._stands)
        if stopped or crew.gone:
            crew.looks = None
            return
        seconds, patience, by_steps = self._quiet(crew, readings, seconds)
        if not by_steps:
            self._close_over(crew, readings, seconds)
        if seconds < patience:
            crew.looks = None
        elif crew.looks is None or time.monotonic() >= crew.looks.due:
            await self._compare(crew, seconds, patience, by_steps)

    def _quiet(self, crew: Crew, readings: Readings, seconds: float) -> tuple[float, float, bool]:
        """(seconds without progress, patience, whether the logs' steps alone say so), main threads and logs together."""
        patience, steps, now = crew.patience(self.wish.patience), self._logs.steps, float(readings.times[-1])
        if steps.seen < STEPS_KNOWN:
            return seconds, patience, False
        still = now - steps.moved
        if still < seconds:
            return still, patience, False  # the logs go on: no stall
        by_steps = seconds < patience and still >= STEPS_FACTOR * max(patience, steps.longest)
        return (still if by_steps else seconds), patience, by_steps

    async def _compare(self, crew: Crew, seconds: float, patience: float, by_steps: bool) -> None:
        """Two looks at all ranks tell who stands elsewhere than the others, and does so still."""
        before, after = crew.look(await self._stacks(crew.alive), patience)
        if before is None or self._crew is not crew or crew.gone:
            return
        # Where steps alone stand still, main threads wait for devices at full speed: work says nothing.
        busy = frozenset[int]() if by_steps else after.busy_since(before)
        stall = Stall(seconds, patience, before.stacks, after.stacks, crew.world, busy, by_steps)
        verdict = judge_stall(crew.sampler.readings(), stall)
        told = [fault for fault in self.record.open.values() if fault.cause in STANDS]
        # Once told, only another rank is news: the one before goes on, and the job stands for another reason.
        if verdict is None or self._open(verdict) is not None or (told and not verdict.ranks):
            crew.later(before)
            return
        for fault in told:
            self.record.close(fault, "it goes on, and the job stands for another reason")
        self._tell(crew, verdict, [])

    async def _judge_slow(self, crew: Crew) -> None:
        now, readings = time.monotonic(), crew.sampler.readings()
        if crew.gone or self._stands:
            crew.slow_from = now
            crew.glances.forget(now)
            return
        readings = readings.last(min(readings.span, now - crew.slow_from))
        verdicts = judge_slow(readings, self.wish.slow_ratio)
        lasts = 0.0
        if not verdicts and now >= crew.glances.due and len(crew.ranks) >= 3:
            glance = crew.glances.take(await self._stacks(crew.alive))
            verdicts, lasts = ([glance], LASTS) if glance is not None else ([], 0.0)
        crew.calm = crew.calm or (not verdicts and readings.span >= SPANS * SPAN)
        for verdict in verdicts:
            crew.slow_seen = now + lasts
            if self._open(verdict) is None:
                always = "as long as it is watched: perhaps the program gives it more to do"
                self._tell(crew, verdict, [Fact("it stands out", "after others were like it" if crew.calm else always)])
        if not verdicts and now - crew.slow_seen >= SLOW_OVER_SECONDS:
            for fault in [fault for fault in self.record.open.values() if fault.cause in {"slow", "host"}]:
                self.record.close(fault, "its peers no longer wait for it")

    def _judge_ends(self, crew: Crew, telemetry: HostWatch) -> None:
        """One fault for all ends of a crew, from what logs and host have said by now."""
        if crew.end_told:
            return
        self._reasons.lines(self._logs.read(time.monotonic()), time.monotonic())
        telemetry.look()
        launcher = next((end for end in self._roots.values() if end is not None), None)
        verdict = judge_ends(crew.gone, len(crew.alive), launcher)
        if verdict is not None:
            self._failed = crew.end_told = True
            self._tell(crew, verdict, [])

    def _close_over(self, crew: Crew, readings: Readings, seconds: float) -> None:
        """Faults for which the job stood are over where all main threads work again."""
        if seconds >= PAUSE_SECONDS or not self._stands or float(idle_seconds(readings).max()) > GOES_ON_SECONDS:
            return
        end = readings.last(GOES_ON_SECONDS)
        if end.span < 0.8 * GOES_ON_SECONDS or float((end.ran[:, -1] - end.ran[:, 0]).min()) <= 0:
            return
        for fault in [fault for fault in self.record.open.values() if fault.cause in STANDS]:
            again = fault.generation < crew.generation
            self._failed = self._failed and not again
            self.record.close(fault, "the job was started again" if again else "the job goes on by itself")

    @property
    def _stands(self) -> bool:
        return any(fault.cause in STANDS for fault in self.record.open.values())

    def _open(self, verdict: Verdict) -> Fault | None:
        return self.record.open.get(key_of(verdict))

    # -- telling ------------------------------------------------------------------------------------------------------

    def _tell(self, crew: Crew, verdict: Verdict, facts: Sequence[Fact]) -> None:
        """Names a fault, with what logs, kernel and exporters say about its cause."""
        cards = crew.cards()
        reason = self._reasons.of(verdict, cards, time.monotonic())
        ruled_out = list(reason.ruled_out)
        if crew.world > len(crew.ranks):
            ruled_out.append(
                f"nothing on other hosts: {len(crew.ranks)} of {crew.world} ranks are seen here (one watch per node)"
            )
        places = places_of(cards, crew.world, self.host, crew.generation)
        self.record.fault(verdict, places, max(self._logs.steps.newest, 0), [*facts, *reason.facts], ruled_out, reason.remedy)

    def _noted(self, notes: list[Note], problems: list[str], dropped: int) -> None:
        """From the kernel's log and the exporters. What is hard is a fault by itself, the rest speaks beside one."""
        crew, now = self._crew, time.monotonic()
        for problem in problems:
            self.record.event("watch.blind", text=problem)
        if dropped:
            self.record.event("watch.blind", text=f"{dropped} notes of the kernel's log and exporters: too many at once")
        for note in notes:
            self._reasons.note(note, now)
            if note.weight == "hard" and crew is not None:
                ranks = tuple(rank.rank for rank in crew.ranks if rank.card == note.slot)[:1]
                text = f"its host tells of trouble ({note.source}): {note.text}"
                verdict = Verdict("trouble", ranks, text, (), (), 0.9, self.host)
                if self._open(verdict) is None:
                    self._tell(crew, verdict, [])

    def _slot_of(self, pid: int) -> int:
        crew = self._crew
        return next((rank.card for rank in crew.ranks if rank.pid == pid), -1) if crew is not None else -1

    async def _stacks(self, ranks: Sequence[Rank]) -> Stacks:
        stacks = await asyncio.to_thread(take_stacks, {rank.rank: rank.pid for rank in ranks})
        if stacks.trouble not in {"", self._blind}:
            self._blind = stacks.trouble
            self.record.event("watch.blind", text=stacks.trouble)
        return stacks

    def _paint(self, crew: Crew, stage: str) -> None:
        drawn = {one.rank: Card.EMPTY for one in crew.gone}
        drawn |= {fault.rank: Card.ACCUSED for fault in self.record.open.values() if fault.rank is not None}
        self.record.paint(stage, crew.generation, self._logs.steps.newest, crew.ranks, drawn)

    def _say_end(self) -> None:
        crew = self._crew
        if crew is None:
            return
        over = not crew.alive
        seconds = max(1e-9, time.monotonic() - self._began)
        cost = (_used() - self._used) / seconds
        if over and self._failed:
            self.record.event("job.failed", reason="it ended by a fault; nothing was restarted by this watch")
        elif over:
            self.record.event("job.done", faults=len(self.record.book.faults))
        self.record.event(
            "watch.end", seconds=round(seconds, 1), ranks=len(crew.ranks), processor_share=round(cost, 5),
            processor_share_per_rank=round(cost / len(crew.ranks), 5),
        )  # fmt: skip
        self._paint(crew, ("failed" if self._failed else "done") if over else "run")


def _used() -> float:
    """Processor seconds of this process and of the py-spys that it has asked."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
