"""Opens the page's address: loopback unless told otherwise, TLS wherever others can reach it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

import uvicorn

from ninthsky.address import bind, is_loopback
from ninthsky.errors import UserError
from ninthsky.guard.page.app import Page, Rules
from ninthsky.guard.page.folder import JobFolder, find_job
from ninthsky.guard.page.patience import Impatient

CONNECTIONS = 128


def listen(
    folder: Path,
    host: str,
    port: int,
    *,
    certificate: Path | None,
    key: Path | None,
    behind_proxy: bool,
    names: tuple[str, ...],
    look_freely: bool,
    json_lines: bool,
) -> None:
    """Serves a job's page until it is ended. Raises UserError N9-GRD-030 for an address or certificate that cannot be used."""
    loopback = is_loopback(host)
    if (certificate is None) != (key is None):
        raise _refused("a certificate without its key, or a key without its certificate", "give both")
    if not loopback and certificate is None and not behind_proxy:
        raise _refused(
            f"{host} can be reached by others, and without TLS logins would travel readable",
            "give --certificate and --key, or --plain-http-behind-a-proxy where a proxy does TLS",
        )
    token = os.environ.get("N9_METRICS_TOKEN") or None
    if token is not None and len(token) < 16:
        raise _refused("N9_METRICS_TOKEN is shorter than 16 letters", "a longer one, or unset it")
    if not loopback and token is None:
        raise _refused(f"/metrics would be open to all who reach {host}", "set N9_METRICS_TOKEN (16 letters at least)")
    reachable = names if host in {"0.0.0.0", "::"} else (*names, host)
    rules = Rules(
        names=frozenset(name.lower() for name in reachable),
        look_freely=look_freely,
        secure=certificate is not None or behind_proxy,
        metrics_token=token,
    )
    page = Page(JobFolder(find_job(folder)), rules)
    listener = _bind(host, port)
    config = uvicorn.Config(
        page.app(), http=Impatient, ws="none", log_level="error", access_log=False, server_header=False, timeout_keep_alive=10,
        limit_concurrency=CONNECTIONS, h11_max_incomplete_event_size=16 << 10, timeout_graceful_shutdown=2,
        ssl_certfile=str(certificate) if certificate else None, ssl_keyfile=str(key) if key else None,
    )  # fmt: skip
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise _refused(f"the certificate cannot be used: {error}", "give PEM files of one pair") from error
    shown = names[0] if names else f"[{host}]" if ":" in host else host
    url = f"{'https' if certificate else 'http'}://{shown}:{listener.getsockname()[1]}"
    with contextlib.suppress(KeyboardInterrupt):
        if json_lines:
            print(json.dumps({"kind": "serving", "url": url, "login": f"{url}/login#{page.logins.token}"}), flush=True)
        else:
            print(f"job {page.view.job.spec.run_id}: {page.view.job.folder}\n{url}/login#{page.logins.token}", flush=True)
            print("good for one login; the next token lies in the job's folder under page/login", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def _refused(what: str, how: str) -> UserError:
    return UserError("N9-GRD-030", what, "n9 guard serve", how)


def _bind(host: str, port: int) -> socket.socket:
    try:
        return bind(host, port)
    except OSError as error:
        raise _refused(f"cannot listen on {host}:{port}: {error}", "another --port, or 0 for a free one") from error
