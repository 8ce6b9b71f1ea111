"""Opens the address: socket, key, TLS, and the line that tells a person or a program where to ask."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import sys
import threading
from pathlib import Path

import uvicorn

from ninthsky.address import bind, is_loopback
from ninthsky.errors import UserError
from ninthsky.serve.app import create_app
from ninthsky.serve.engine import Engine, warm
from ninthsky.serve.export import find_export


def listen(
    target: str | None, host: str, port: int, store: Path, key: str | None, no_auth: bool, tls_cert: Path | None,
    tls_key: Path | None, until_eof: bool, json_lines: bool,
) -> None:  # fmt: skip
    """Serves until it is ended. Raises UserError N9-SRV-003 for an address, key or certificate that cannot be used."""
    if no_auth and not is_loopback(host):
        raise UserError(
            "N9-SRV-003",
            f"--no-auth on {host}, which others can reach",
            "n9 serve",
            "leave --no-auth out, or listen on 127.0.0.1",
        )
    if no_auth and key:
        raise UserError("N9-SRV-003", "--no-auth, and N9_API_KEY is set", "n9 serve", "unset the one or leave out the other")
    if key is not None and len(key) < 16:
        raise UserError("N9-SRV-003", "N9_API_KEY is shorter than 16 letters", "N9_API_KEY", "leave it unset: a key is made")
    if (tls_cert is None) != (tls_key is None):
        raise UserError(
            "N9-SRV-003", "a certificate without its key, or a key without its certificate", "n9 serve", "give both"
        )
    for path in (tls_cert, tls_key):
        if path is not None and not path.is_file():
            raise UserError("N9-SRV-003", f"no such file: {path}", "n9 serve", "give PEM files")
    made = None if no_auth else key or secrets.token_urlsafe(32)
    folder, name = find_export(target, store)
    engine = Engine(folder)
    warm(engine)
    listener = _bind(host, port)
    app = create_app(engine, name, made)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=10, limit_concurrency=256,
        h11_max_incomplete_event_size=64 << 10, ssl_certfile=str(tls_cert) if tls_cert else None,
        ssl_keyfile=str(tls_key) if tls_key else None,
    )  # fmt: skip
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one: a certificate that is none, or does not fit its key
        raise UserError(
            "N9-SRV-003", f"the certificate cannot be used: {error}", str(tls_cert), "give PEM files of one pair"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    url = f"{'https' if tls_cert else 'http'}://{shown}:{listener.getsockname()[1]}/v1"
    server = uvicorn.Server(config)
    if until_eof:
        threading.Thread(target=_watch_input, args=(server,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how a server is ended
        if json_lines:
            print(json.dumps({"kind": "serving", "url": url, "model": name, "key": None if key else made}), flush=True)
        else:
            print(f"model `{name}` from {folder}\n{url}", flush=True)
            print("key: as in N9_API_KEY" if key else f"key (shown once): {made}" if made else "no key asked for", flush=True)
            if not is_loopback(host) and not tls_cert:
                print("others can reach this address, and without --tls-cert the key travels readable", flush=True)
        server.run(sockets=[listener])


def _watch_input(server: uvicorn.Server) -> None:
    """Ends the server when whoever started it is gone: then its end of the pipe closes."""
    while sys.stdin.buffer.read(4096):
        pass
    server.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    try:
        return bind(host, port)
    except OSError as error:
        raise UserError(
            "N9-SRV-003", f"cannot listen on {host}:{port}: {error}", "n9 serve", "another --port, or 0 for a free one"
        ) from error
