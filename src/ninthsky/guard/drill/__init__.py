"""Drills: faults on purpose among simulated ranks. `processes` has real ones, agents and sockets; `clocked` a fleet and a clock."""

from ninthsky.guard.drill.processes import FIRST_STEP, Sheet, draw, drill_job, run_drill

__all__ = ["FIRST_STEP", "Sheet", "draw", "drill_job", "run_drill"]
