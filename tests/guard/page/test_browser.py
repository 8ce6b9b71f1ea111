"""The page in the system's Chromium, served by its own process over made files."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from playwright.sync_api import Page, sync_playwright

from ninthsky.guard.page.acts import path_of, read_acts
from ninthsky.guard.picture import Card
from tests.browser import FLAGS
from tests.guard.page.job_files import JobFiles

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[dict[str, str]]:
    """`n9 guard serve` in a process of its own."""
    command = [sys.executable, "-m", "ninthsky", "guard", "serve", str(folder), "--port", "0", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield json.loads(server.stdout.readline())
        finally:
            server.terminate()


@contextmanager
def browsing(chromium: str, ours: str) -> Iterator[Page]:
    """A page that may ask nobody but its own server. Raises AssertionError at the end when anything went wrong in it."""
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 950}, ignore_https_errors=True)
        page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith(ours) else wrong.append(request.url))
        yield page
        browser.close()
    assert wrong == []


def certificate(folder: Path) -> tuple[str, str]:
    """A certificate of its own making, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return str(paths[0]), str(paths[1])


def test_the_whole_fleet_and_the_bad_card_by_name(tmp_path: Path, chromium: str) -> None:
    files = JobFiles(tmp_path, hosts=2304, slots=8)
    with served(tmp_path, "--anyone-may-look") as at, browsing(chromium, at["url"]) as page:
        page.goto(at["url"])
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        assert page.inner_text("#name") == "no fault"
        assert "simulated ranks, 1 fault injected on purpose" in page.inner_text("#made")
        assert "2,304 servers, 20,736 card slots" in page.inner_text("#under")
        files.cards[1500 * 9 + 5] = Card.ACCUSED
        files.draw()
        files.fault(host="node-1500", card="node-1500/5", rank=12_005, injected=True)
        page.wait_for_selector("#fault[data-state=open]")
        assert page.inner_text("#name") == "node-1500/5"
        sizes = page.evaluate("[...document.querySelectorAll('main *')].map(e => parseFloat(getComputedStyle(e).fontSize))")
        assert max(sizes) == page.evaluate("parseFloat(getComputedStyle(document.getElementById('name')).fontSize)")
        assert sizes.count(max(sizes)) == 1, "the name is the largest thing"
        told = page.inner_text("#fault")
        for part in (
            "INJECTED on purpose",
            "own work takes longer <b>than</b>",
            "= 1.7 x (threshold 1.5)",
            "the data: its peers",
            "a card or host that works, and slowly (hw_straggler)",
            "Compare clocks",
            "18432 cards waited",
        ):
            assert part in told, part
        page.locator("#legend", has_text="accused: 1").wait_for()
        red = page.evaluate(
            """() => { const map = document.getElementById("map"), ratio = devicePixelRatio, [x, y] = place(1500 * 9 + 5);
            return [...map.getContext("2d").getImageData(ratio * (x + 1), ratio * (y + 1), 1, 1).data]; }"""
        )
        assert red == [255, 59, 47, 255], "drawn where it stands"
        assert page.is_disabled("#none") and "log in" in page.inner_text("#said")
        answer = page.request.post(f"{at['url']}/act", data={"act": "not a fault", "fault": "F-0001"})
        assert answer.status == 401


def test_a_person_logs_in_and_says_that_it_was_none(tmp_path: Path, chromium: str) -> None:
    files = JobFiles(tmp_path, action="advise")
    files.fault()
    pair = certificate(tmp_path)
    with served(tmp_path, "--certificate", pair[0], "--key", pair[1]) as at, browsing(chromium, at["url"]) as page:
        assert at["url"].startswith("https://127.0.0.1:")
        page.goto(at["url"])
        assert page.url.endswith("/login")
        page.goto(at["login"])
        page.fill("input[name=who]", "Ada")
        page.click("button")
        page.wait_for_selector("#fault[data-state=open]")
        assert "Ada" in page.inner_text("#person")
        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"] and cookie["secure"] and cookie["sameSite"] == "Strict"
        page.click("#none")
        page.locator("#said", has_text="Ada said: not a fault").wait_for()
        page.locator("#figures", has_text="1 of 1").wait_for()
        assert [(act.who, act.act) for act in read_acts(path_of(tmp_path))] == [("Ada", "login"), ("Ada", "not a fault")]
        files.fault(state="advised", remedy="advised only: regrouped")
        page.click("#approve")
        page.click("#approve")
        page.locator("#said", has_text="approved by Ada").wait_for()
        assert read_acts(path_of(tmp_path))[-1].act == "approve"
        page.click("text=log out")
        page.wait_for_url("**/login")
