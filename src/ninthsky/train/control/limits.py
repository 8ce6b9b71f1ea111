"""Thresholds of the rules, each settable under `[train.control]`."""

from __future__ import annotations

from typing import Literal

import msgspec

from ninthsky.config.schema import Control

Mode = Literal["off", "advise", "act"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules hold figures against. Steps are committed optimizer steps; z are robust (median and MAD).

    `advise` finds out and tells, and changes nothing but the time that a redone step takes.
    """

    mode: Mode = "advise"
    window: int = 64  # steps that the rules see
    least: int = 20  # committed steps before any rule speaks
    cool_down: int = 24  # steps in which a rule that spoke is silent
    loss_z: float = 6.0  # a loss spike by itself
    both_z: float = 4.0  # a loss spike where the gradient norm agrees
    norm_ratio: float = 8.0  # a gradient norm so many times the usual one counts without a loss spike
    own_ratio: float = 5.0  # a rank's own gradient against its peers' median, either way
    own_loss: float = 0.5  # a rank's own loss above its peers' median, nats
    own_z: float = 6.0  # and against the deviations that were usual
    probe_z: float = 1.0  # an earlier batch's loss over what it was, in units of one step's noise
    probe_norm: float = 2.0  # and its gradient norm, as a multiple
    block: int = 12  # steps of which a level is the median
    rise_z: float = 2.5  # a level over the lowest one before, in units of one step's noise
    rise_share: float = 0.05  # and as a share of that lowest level
    dead_share: float = 0.02  # of a fair share of tokens, below which an expert counts as dead
    dead_steps: int = 24
    lift: float = 0.02  # what a dead expert's routing bias gains per step
    most_lifts: int = 64
    drift_share: float = 0.03  # validation loss over its best, as a share
    drift_checks: int = 3  # so many validations in a row
    lower: float = 0.5  # the learning rate is multiplied by this
    most_lowered: int = 4  # times in a run; then it is stopped
    most_skipped: int = 4  # steps skipped within a window; then it is stopped

    @classmethod
    def of(cls, given: Control) -> Limits:
        """From a run's settings."""
        values = given.model_dump()
        return cls(mode=values.pop("action"), **values)
