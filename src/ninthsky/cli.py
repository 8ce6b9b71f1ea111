"""The front door: one verb per room. Rooms are imported only when their verb is used (`n9 --help` imports no torch)."""

from __future__ import annotations

import sys

from cyclopts import App

from ninthsky import __version__
from ninthsky.errors import FAILED, OK, USAGE, UserError

app = App(
    name="n9",
    version=__version__,
    help="Trains a foundation model end to end, and keeps it training on cards that fail.",
)

# verb -> (where it lives, what it is for). The text stands here so that `n9 --help` imports no room.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("ninthsky.road:demo", "The whole road on this machine: pages to energy plan, with faults on the way."),
    "run": ("ninthsky.road:run", "Run what a run.toml describes; goes on where it was interrupted."),
    "plan": ("ninthsky.road:plan", "Each stage of a run.toml: whether it would run, and why."),
    "init": ("ninthsky.road:init", "Print a commented run.toml."),
    "why": ("ninthsky.road:why", "Why a document was dropped, a card blamed, a layout chosen, a carrier put to sleep."),
    "watch": ("ninthsky.road:watch", "Follow a run: stages, steps, faults, as they happen."),
    "report": ("ninthsky.road:report", "Build the report of a run again, and print its path."),
    "explain": ("ninthsky.road:explain", "What an error code means and how it is mended."),
    "config": ("ninthsky.road:config", "Every setting: its JSON schema, or all values of a file with their origin."),
    "data": ("ninthsky.data.cli:app", "Pages to documents to tokens."),
    "model": ("ninthsky.model.cli:app", "Shapes: published ones, and what a Hugging Face folder holds."),
    "train": ("ninthsky.train.cli:app", "Tokens to a checkpoint, over many cards."),
    "guard": ("ninthsky.guard.cli:app", "Name the one bad card, and mend the run."),
    "layout": ("ninthsky.layout.cli:app", "How to cut a model over a cluster: memory and step time of each cut."),
    "align": ("ninthsky.align.cli:app", "Correct the model's values, and prove it by what it generates."),
    "signal": ("ninthsky.signal.cli:app", "The same model reads signals."),
    "radio": ("ninthsky.radio.cli:app", "Station counters to forecast to energy plan."),
    "chat": ("ninthsky.serve.cli:chat", "Ask the exported checkpoint one question."),
    "serve": ("ninthsky.serve.cli:serve", "The exported checkpoint behind an OpenAI-compatible address."),
}
for _verb, (_path, _help) in VERBS.items():
    app.command(_path, name=_verb, help=_help)

# Modules with a tuple STAGES, in the order of the road. `run` imports no room; this list is how rooms reach it.
STAGE_MODULES = (
    "ninthsky.data.stages",
    "ninthsky.layout.stages",
    "ninthsky.train.stages",
    "ninthsky.align.stages",
    "ninthsky.signal.stages",
    "ninthsky.radio.stages",
    "ninthsky.serve.stages",
)


def main() -> None:
    """Entry point of `n9`. Statuses: 0 ok, 1 failed, 2 settings or usage, 3 partial."""
    from cyclopts import CycloptsError

    try:
        status = app(exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(USAGE)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(USAGE if error.code.startswith("N9-CFG") else FAILED)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(FAILED)
    except BrokenPipeError:
        sys.exit(FAILED)
    sys.exit(status if isinstance(status, int) else OK)
