"""`n9 guard`: the fault watch by itself. Each command imports what it needs when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ninthsky.guard.foreign.cli import run

app = App(name="guard", help="Name the one bad card, and mend the run.")

Json = Annotated[bool, Parameter(name="--json", negative="")]


@app.command
def job(spec: Path, *, json_: Json = False) -> int:
    """Run a guarded job to its end.

    Parameters
    ----------
    spec: Path
        job.json: command, ranks, hosts, and what may be done about faults (docs/guard.md).
    json_: bool
        Events and result as JSON lines.
    """
    import json

    import msgspec

    from ninthsky.guard.job import run_job
    from ninthsky.guard.spec import load_spec
    from ninthsky.guard.watch import line_of

    def show(event: dict[str, object]) -> None:
        text = json.dumps(event, ensure_ascii=False) if json_ else line_of(event)
        if text:
            print(text, flush=True)

    result = run_job(load_spec(spec), show)
    if json_:
        print(msgspec.json.encode(result).decode())
    else:
        print(f"done: generation {result.generation}, {len(result.faults)} faults, {result.seconds:.1f} s")
    return 0


@app.command
def faults(run: Path, *, json_: Json = False) -> int:
    """Faults of a run or of a job's folder: what, where, the evidence, the remedy, and what it cost.

    Parameters
    ----------
    run: Path
        A run folder, or a folder with faults/.
    json_: bool
        One JSON line per fault.
    """
    import msgspec

    from ninthsky.errors import UserError
    from ninthsky.guard.faults import read_faults
    from ninthsky.guard.watch import fault_text

    folders = sorted({path.parent for path in run.glob("**/faults/F-*.json")})
    # A stage gathers the faults of all its starts into its own faults/; what lies deeper is the same, start by start.
    folders = [folder for folder in folders if not any(other.parent in folder.parent.parents for other in folders)]
    if not run.is_dir():
        raise UserError("N9-RUN-001", f"no folder {run}", str(run), "n9 guard faults runs/NAME")
    found = [fault for folder in folders for fault in read_faults(folder)]
    for fault in found:
        print(msgspec.json.encode(fault).decode() if json_ else fault_text(fault))
    if not found and not json_:
        print("no fault")
    return 0


@app.command
def agent(*, job: Path, host: str, keys: Path, controller: str, standby: str | None = None, json_: Json = False) -> int:
    """The agent of one host. Started by `n9 run` and `n9 guard job`, by Slurm or by hand.

    Parameters
    ----------
    job: Path
        job.json.
    host: str
        Which of the job's hosts this is.
    keys: Path
        This host's key file (mode 600).
    controller: str
        ADDRESS:PORT of the controller.
    standby: str
        ADDRESS:PORT of its standby.
    json_: bool
        Taken for uniformity: the agent prints nothing but errors.
    """
    from ninthsky.guard.agent.process import main
    from ninthsky.guard.spec import peer

    return main(job, host, keys, peer(controller), peer(standby) if standby else None)


@app.command
def controller(
    *,
    job: Path,
    keys: Path,
    port: int = 0,
    standby: Annotated[bool, Parameter(negative="")] = False,
    other: str | None = None,
    alone: Annotated[bool, Parameter(negative="")] = False,
    json_: Json = False,
) -> int:
    """The controller of one job. Killed and started again, it goes on from its journal.

    Parameters
    ----------
    job: Path
        job.json.
    keys: Path
        The controller's key file (mode 600).
    port: int
        Where to listen; 0: as before, or any free one. Written to controller.json.
    standby: bool
        This is the second one: it follows the first, and leads when the agents' lease to it has lapsed.
    other: str
        ADDRESS:PORT of the other controller.
    alone: bool
        You vouch that the other one is dead: one agent's word is enough to lead.
    json_: bool
        Taken for uniformity: the controller prints nothing but errors.
    """
    from ninthsky.guard.controller.process import main
    from ninthsky.guard.spec import peer

    return main(job, keys, port, standby=standby, peer=peer(other) if other else None, alone=alone)


@app.command
def drill(
    *,
    faults: int | None = None,
    ranks: int | None = None,
    seed: int = 1,
    scenario: Path | None = None,
    days: float = 0.0,
    sockets: Annotated[bool, Parameter(negative="")] = False,
    minutes: float = 20.0,
    json_: Json = False,
) -> int:
    """Faults on purpose among simulated ranks (no torch). In a terminal, without arguments: one per key, and the live page.

    With arguments: 4 ranks in real processes, struck by chance. From 32 ranks on, or with a scenario: a fleet in numpy on a
    made clock. With --sockets: that fleet in real time, its agents at the real controller's encrypted sockets.

    Parameters
    ----------
    faults: int
        How many; kinds and ranks are drawn by chance. 4 by default, 20 from 32 ranks on.
    ranks: int
        Ranks in all, on two simulated hosts with a spare each; an even number. From 32 on, 8 on each host.
    seed: int
        Of the draw.
    scenario: Path
        Faults of your own, by their effects (docs/guard/drill.md).
    days: float
        So many simulated days without faults beside, for the bound on wrong evictions.
    sockets: bool
        In real time, over the real protocol.
    minutes: float
        With --sockets: no new fault after so long.
    json_: bool
        The sheet as one JSON line, and nothing else.
    """
    from ninthsky.guard.drill.command import drill as run_drill

    return run_drill(faults, ranks, seed, scenario, days, sockets, minutes, json_)


@app.command
def diagnose(*paths: Path, playbook: Path | None = None, learned: Path | None = None, json_: Json = False) -> int:
    """What a job left behind -> the first line of trouble, the rank, the cause, and what only echoes it. Changes nothing.

    Parameters
    ----------
    paths: Path
        Logs of ranks and hosts, kernel logs, PyTorch flight-recorder dumps, exporters' scrapes, or folders of them, as one
        job's; or JSON lines with an `excerpt` each, which are answered one by one.
    playbook: Path
        A playbook of your own in place of the shipped one.
    learned: Path
        Incidents that people have analysed (as for `n9 guard learn`): their words count beside the shipped phrases.
    json_: bool
        One JSON line per job or incident.
    """
    import json

    from ninthsky.errors import OK, UserError
    from ninthsky.guard.passive.diagnose import diagnose as diagnosis_of
    from ninthsky.guard.passive.diagnose import incidents, is_incidents
    from ninthsky.guard.playbook.book import load, shipped
    from ninthsky.guard.playbook.learned import read_incidents
    from ninthsky.guard.playbook.words import taught

    if not paths:
        raise UserError("N9-GRD-021", "no file or folder was named", "n9 guard diagnose", "n9 guard diagnose FOLDER")
    book = load(playbook) if playbook else shipped()
    words = taught((incident.text, incident.cause) for incident in read_incidents(learned)) if learned else None
    single = [path for path in paths if is_incidents(path)]
    for path in single:
        for answer in incidents(path, book, words):
            best = (answer.get("causes") or [{"cause": answer.get("error", ""), "score": 0.0, "component": ""}])[0]
            text = f"{answer['id']}: {best['cause']} ({best['component']}), score {best['score']:.2f}"
            print(json.dumps(answer, ensure_ascii=False) if json_ else text)
    rest = [path for path in paths if path not in single]
    if rest:
        found = diagnosis_of(rest, book, words=words)
        print(json.dumps(found.tree(), ensure_ascii=False) if json_ else found.evidence.render())
        for unread in [] if json_ else found.unread:
            print(f"  not read   {unread}")
    return OK


_FOLLOW = "Follow a running job that knows nothing of us: who was killed, is frozen, holds the others up. Only looks and tells."
app.command("ninthsky.guard.passive.live.command:watch", name="watch", help=_FOLLOW)


@app.command
def playbook(cause: str | None = None, *, check: Path | None = None, json_: Json = False) -> int:
    """The classes of faults that the guard knows; one of them in full.

    Parameters
    ----------
    cause: str
        Its name: what gives it away, what may be done without asking, what a person does.
    check: Path
        A playbook of your own: says what is wrong in it.
    json_: bool
        As one JSON line.
    """
    import json

    from ninthsky.errors import OK, UserError
    from ninthsky.guard.playbook.book import load, location, shipped

    book = load(check) if check else shipped()
    if cause is not None and cause not in book.causes:
        raise UserError("N9-GRD-020", f"no cause named {cause!r}", "n9 guard playbook", "n9 guard playbook: all of them")
    shown = [book.causes[cause]] if cause else list(book.causes.values())
    if json_:
        print(json.dumps([{"cause": c.name, "title": c.title, "kind": c.kind, "scope": c.scope, "component": c.component,
                           "ladder": c.ladder, "person": c.person} for c in shown]))  # fmt: skip
        return OK
    print(f"version {book.version}, {check or location()}")
    for known in shown:
        print(f"{known.name:26s}{known.kind:13s}{known.scope:6s}{known.title}")
        if cause:
            print(f"  without asking: {', '.join(known.ladder) or 'nothing'}\n  a person: {known.person}")
            print("\n".join(f"  {p.strength:7s}{p.vendor:8s}{p.says.pattern}" for p in known.patterns))
    return OK


@app.command
def learn(incidents: Path, *, playbook: Path | None = None, out: Path | None = None, json_: Json = False) -> int:
    """What analysed faults teach: where the playbook errs, and drafts of causes for those that it does not know.

    Parameters
    ----------
    incidents: Path
        JSON lines with `excerpt` and the `cause` that a person accepted (`unknown` where nobody knows it yet).
    playbook: Path
        A playbook of your own in place of the shipped one.
    out: Path
        Where drafts go: entries for a person to name, complete and put into a playbook.
    json_: bool
        As one JSON line.
    """
    import json

    from ninthsky.errors import OK
    from ninthsky.guard.playbook.book import UNKNOWN, load, shipped
    from ninthsky.guard.playbook.learned import drafts, read_incidents
    from ninthsky.guard.playbook.match import match

    book = load(playbook) if playbook else shipped()
    known = read_incidents(incidents)
    said = {incident.id: match(incident.text, book)[0] for incident in known}
    wrong = [i for i in known if i.cause != UNKNOWN and said[i.id].cause != i.cause]
    unexplained = [i for i in known if said[i.id].cause == UNKNOWN or i.cause not in book.causes]
    drafted = drafts(unexplained)
    text = "\n".join(draft.toml(f"draft_{number}") for number, draft in enumerate(drafted, 1))
    if out is not None and drafted:
        out.write_text(text, "utf-8")
    if json_:
        print(json.dumps({
            "incidents": len(known),
            "wrong": [{"id": i.id, "cause": i.cause, "said": said[i.id].cause} for i in wrong],
            "unexplained": [i.id for i in unexplained],
            "drafts": [[i.id for i in draft.incidents] for draft in drafted],
        }))  # fmt: skip
        return OK
    print(f"{len(known)} incidents, playbook version {book.version}: {len(wrong)} answered otherwise than the person did")
    for incident in wrong:
        print(f"  {incident.id}: {incident.cause}, the playbook says {said[incident.id].cause} ({said[incident.id].score:.2f})")
    print(
        f"{len(unexplained)} unexplained, {len(drafted)} groups of them alike"
        + (f", drafts in {out}" if out and drafted else "")
    )
    if drafted and out is None:
        print(text)
    return OK


@app.command
def selftest(folder: Path | None = None, *, host: tuple[str, ...] = (), link: tuple[str, ...] = (), json_: Json = False) -> int:
    """Test this machine's card, or a running job's cards and links, at low priority beside its ranks.

    Parameters
    ----------
    folder: Path
        A job's folder: its agents do the tests. Without it, the card that torch sees here.
    host: tuple[str, ...]
        Hosts of the job; all by default.
    link: tuple[str, ...]
        Two hosts between which bytes are sent there and back.
    json_: bool
        One JSON line per test.
    """
    from ninthsky.guard.selftest import by_hand

    return by_hand.here(json_) if folder is None else by_hand.in_job(folder, host, link, json_)


@app.command
def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8909,
    certificate: Path | None = None,
    key: Path | None = None,
    plain_http_behind_a_proxy: Annotated[bool, Parameter(negative="")] = False,
    name: tuple[str, ...] = (),
    anyone_may_look: Annotated[bool, Parameter(negative="")] = False,
    json_: Json = False,
) -> int:
    """The live page of a job, and its /metrics: a process of its own that reads the job's files.

    Parameters
    ----------
    folder: Path
        A job's folder, or a run's.
    host: str
        Where to listen. Beyond this machine only with TLS, or behind a proxy that does it.
    port: int
        0: any free one.
    certificate: Path
        PEM file, with `--key`.
    key: Path
        PEM file of the certificate's key.
    plain_http_behind_a_proxy: bool
        A proxy before it does TLS.
    name: tuple[str, ...]
        Names by which browsers reach it, besides the address listened on.
    anyone_may_look: bool
        Reading needs no login. Acting always does.
    json_: bool
        Where it listens, as one JSON line.
    """
    from ninthsky.errors import OK
    from ninthsky.guard.page.listen import listen

    listen(
        folder, host, port, certificate=certificate, key=key, behind_proxy=plain_http_behind_a_proxy, names=name,
        look_freely=anyone_may_look, json_lines=json_,
    )  # fmt: skip
    return OK


app.command(run)
