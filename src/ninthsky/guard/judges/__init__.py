"""Judges: pure functions from a window of the fleet to verdicts. Adding one touches one file here and one row of JUDGES.

A verdict is never a guess: what cannot be told is `unknown`, and every figure stands beside the threshold it was held against.
"""

from ninthsky.guard.judges.verdict import Limits, Verdict

__all__ = ["Limits", "Verdict"]
