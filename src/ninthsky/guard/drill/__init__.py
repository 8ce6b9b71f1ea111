"""Drills: faults on purpose. `processes` has real ranks, agents and sockets, `clocked` a simulated fleet and clock."""

from ninthsky.guard.drill.processes import FIRST_STEP, Sheet, draw, drill_job, run_drill

__all__ = ["FIRST_STEP", "Sheet", "draw", "drill_job", "run_drill"]
