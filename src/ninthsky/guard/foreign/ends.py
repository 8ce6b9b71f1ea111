"""Several ranks ended: which end came first, and which are its echoes? Launchers end the others, broken collectives do too."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ninthsky.evidence import Fact
from ninthsky.guard import protocol as p
from ninthsky.guard.controller.fleet import Window
from ninthsky.guard.controller.known import Known, known_cause
from ninthsky.guard.controller.roster import Proc
from ninthsky.guard.foreign.messages import Adopt, Raised
from ninthsky.guard.foreign.ranks import STATUS_UNKNOWN
from ninthsky.guard.judges import Verdict
from ninthsky.guard.judges.exit import judge_exit, status_name
from ninthsky.guard.judges.hang import WaitFor
from ninthsky.guard.playbook.book import shipped

PATIENCE = 1.0  # seconds; an end that may be an echo waits so long for the end behind it


@dataclass
class Member:
    """A rank of an attempt. `began`: its first step, -1 before it is done. `ended`: how its process ended, and when we knew."""

    proc: Proc
    adopt: Adopt
    began: int = -1
    raised: Raised | None = None
    ended: p.Exited | None = None
    ended_at: float = 0.0

    @property
    def well(self) -> bool:
        return self.ended is not None and self.ended.status == 0

    @property
    def badly(self) -> bool:
        return self.ended is not None and self.ended.status != 0

    @property
    def echo(self) -> bool:
        """It ended only because another had: its collective broke."""
        return self.raised is not None and (self.raised.collective or shipped().is_echo(self.raised.error))

    @property
    def vague(self) -> bool:
        """Its launcher may have ended it, or it says nothing."""
        assert self.ended is not None
        status = self.ended.status
        return status in (-signal.SIGTERM, -signal.SIGINT, STATUS_UNKNOWN) or (status > 0 and self.raised is None)

    @property
    def aborted(self) -> bool:
        """By the runtime's own hand: gloo ends a process that got more than it asked for."""
        return self.ended is not None and self.ended.status in (-signal.SIGABRT, -signal.SIGSEGV)


@dataclass(frozen=True)
class End:
    """The end behind all others. `known`: what its last words say; `error`: the exception and its line, where there was one."""

    verdict: Verdict
    known: Known | None = None
    error: str = ""


def first_end(members: Iterable[Member], window: Window, now: float, log: str, *, final: bool = False) -> End | None:
    """None while there is nothing to tell, or while an end that may be an echo waits for the one behind it. `log`: the last of
    the command's error output; `final`: nothing more will come."""
    ends = sorted((member for member in members if member.badly), key=lambda member: member.ended_at)
    if not ends:
        return None
    echoes = [(member.adopt.rank, member.raised.error) for member in ends if member.raised is not None and member.echo]
    guilty = next((member for member in ends if not member.echo and not member.vague), None)
    if guilty is None and not final and now - ends[0].ended_at < PATIENCE:
        return None
    clash = WaitFor(window.record).mismatched
    if clash.any() and (guilty is None or guilty.aborted):
        return End(_clash(clash.nonzero()[0].tolist(), echoes, now - ends[0].ended_at))
    guilty = guilty or next((member for member in ends if not member.echo), None)
    if guilty is None or guilty.ended is None:
        error = echoes[0][1] if echoes else "no rank said why"
        text = f"a collective broke, and no rank is known to have ended before ({error[:200]})"
        ruled_out = ("a kill: no rank ended by a signal",)
        return End(Verdict("unknown", (), text, (), ruled_out, 0.5, onset=now - ends[0].ended_at))
    verdict = judge_exit(guilty.adopt.rank, guilty.ended, [echo for echo in echoes if echo[0] != guilty.adopt.rank])
    if guilty.ended.status == STATUS_UNKNOWN:
        verdict = replace(verdict, text="process ended; its launcher collected it before its status could be read")
    error = f"{guilty.raised.error} at {guilty.raised.where}" if guilty.raised else ""
    said = guilty.ended.tail or (log if guilty.ended.status > 0 or guilty.aborted else "")
    return End(replace(verdict, onset=now - guilty.ended_at), known_cause(said), error)


def status_text(status: int) -> str:
    """As `status_name`, and for what could not be read."""
    return "a status that could not be read" if status == STATUS_UNKNOWN else status_name(status)


def listed(ranks: list[int]) -> str:
    """The first twenty, and how many more."""
    return ", ".join(map(str, ranks[:20])) + (f" and {len(ranks) - 20} more" if len(ranks) > 20 else "")


def _clash(ranks: list[int], echoes: list[tuple[int, str]], onset: float) -> Verdict:
    facts = [Fact("ranks in another collective under the same number", listed(ranks), source="op hash of the records")]
    if echoes:
        facts.append(Fact("what broke", echoes[0][1][:200], source=f"rank {echoes[0][0]}"))
    text = "ranks entered different collectives: an error of the program"
    return Verdict("mismatch", (), text, tuple(facts), ("a kill: no rank was ended from outside",), 0.8, onset=onset)
