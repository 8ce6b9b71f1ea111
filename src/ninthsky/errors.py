"""Errors that a person meets: what was wrong, where, and what to type next, under a stable code (`n9 explain CODE`)."""

from __future__ import annotations

from dataclasses import dataclass

OK, FAILED, USAGE, PARTIAL = 0, 1, 2, 3  # exit statuses of every command

EXPLANATIONS: dict[str, str] = {
    "N9-CFG-001": "The settings file could not be read. Check its path, or write one: n9 init > run.toml",
    "N9-CFG-002": "The file is not TOML. The line named is where the parser stopped.",
    "N9-CFG-010": "A key that no block of run.toml knows. A misspelt key would otherwise be ignored in silence,\n"
    "which is why it is an error. `n9 config --schema` lists every key.",
    "N9-CFG-011": "A value of the wrong type: text where a number is wanted, or the like.",
    "N9-CFG-012": "A value of the right type that cannot be: a share over 1, a negative time, a choice that does not exist.",
    "N9-CFG-013": "Two settings that cannot both hold, such as a mesh whose product is not the number of ranks.",
    "N9-RUN-001": "There is no such run. `n9 run FILE` makes one; runs lie under the folder `runs`, or [where] store.",
    "N9-RUN-002": "Another `n9 run` works in this run folder. Wait for it, or end it: its process id is in run.lock.",
    "N9-RUN-003": "A stage failed. Its error stands above and in the run's events.jsonl; what was finished is kept,\n"
    "and the same command goes on from there.",
    "N9-RUN-004": "Something that this stage needs is not installed. The message names the extra to install.",
    "N9-RUN-005": "[where] executor asks for Ray, which is not installed here, or no cluster answers at that address.\n"
    'docs/run.md tells how to start one; executor = "local" needs none.',
    "N9-WHY-001": "No record has this id. Ids are printed by the stage that decided: documents `doc-...`, faults `F-0001`,\n"
    "layouts `layout-...`, a station's hour `STATION@HOUR`.",
    "N9-DATA-001": "No raw pages could be had. Name a folder of HTML in [data] sources, or allow apt-get or a package mirror.",
    "N9-DATA-002": "The corpus is too small for what follows. The funnel tells where pages were dropped: add sources, loosen\n"
    "rules.",
    "N9-DATA-003": "The run has no corpus yet. The data stages make it: n9 run FILE --only data",
    "N9-DATA-004": "A list or the classifier of [data.safety] cannot be had. docs/data.md tells their forms.",
    "N9-DATA-005": "`n9 data diff` compares two runs, and was given the same one twice.",
    "N9-DATA-006": "An evaluation set that [data] decontaminate names holds no text. JSON lines, Parquet or text, one item\n"
    "to a row.",
    "N9-SRV-001": "The export folder has no readable tokenizer.json. `n9 train` writes it beside the model.",
    "N9-SRV-002": "The run has not exported a model yet. `n9 run FILE` goes on from where it stopped.",
    "N9-SRV-003": "The server cannot listen as asked: address, key or certificate. The message names which.",
    "N9-SRV-004": "The served model did not answer as the model itself does, or its export is read otherwise elsewhere.\n"
    "The message shows both.",
    "N9-LAY-001": "The card is not in the layout search's table. `n9 layout --chips` prints the table with sources.",
    "N9-LAY-002": "The model file lacks a size that the layout search needs.",
    "N9-LAY-003": "No cut of this model fits this cluster. The message names the rule that threw out most cuts.",
    "N9-MOD-001": "The folder is no model that this release can read, or it is damaged. A run's model lies in the folder\n"
    "`export` of its stage train.pretrain or align.dpo.",
    "N9-MOD-002": "The folder is a Glm4Moe model of a kind that this decoder does not compute (expert groups, tied embedding,\n"
    "stretched rotary positions, quantised weights): refused, since it would answer wrongly without an error.",
    "N9-TRN-001": "The token folder could not be read, or holds too few tokens for one window. `n9 data` writes it.",
    "N9-TRN-002": "Loss or gradient stopped being finite and there is no other rank to ask. Lower [train] lr, or look at\n"
    "the data.",
    "N9-TRN-003": "The checkpoint is cut, altered, or of another model. `n9 train check FOLDER` tells which ones are good.",
    "N9-TRN-004": "The speed of a step could not be measured: its ranks ended early. The command named runs them alone.",
    "N9-TRN-005": "The same steps ended in different weights: in a faultless twin, or on different ranks. That is a bug;\n"
    "keep the run.",
    "N9-TRN-006": "[train] mixture names what is not among the tokens, or its weights sum to nothing. The message lists the\n"
    "languages and sources that there are.",
    "N9-TRN-007": "A file of questions that `n9 train score` cannot read. One JSON object a line: context, choices, answer.",
    "N9-TRN-010": "An order to a live run names something that cannot be set, or a value that cannot be. What can be set:\n"
    "lr, clip, weight_decay, balance, checkpoint_every.",
    "N9-TRN-011": "The run takes no orders: it is not training now, or belongs to another user. Orders go to the stage\n"
    "train.pretrain while `n9 run` works.",
    "N9-TRN-012": "A rule stopped the training, because redoing, skipping or rolling back would not help, or no longer does.\n"
    "`n9 why ID` shows the figures; checkpoints of before are whole.",
    "N9-TRN-020": "`n9 train vet` cannot ask as it was told to: no such device, operator or fault. The message lists\n"
    "what there is.",
    "N9-TRN-021": "[train] compile asks for torch.compile, which found no working compiler. Install g++, or set\n"
    "compile = false.",
    "N9-RAD-001": "The counters could not be read, or nothing should be planned on them; the message says why. Columns:\n"
    "ts, station, cell, load; other names with --column. See docs/radio.md.",
    "N9-ALN-001": "There is no text to judge. Give what the model said, in quotes.",
    "N9-ALN-002": "The prompts could not be read. Wanted: a UTF-8 CSV with columns prompt and label, the label safe or unsafe.",
    "N9-SIG-001": "A signal contradicts its own description: wrong number of axes, real against complex, or numbers that\n"
    "are not finite.",
    "N9-SIG-002": "A split would put one recording, person or day on both sides, or does not know which row belongs to\n"
    "which. Such a\n"
    "split measures memory, not skill.",
    "N9-SIG-003": "The patches do not fit the array: an axis that does not exist, or a length that the patch size does not\n"
    "divide.",
    "N9-SIG-004": "There is no such task. `n9 signal list` shows them.",
    "N9-SIG-005": "No such reader or row. `signal.learn` writes the reader; rows go from 0 to the number shown by `n9\n"
    "signal list`.",
    "N9-GRD-001": "The job did not come back after a fault: the ladder was exhausted. The run's events.jsonl tells each rung.",
    "N9-GRD-002": "The key file of a guarded job is missing, broken, or can be read by others than its owner (chmod 600).",
    "N9-GRD-003": "A job with this run id is still at work on this host: its agent's process lives. End it, or choose\n"
    "another id.",
    "N9-GRD-070": "The self-test that was asked for cannot be done: no such host, no job at work there, or it ended meanwhile.",
    "N9-GRD-040": "A scenario file of `n9 guard drill` is wrong: the message names the fault and the field.\n"
    'docs/guard/drill.md has the form; `like = "freeze"` begins from a kind that is there.',
    "N9-GRD-041": "The simulated fleet of `n9 guard drill` has hosts of 8 ranks, four of them at least.",
    "N9-GRD-042": "The drill over sockets keeps two connections per simulated host; the system allows this process too few\n"
    "open files. Raise the limit (`ulimit -n`), or take fewer ranks.",
    "N9-GRD-020": "The playbook is damaged: the message names each entry that is wrong. The shipped one is found by\n"
    "`n9 guard playbook`; copy it, change the copy, and name it with --playbook.",
    "N9-GRD-021": "There was nothing to diagnose: name a log file, or a folder with logs, flight-recorder dumps\n"
    "or exporters' scrapes.",
    "N9-GRD-050": "`n9 guard watch` found no job: no such process, or no rank below it that the environment tells of.\n"
    "Give the launcher's PID on this host, as the job's user.",
    "N9-GRD-051": "`n9 guard watch` cannot write its folder. Name another one with --folder.",
    "N9-GRD-060": "`n9 guard run` has nothing to run: no command after --, or it cannot be started.",
    "N9-GRD-030": "The page cannot listen as asked: address, certificate or token. The message names which.",
}


@dataclass
class UserError(Exception):
    """An error that is the person's to mend. Printed without a traceback."""

    code: str
    what: str
    where: str = ""
    next: str = ""

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.what}"]
        if self.where:
            lines.append(f"  --> {self.where}")
        if self.next:
            lines.append(f"  help: {self.next}")
        return "\n".join(lines)
