"""Where faults that a job inflicts on itself (train/inject.py) take hold of a rank's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ninthsky.guard.probe.record import RecordWriter
from ninthsky.model.decoder import Decoder
from ninthsky.train.cut.parallel import Own
from ninthsky.train.inject import Injector
from ninthsky.train.rank.integrity import Integrity
from ninthsky.train.step.loss import document_loss, next_token_loss


class Inflicted:
    """What the trainer calls in each step. Nothing is changed where no fault is due, nor before the rank is `assigned`."""

    def __init__(self, injector: Injector, record: RecordWriter, integrity: Integrity, document_mask: bool) -> None:
        self.injector, self.record, self.integrity = injector, record, integrity
        self.assigned = False
        self.poison_next = False
        self._loss = document_loss if document_mask else next_token_loss

    def loss(self, model: Any, batch: Tensor) -> tuple[Tensor, float]:
        try:
            return self._loss(model, batch)
        finally:  # a stage that is not the last leaves the loss by an exception
            if self.assigned and isinstance(model, Decoder):
                self.injector.strike(self.record.state.step, self.record.state.attempt)

    def poison(self, gradients: Any) -> None:
        self.injector.flip_gradient(gradients)
        if self.poison_next:
            self.poison_next = False
            gradients[0][(0,) * gradients[0].dim()] = math.nan

    def miscompute(self, own: Sequence[Own]) -> None:
        if self.injector.gradient_factor != 1.0:
            torch._foreach_mul_([one.gradient for one in own], self.injector.gradient_factor)
            self.integrity.produced.accept(own)
