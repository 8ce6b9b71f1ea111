"""What strangers, and people who are logged in, can do to `n9 guard serve`: the part of benchmarks/hostile.py about the page.

A page over a made job's folder with a fault that waits for an approval, as a process of its own. Every attack says what must
come of it; `besiege_page` raises nothing, it returns what did.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.observing import resident_mb
from ninthsky.guard.page.acts import path_of, read_acts
from tests.guard.page.job_files import JobFiles

PATHS = (
    "/../keys/controller.json", "/%2e%2e/job.json", "//etc/passwd", "/page.js/../../job.json", "/..%2fjob.json",
    "/static/page.html", "/page/login", "/page.js%00", "/\\..\\job.json", "/events/../../acts.jsonl", "http://evil.example/job.json",
)  # fmt: skip


class Site:
    """The page's process, asked over bare sockets: nothing tidies up what is sent."""

    def __init__(self, folder: Path) -> None:
        self.files = JobFiles(folder, action="advise")
        self.files.fault(state="advised", remedy="advised only: regrouped")
        n9 = Path(sys.executable).parent / "n9"
        command = [str(n9), "guard", "serve", str(folder), "--port", "0", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.port, self.token = int(told["url"].rsplit(":", 1)[1]), told["login"].split("#")[1]
        self.ours = f"http://127.0.0.1:{self.port}"
        self.peak_mb, self.peak_fds = 0.0, 0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30.0)

    def ask(self, method: str, path: str, body: bytes = b"", host: str = "", **headers: str) -> tuple[int, str]:
        """Status (0: cut off without one) and the whole answer."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{self.port}'}", "Connection: close"]
        if body or method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def raw(self, data: bytes) -> tuple[int, str]:
        answer = bytearray()
        with contextlib.suppress(OSError), self.connect() as line:
            with contextlib.suppress(OSError):
                line.sendall(data)
            while block := line.recv(65536):
                answer += block
        self.look()
        status = answer.split(b" ", 2)[1:2]
        return (int(status[0]) if status and status[0].isdigit() else 0), answer.decode("utf-8", "replace")

    def look(self) -> None:
        self.peak_mb = max(self.peak_mb, resident_mb(self.process.pid))
        self.peak_fds = max(self.peak_fds, len(os.listdir(f"/proc/{self.process.pid}/fd")))

    def act(self, cookie: str, act: str = "approve", **headers: str) -> int:
        body = json.dumps({"act": act, "fault": "F-0001"}).encode()
        given = {"Content_Type": "application/json", "Origin": self.ours, "Cookie": cookie, **headers}
        return self.ask("POST", "/act", body, **given)[0]

    def log_in(self, token: str) -> tuple[int, str]:
        body = f"who=Ada&token={token}".encode()
        status, answer = self.ask("POST", "/login", body, Content_Type="application/x-www-form-urlencoded", Origin=self.ours)
        cookie = next(
            (line.split(": ", 1)[1].split(";")[0] for line in answer.split("\r\n") if line.startswith("set-cookie")), ""
        )
        return status, cookie

    def answers_after(self, limit: float) -> float:
        """Seconds until a stranger's ordinary request is answered; infinity where it is not in time."""
        begun = time.monotonic()
        while time.monotonic() - begun < limit:
            if self.ask("GET", "/login")[0] == 200:
                return time.monotonic() - begun
            time.sleep(0.2)
        return float("inf")


def besiege_page(folder: Path, many: int) -> dict[str, Any]:
    """`wrong`: what came out otherwise than it must; `attacks`: how many requests and connections of each kind."""
    site = Site(folder)
    try:
        return _besiege(site, many)
    finally:
        site.process.terminate()
        site.process.wait(30)


def _besiege(site: Site, many: int) -> dict[str, Any]:
    wrong: list[str] = []
    attacks: Counter[str] = Counter()

    def must(kind: str, found: object, *allowed: object) -> None:
        attacks[kind] += 1
        if found not in allowed:
            wrong.append(f"{kind}: {found}")

    for cookie in ("", "n9_session=" + "A" * 43, "n9_session=" + '"' * 5000):
        must("act without a login", site.act(cookie), 401)
    must("events without a login", site.ask("GET", "/events")[0], 401)
    for path in PATHS:
        must("path", site.ask("GET", path)[0], 400, 403, 404)
    for host in ("evil.example", "127.0.0.1.evil.example", "[::1", "", "127.0.0.1@evil.example"):
        must("foreign name", site.ask("GET", "/login", host=host or " ")[0], 400, 403)
    used = site.token
    status, cookie = site.log_in(used)
    must("login", status, 303)
    must("used token", site.log_in(used)[0], 403)
    for headers in (
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": f"http://127.0.0.1:{site.port}.evil.example"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
    ):  # fmt: skip
        must("approval from a stranger's page", site.act(cookie, **headers), 403)
    must("approval as a form", site.act(cookie, Content_Type="text/plain"), 415)
    must("approval", site.act(cookie), 200)
    for _ in range(many):
        must("approval played again", site.act(cookie), 409)
    kept = [act.act for act in read_acts(path_of(site.files.folder))]
    must("approvals kept", kept.count("approve"), 1)

    head = (
        f"POST /act HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nCookie: {cookie}\r\nContent-Type: application/json\r\n".encode()
    )
    must("1 MB body", site.raw(head + b"Content-Length: 1000000\r\n\r\n" + b"{" * 1_000_000)[0], 413, 0)
    must("endless chunks", site.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + b"x" * 65535)[0], 413, 0)
    must("announced petabyte", site.raw(head + b"Content-Length: 1000000000000000\r\n\r\n{")[0], 408, 413, 0)
    must("two lengths", site.raw(head + b"Content-Length: 2\r\nContent-Length: 90\r\n\r\n{}")[0], 400, 0)
    must("1 MB head", site.raw(b"GET / HTTP/1.1\r\nX: " + b"a" * 1_000_000)[0], 400, 0)
    must("slow body", site.raw(head + b"Content-Length: 90\r\n\r\n{")[0], 408)
    for _ in range(many):
        must("garbage", site.raw(os.urandom(64) + b"\r\n\r\n")[0], 400, 0)

    streams, served = [], 0
    for _ in range(100):  # one after the other: of a burst that it has not read yet the page cuts the oldest off
        streams.append(line := site.connect())
        line.sendall(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nCookie: {cookie}\r\n\r\n".encode())
        served += line.recv(12) == b"HTTP/1.1 200"
    attacks["event streams at once"] += len(streams)
    must("event streams served", served, 32)
    must("answered beside them", site.ask("GET", "/login")[0], 200)
    for line in streams:
        line.close()

    loris = []
    for _ in range(10 * many):
        with contextlib.suppress(OSError):
            line = site.connect()
            line.sendall(b"GET /login HTTP/1.1\r\nX: ")
            loris.append(line)
    attacks["half a head, then silence"] += len(loris)
    site.look()
    again = site.answers_after(60.0)
    if again > 60.0:
        wrong.append("the page did not answer any more after half heads")
    for line in loris:
        line.close()
    for _ in range(5):
        must("wrong token", site.log_in("x" * 32)[0], 403, 429)
    for _ in range(many):
        must("guess", site.log_in("x" * 32)[0], 429)
    if site.process.poll() is not None:
        wrong.append("the page ended")
    return {"wrong": wrong, "attacks": dict(attacks), "answers_again_s": again, "mb": site.peak_mb, "fds": site.peak_fds}
