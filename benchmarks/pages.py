"""Where the labelled pages of the data room's benchmarks lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.peers import ROOT

DEFAULT = Path(os.environ.get("NINTHSKY_DATA", ROOT.parent / "shared" / "data")) / "web" / "pages.parquet"


def pages_file(given: str | Path | None = None) -> Path:
    """The Parquet file that was named, else the third-party one; without it the benchmark ends and says what it wants."""
    path = Path(given) if given else DEFAULT
    if not path.is_file():
        sys.exit(f"no pages at {path}: a Parquet with columns id, set, language, html, main_text, or set NINTHSKY_DATA")
    return path
