"""The pretrained decoder as a forecaster: days as patches -> its blocks -> quantiles that cannot cross. Radio's only torch.

A series becomes a token for its habits (hour-of-day profile, and how days of the asked-for kind, weekend or not, differ from
it), a token for each of the last seven days (24 residuals from the profile, and which of them are known), and a token that asks
for the day after. The answer is the profile plus, in units of the series' mean absolute residual, a median and softplus steps
up and down from it. The median also has a linear path from the same hour's residuals: the blocks learn what is not linear.

It is told no date and no weekday, and reads one week day by day, never an unfinished one. Young histories hold few different
days, each with its own weather that all stations share: a network that can tell which day it is learns those by heart.
"""

from __future__ import annotations

import copy
import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ninthsky.model import Decoder
from ninthsky.model.files import load
from ninthsky.radio.fast import LEVELS
from ninthsky.radio.kernels import HISTORY, Floats
from ninthsky.run.progress import Progress
from ninthsky.train.step.device import device
from ninthsky.train.step.loop import Recipe, Trainer, fit, measure_steps

CONTEXT = 7  # days that the blocks read one by one
LEAST = 8  # days of history that a training target has behind it
BATCH = 64  # (series, day) pairs per step
CHUNK = 1024  # series per forward pass when forecasting
MEDIAN = int(np.flatnonzero(LEVELS == 0.5)[0])
LARGEST = 8.0  # residuals are cut there: a burst must not drown a day


@dataclass(frozen=True)
class Batch:
    """(series, day) pairs as the network reads them."""

    patches: Tensor  # [B, CONTEXT, 48]: residuals in units, known or not
    habits: Tensor  # [B, 49]: hour-of-day mean over its level, residual of the day's kind in units, log of level over unit
    truth: Tensor  # [B, 24] in units from the profile
    known: Tensor  # [B, 24]


class Windows:
    """Cuts batches out of root loads [n, hours]. Profiles come from sums kept per day, so a batch costs what it holds."""

    def __init__(self, roots: Floats, first_day: datetime.date) -> None:
        days = roots.reshape(len(roots), -1, 24)
        self.values, self.known = np.maximum(days, 0), days >= 0
        zero = np.zeros((len(roots), 1, 24), np.float32)
        self.sums = np.concatenate([zero, np.cumsum(self.values * self.known, axis=1, dtype=np.float32)], axis=1)
        self.counts = np.concatenate([zero, np.cumsum(self.known, axis=1, dtype=np.float32)], axis=1)
        self.days = days.shape[1]
        # One day more than there is, for the day after.
        self.weekend = (first_day.weekday() + np.arange(self.days + 1)) % 7 >= 5
        free = self.weekend[:-1, None]
        self.free_sums = np.concatenate([zero, np.cumsum(self.values * self.known * free, axis=1, dtype=np.float32)], axis=1)
        self.free_counts = np.concatenate([zero, np.cumsum(self.known & free, axis=1, dtype=np.float32)], axis=1)

    def cut(self, series: NDArray[np.int64], day: NDArray[np.int64]) -> tuple[Batch, Floats, Floats]:
        """The batch, and each pair's profile [B, 24] and unit [B]. `day` may be the one after the last."""
        old = np.maximum(day - HISTORY, 0)
        total = self.sums[series, day] - self.sums[series, old]
        count = self.counts[series, day] - self.counts[series, old]
        kind = self.weekend[day][:, None]
        free_total = self.free_sums[series, day] - self.free_sums[series, old]
        free_count = self.free_counts[series, day] - self.free_counts[series, old]
        kind_total = np.where(kind, free_total, total - free_total)
        kind_count = np.where(kind, free_count, count - free_count)
        level = total.sum(1) / np.maximum(count.sum(1), 1)
        profile = np.where(count > 0, total / np.maximum(count, 1), level[:, None])
        at = day[:, None] + np.arange(-CONTEXT, 0)[None]
        known = self.known[series[:, None], np.maximum(at, 0)] & (at >= 0)[:, :, None]
        gap = np.where(known, self.values[series[:, None], np.maximum(at, 0)] - profile[:, None], 0)
        unit = np.abs(gap).sum((1, 2)) / np.maximum(known.sum((1, 2)), 1) + 0.01 * level + 1e-4
        habit = np.where(kind_count > 0, kind_total / np.maximum(kind_count, 1) - profile, 0) / unit[:, None]
        patches = np.concatenate([np.clip(gap / unit[:, None, None], -LARGEST, LARGEST), known], axis=2)
        target = np.minimum(day, self.days - 1)
        seen = self.known[series, target] & (day < self.days)[:, None]
        truth = np.where(seen, (self.values[series, target] - profile) / unit[:, None], 0)
        ratio = np.log((level + 1e-4) / unit)[:, None]
        habits = np.concatenate([profile / (level[:, None] + 1e-4), np.clip(habit, -LARGEST, LARGEST), ratio], axis=1)
        on = device()
        batch = Batch(
            torch.from_numpy(patches.astype(np.float32)).to(on),
            torch.from_numpy(habits.astype(np.float32)).to(on),
            torch.from_numpy(truth.astype(np.float32)).to(on),
            torch.from_numpy(seen).to(on),
        )
        return batch, profile.astype(np.float32), unit.astype(np.float32)


