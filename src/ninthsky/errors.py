"""Errors that a person meets: what was wrong, where, and what to type next, under a stable code (`n9 explain CODE`)."""

from __future__ import annotations

from dataclasses import dataclass

OK, FAILED, USAGE, PARTIAL = 0, 1, 2, 3  # exit statuses of every command

EXPLANATIONS: dict[str, str] = {
    "N9-CFG-001": "The settings file could not be read. Check its path, or write one: n9 init > run.toml",
    "N9-CFG-002": "The file is not TOML. The line named is where the parser stopped.",
    "N9-CFG-010": "A key that no block of run.toml knows. A misspelt key would otherwise be ignored in silence,\n"
    "which is why it is an error. `n9 config schema` lists every key.",
    "N9-CFG-011": "A value of the wrong type: text where a number is wanted, or the like.",
    "N9-CFG-012": "A value of the right type that cannot be: a share over 1, a negative time, a choice that does not exist.",
    "N9-CFG-013": "Two settings that cannot both hold, such as a mesh whose product is not the number of ranks.",
    "N9-RUN-001": "There is no such run. `n9 run FILE` makes one; runs lie under the folder `runs`, or [where] store.",
    "N9-RUN-002": "Another `n9 run` works in this run folder. Wait for it, or end it: its process id is in run.lock.",
    "N9-RUN-003": "A stage failed. Its error stands above and in the run's events.jsonl; what was finished is kept,\n"
    "and the same command goes on from there.",
    "N9-RUN-004": "Something that this stage needs is not installed. The message names the extra to install.",
    "N9-WHY-001": "No record has this id. Ids are printed by the stage that decided: documents `doc-...`, faults `F-0001`,\n"
    "layouts `layout-...`, a station's hour `STATION@HOUR`.",
    "N9-DATA-001": "No raw pages could be had. Name a folder of HTML in [data] sources, or allow apt-get or a package mirror.",
    "N9-RAD-001": "The counters could not be read. Columns wanted: ts, station, cell, load.",
    "N9-GRD-001": "The job did not come back after a fault: the ladder was exhausted. The run's events.jsonl tells each rung.",
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
