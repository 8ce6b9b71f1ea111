"""The page's server, asked as browsers, scrapers and strangers would."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ninthsky.guard.page.acts import path_of, read_acts
from ninthsky.guard.page.app import BEHIND, Page, Rules
from ninthsky.guard.page.folder import JobFolder
from tests.guard.page.job_files import JobFiles

OURS = "http://127.0.0.1:8909"


class Site:
    """A page over made files, and a browser's session with it."""

    def __init__(self, folder: Path, rules: Rules, **watch: Any) -> None:
        self.files = JobFiles(folder, **watch)
        self.page = Page(JobFolder(folder), rules)
        self.client = TestClient(self.page.app(), base_url=OURS, follow_redirects=False)

    def log_in(self) -> None:
        answer = self.client.post("/login", data={"who": "Ada", "token": self.page.logins.token}, headers={"Origin": OURS})
        assert answer.status_code == 303, answer.text

    def act(self, act: str, fault: str, **headers: str) -> Any:
        return self.client.post("/act", json={"act": act, "fault": fault}, headers={"Origin": OURS, **headers})

    def acts(self) -> list[tuple[str, str, str]]:
        return [(act.who, act.act, act.fault) for act in read_acts(path_of(self.files.folder))]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, Rules(readers=2))


def test_nothing_is_shown_before_the_login(site: Site) -> None:
    assert site.client.get("/").headers["location"] == "/login"
    assert site.client.get("/events").status_code == 401
    assert site.act("not a fault", "F-0001").status_code == 401
    answer = site.client.get("/login")
    assert answer.status_code == 200 and "script-src 'self'" in answer.headers["content-security-policy"]
    site.log_in()
    assert site.client.get("/").status_code == 200


def test_the_cookie_is_out_of_reach_of_scripts_and_strangers(tmp_path: Path) -> None:
    site = Site(tmp_path, Rules(secure=True))
    token = site.page.logins.token
    answer = site.client.post("/login", data={"who": "Ada", "token": token})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" in cookie
    assert site.client.post("/login", data={"who": "Eve", "token": token}).status_code == 403
    for _ in range(5):
        refused = site.client.post("/login", data={"who": "Eve", "token": "x"})
    assert refused.status_code == 429
    assert site.acts()[:2] == [("Ada", "login", ""), ("Eve", "refused login", "")]


def test_a_fault_is_called_none_by_name_and_taken_back(site: Site) -> None:
    site.files.fault()
    site.page.step()
    site.log_in()
    assert site.act("not a fault", "F-0001").status_code == 200
    assert site.page.view.snapshot()["figures"]["false_alarms"] == 1
    assert site.page.view.snapshot()["faults"][0]["judged"][:2] == ["not a fault", "Ada"]
    assert site.act("a fault", "F-0001").status_code == 200
    assert site.page.view.snapshot()["figures"]["false_alarms"] == 0
    assert site.acts()[1:] == [("Ada", "not a fault", "F-0001"), ("Ada", "a fault", "F-0001")]
    assert site.act("not a fault", "F-0002").status_code == 404
    assert site.act("not a fault", "../../etc").status_code == 404
    assert site.act("login", "F-0001").status_code == 400, "a page cannot write logins"
    for state in ("open", "repaired"):
        site.files.fault(state=state)
        site.page.step()
        assert site.act("approve", "F-0001").status_code == 409, "nothing waits for a person"


def test_an_approval_is_kept_once_and_its_answer_shown(site: Site) -> None:
    site.files.fault(state="advised", remedy="advised only: regrouped")
    site.page.step()
    assert site.page.view.snapshot()["faults"][0]["approvable"]
    site.log_in()
    assert site.act("approve", "F-0001").status_code == 200
    assert site.act("approve", "F-0001").status_code == 409, "it was given"
    shown = site.page.view.snapshot()["faults"][0]
    assert shown["approved"][::2] == ["Ada", None] and not shown["approvable"]
    site.files.event("approval.done", fault="F-0001", who="Ada")
    site.page.step()
    assert site.page.view.snapshot()["faults"][0]["approved"][2] is True