class Forecaster(nn.Module):
    """The decoder's blocks between a patch embedding and a monotone quantile head."""

    def __init__(self, backbone: Decoder, seed: int) -> None:
        super().__init__()
        dim = backbone.shape.dim
        self.blocks = backbone
        # Words are neither read nor written here: their tables would only be carried along.
        self.blocks.embedding = nn.Identity()  # type: ignore[assignment]
        self.blocks.head = nn.Identity()  # type: ignore[assignment]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patch = nn.Linear(48, dim)
            self.habits = nn.Linear(49, dim)
            self.ask = nn.Parameter(torch.randn(dim) * 0.1)
            self.quantiles = nn.Linear(dim, 24 * len(LEVELS))
        # Per hour: how far the days before, and days of the same kind, are followed.
        self.linear = nn.Parameter(torch.cat([torch.zeros(CONTEXT, 24), torch.full((1, 24), 0.7)]))
        nn.init.zeros_(self.quantiles.weight)
        nn.init.constant_(self.quantiles.bias, -1.0)
        with torch.no_grad():
            self.quantiles.bias.view(24, len(LEVELS))[:, MEDIAN] = 0.0

    def forward(self, batch: Batch) -> Tensor:
        """Quantiles [B, 24, levels] in units from the profile, rising with the level."""
        first = self.habits(batch.habits)[:, None]
        last = self.ask.expand(len(first), 1, -1)
        tokens = torch.cat([first, self.patch(batch.patches), last], dim=1)
        hidden = self.blocks(embeddings=tokens, prefix=tokens.shape[1])[:, -1]
        raw = self.quantiles(hidden).float().view(-1, 24, len(LEVELS))
        same_hour = torch.cat([batch.patches[..., :24], batch.habits[:, None, 24:48]], dim=1)
        middle = raw[..., MEDIAN : MEDIAN + 1] + (self.linear * same_hour).sum(1)[..., None]
        steps = F.softplus(raw)
        up = middle + steps[..., MEDIAN + 1 :].cumsum(-1)
        down = middle - steps[..., :MEDIAN].flip(-1).cumsum(-1).flip(-1)
        return torch.cat([down, middle, up], dim=-1)


def pinball_loss(model: Forecaster, batch: Batch) -> tuple[Tensor, Tensor]:
    """Pinball loss summed over known hours, and their number."""
    gap = batch.truth[..., None] - model(batch)
    levels = torch.as_tensor(LEVELS, dtype=gap.dtype, device=gap.device)
    loss = torch.maximum(levels * gap, (levels - 1) * gap).mean(-1)
    return (loss * batch.known).sum(), batch.known.sum()


class Learner:
    """Trains a forecaster on the series of a pool, and forecasts with it."""

    def __init__(self, export: Path, roots: Floats, first_day: datetime.date, seed: int) -> None:
        torch.set_num_threads(1)
        self.model = Forecaster(load(export), seed)
        self.windows = Windows(roots, first_day)
        self.seed = seed
        self.recipe = Recipe(lr=1e-3, weight_decay=0.1)

    def batch_at(self, until: int, step: int) -> Batch:
        """Targets before day `until`; a pure function of the step: pairs are drawn from (seed, until, step)."""
        rng = np.random.default_rng((self.seed, until, step))
        series = rng.integers(0, len(self.windows.values), BATCH)
        day = rng.integers(min(LEAST, until - 1), until, BATCH)
        return self.windows.cut(series, day)[0]

    def steps_within(self, seconds: float) -> int:
        """Steps that fit into a budget, measured on a copy that is thrown away."""
        trainer = Trainer(copy.deepcopy(self.model), pinball_loss, self.recipe, 1_000)
        number = iter(range(1_000))

        def step() -> None:
            trainer.local_gradients(self.batch_at(LEAST + 1, next(number)))
            trainer.apply(trainer.gate_values())

        return measure_steps(seconds, step)

    def learn(self, until: int, steps: int, progress: Progress, folder: Path) -> list[float]:
        """Trains on targets before day `until`; mean loss of each step. Goes on from what lies in `folder`."""

        def batch_at(step: int) -> Batch:
            return self.batch_at(until, step)

        return fit(self.model, batch_at, pinball_loss, self.recipe, steps, progress, folder).losses

    def parameters(self) -> int:
        """Weights of the forecaster."""
        return sum(weight.numel() for weight in self.model.parameters())

    def quantiles(self, roots: Floats, first_day: datetime.date, day: int) -> Floats:
        """Root-load quantiles [n, 24, levels] of `day`, from the days before it."""
        # Only what is looked back on is kept: the day asked for is not among it.
        begin = max(0, day - HISTORY)
        past = np.ascontiguousarray(roots[:, begin * 24 : day * 24])
        windows = Windows(past, first_day + datetime.timedelta(days=begin))
        parts = []
        self.model.eval()
        # No inference mode: the decoder keeps tables made here, and a training that follows needs them.
        with torch.no_grad():
            for start in range(0, len(roots), CHUNK):
                series = np.arange(start, min(start + CHUNK, len(roots)))
                batch, profile, unit = windows.cut(series, np.full(len(series), day - begin))
                answer = self.model(batch).cpu().numpy()
                parts.append(profile[:, :, None] + answer * unit[:, None, None])
        return np.maximum(np.concatenate(parts), 0).astype(np.float32)
