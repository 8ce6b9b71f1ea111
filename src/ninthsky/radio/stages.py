"""Radio's stages: counters, forecast, plan."""

from __future__ import annotations

from ninthsky.run import Stage

STAGES = (
    Stage(
        "radio.stations",
        "Stations: hourly load of every carrier",
        version=1,
        run="ninthsky.radio.stations:run",
        uses=(
            "radio.counters",
            "radio.hour_label",
            "radio.unit",
            "radio.stations",
            "radio.cells_per_station",
            "radio.days",
            "seed",
        ),
        files=("radio.counters",),
    ),
    Stage(
        "radio.forecast",
        "Forecast: tomorrow's load, as quantiles",
        version=1,
        run="ninthsky.radio.forecast:run",
        needs=("radio.stations", "train.pretrain"),
        uses=("radio.epsilon", "radio.budget", "radio.steps", "seed"),
    ),
    Stage(
        "radio.plan",
        "Energy plan: which carriers sleep when",
        version=1,
        run="ninthsky.radio.plan:run",
        needs=("radio.stations", "radio.forecast"),
        uses=(
            "radio.epsilon",
            "radio.load_limit",
            "radio.min_off_hours",
            "radio.max_sleeps",
            "radio.sleep_power",
        ),
        explain="ninthsky.radio.why:explain",
    ),
)