def test_a_strangers_page_cannot_act_or_reach_it_by_a_name_of_its_own(site: Site) -> None:
    site.files.fault()
    site.page.step()
    site.log_in()
    assert site.act("not a fault", "F-0001", Origin="http://evil.example").status_code == 403
    assert site.act("not a fault", "F-0001", Origin="null").status_code == 403
    assert site.act("not a fault", "F-0001", **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    form = site.client.post("/act", content=b'{"act": "not a fault", "fault": "F-0001"}', headers={"Origin": OURS})
    assert form.status_code == 415, "a form's type goes anywhere without asking"
    assert site.client.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert site.client.get("/metrics", headers={"Host": "evil.example:8909"}).status_code == 403
    assert site.client.get("/", headers={"Host": "[::1"}).status_code == 400
    assert site.act("not a fault", "F-0001", Origin="http://[::1").status_code == 400
    assert [act for _, act, _ in site.acts()] == ["login"]


def test_large_and_odd_bodies_are_refused(site: Site) -> None:
    site.log_in()
    headers = {"Content-Type": "application/json", "Origin": OURS}
    assert site.client.post("/act", content=b"{" * 5000, headers=headers).status_code == 413
    for body in (b"", b"[]", b"\xff", b'{"act": "approve"}', b'{"act": "approve", "fault": "F-0001", "more": 1}'):
        assert site.client.post("/act", content=body, headers=headers).status_code == 400


def test_metrics_ask_for_their_token_where_there_is_one(tmp_path: Path) -> None:
    site = Site(tmp_path, Rules(metrics_token="t" * 20))
    assert site.client.get("/metrics").status_code == 401
    assert site.client.get("/metrics", headers={"Authorization": "Bearer no"}).status_code == 401
    answer = site.client.get("/metrics", headers={"Authorization": "Bearer " + "t" * 20})
    assert answer.status_code == 200 and 'ninthsky_step{job="made"} 11.0' in answer.text


def test_readers_are_bounded_and_a_slow_one_is_let_go(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    page = Page(JobFolder(tmp_path), Rules(look_freely=True, readers=2))

    async def read() -> None:
        app = page.app()
        streams = [asyncio.create_task(drive(app, limit)) for limit in (2, None)]
        await asyncio.sleep(0)
        while len(page._readers) < 2:
            await asyncio.sleep(0.01)
        refused, _ = await drive(app, 1)
        assert refused == 503
        files.draw()
        page.step()
        status, blocks = await streams[0]
        assert status == 200
        kinds = [block.split(b"\n")[0] for block in blocks]
        assert kinds == [b"event: snapshot", b"event: delta"]
        snapshot = json.loads(blocks[0].split(b"data: ")[1])
        assert snapshot["who"] is None and snapshot["job"] == "made"
        streams[1].cancel()
        await asyncio.gather(streams[1], return_exceptions=True)
        assert not page._readers, "who left takes no place"
        stuck: asyncio.Queue[bytes | None] = asyncio.Queue(BEHIND)
        page._readers.add(stuck)
        for _ in range(BEHIND + 1):
            page._send(b"x")
        assert stuck not in page._readers and stuck.get_nowait() is None

    asyncio.run(read())


async def drive(app: Any, limit: int | None) -> tuple[int, list[bytes]]:
    """GET /events by ASGI: leaves after `limit` blocks."""
    status, blocks = 0, []
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message.get("body"):
            blocks.append(message["body"])
            if limit is not None and len(blocks) >= limit:
                left.set()

    scope = {
        "type": "http", "method": "GET", "path": "/events", "raw_path": b"/events", "query_string": b"", "scheme": "http",
        "headers": [(b"host", b"127.0.0.1:1")], "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 1), "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.3"}, "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return status, blocks
