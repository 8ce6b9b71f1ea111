"""What `[guard] exporter` names, checked before a job begins."""

from __future__ import annotations

from urllib.parse import urlsplit

from ninthsky.errors import UserError


def check_sources(sources: str) -> list[str]:
    """The addresses and files of `[guard] exporter`. Raises UserError N9-CFG-012 for one that is neither."""
    found = sources.split()
    for source in found:
        if "://" in source and (urlsplit(source).scheme not in {"http", "https"} or not urlsplit(source).hostname):
            what = f"[guard] exporter: {source!r} is no http address and no file"
            raise UserError("N9-CFG-012", what, "run.toml", 'exporter = "http://127.0.0.1:9400/metrics"')
    return found
