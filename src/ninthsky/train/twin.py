"""Stage `train.twin`: the same steps without a fault. Repairs that changed anything show here, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec

from ninthsky.errors import UserError
from ninthsky.run import StageContext
from ninthsky.run.folder import read_json
from ninthsky.train.control.helm import read_program
from ninthsky.train.control.limits import Limits
from ninthsky.train.launch import guarded, place_faults, plan_job

ELASTIC = 1e-3  # largest difference of a weight that other orders of summation may make, a router's choice flipped among them


def run(ctx: StageContext) -> None:
    """Raises UserError N9-TRN-005 when the twin's final weights differ from those of the run with faults."""
    pretrained = ctx.inputs["train.pretrain"]
    faulty = read_json(pretrained / "result.json")
    length = read_json(pretrained / "steps.json")
    assert faulty is not None and length is not None, "the engine runs this stage after a finished train.pretrain"
    if not ctx.settings.train.twin:
        with ctx.open("result.json") as file:
            file.write(json.dumps({"digest": None, "ran": False}).encode())
        ctx.summary(twin="not run ([train] twin = false)")
        ctx.limit("The faultless twin was not run, so nothing shows that repairs left the weights as they would have been.")
        return
    job = plan_job(ctx, length)
    # Bad data is no fault of a card: who reads these samples, reads noise. What control did is followed to the letter.
    faults = [fault for fault in place_faults(ctx.settings, job.steps) if fault.kind == "bad_data"]
    program = read_program(pretrained)
    shrunk = len(faulty.get("ranks", [])) > 1
    job = msgspec.structs.replace(job, export=shrunk, faults=faults, control=Limits(mode="off"), program=program)
    result = guarded(ctx, job, "twin", spares=0)
    digest = result.results[0]["digest"]
    with ctx.open("result.json") as file:
        file.write(json.dumps({"digest": digest, "ran": True, "steps": job.steps}, sort_keys=True).encode())
    equal = digest == faulty["digest"]
    if shrunk and not equal:
        _compare(ctx, pretrained / "export", faulty["ranks"])
        return
    ctx.summary(twin_digest=digest, equal_to_the_run_with_faults=equal)
    if not equal:
        raise UserError(
            "N9-TRN-005",
            f"the faultless twin ended with other weights: {digest}, with faults {faulty['digest']}",
            str(ctx.out / "result.json"),
            "keep the run folder: a repair changed the training, which is a bug of ninthsky",
        )
    else:
        if not program.empty:
            ctx.say(f"followed: {len(program.changes)} changed settings, {len(program.skipped)} steps skipped, "
                    f"{len(program.undone)} roll-backs, {len(program.lifts)} lifts of experts")  # fmt: skip
        ctx.say(f"final weights equal those of the run with faults, bit for bit ({digest})", "green")


def _compare(ctx: StageContext, weights: Path, ranks: list[int]) -> None:
    """After a shrink sums have another order: the weights are near the twin's, not its bits."""
    from ninthsky.model.files import load

    theirs, ours = load(weights).state_dict(), load(ctx.out / "export").state_dict()
    shutil.rmtree(ctx.out / "export")
    apart = max(float((ours[name] - tensor).abs().max()) for name, tensor in theirs.items())
    ctx.summary(equal_to_the_run_with_faults=False, largest_difference=apart, ranks=ranks)
    told = f"the largest difference of a weight is {apart:.1e}, at most {ELASTIC:.0e} allowed after {ranks} ranks"
    if apart > ELASTIC:
        raise UserError("N9-TRN-005", f"the twin ended with other weights: {told}", str(ctx.out), "keep the run folder")
    ctx.say(f"final weights are those of the run with faults but for the order of sums: {told}", "green")
