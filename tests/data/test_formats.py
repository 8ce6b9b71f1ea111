from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from ninthsky.config.schema import Data
from ninthsky.data.batch import extract
from ninthsky.data.extract import stated_licence, stated_robots
from ninthsky.data.formats import Raw, files_of, read_file
from ninthsky.data.made import made_pages
from ninthsky.data.sources import from_path
from ninthsky.errors import UserError

ENGLISH = next(page.article for page in made_pages() if page.name == "en-bees")


def record(kind: str, url: str, content: str, body: bytes, declared: int | None = None) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Record-ID: <urn:uuid:{url}>\r\n"
    head += f"WARC-Date: 2024-01-01T00:00:00Z\r\nContent-Type: {content}\r\nContent-Length: {declared or len(body)}\r\n\r\n"
    return gzip.compress(head.encode() + body + b"\r\n\r\n")


def response(url: str, kind: str, body: bytes, more: str = "") -> bytes:
    http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body
    return record("response", url, "application/http; msgtype=response", http)


def test_warc(tmp_path: Path) -> None:
    path = tmp_path / "pages.warc.gz"
    records = [
        response("http://a/", "text/html", b"<p>a</p>", "X-Robots-Tag: noarchive\r\n"),
        response("http://b/", "image/png", b"png"),
        response("http://c/", "text/html", b"<p>c</p>"),
    ]
    path.write_bytes(b"".join(records))
    source = from_path(str(path))
    assert [e.path for e in source.entries] == ["http://a/", "http://c/"]
    assert list(source.read(["http://c/"])) == [Raw("http://c/", b"<p>c</p>")]
    assert next(iter(source.read(["http://a/"]))).robots == "noarchive"
    # Cut in the middle of the last record: what was whole is read, and the rest is accounted for.
    path.write_bytes(b"".join(records)[:-40])
    first, *rest = read_file(str(path))
    assert first.path == "http://a/" and not first.trouble
    assert all(raw.trouble for raw in rest)
    for nothing in (b"", b"no archive at all\n" * 50):
        path.write_bytes(nothing)
        assert [bool(raw.trouble) for raw in read_file(str(path))] == [True]


def test_wet_holds_texts(tmp_path: Path) -> None:
    path = tmp_path / "pages.warc.wet.gz"
    path.write_bytes(record("conversion", "http://a/", "text/plain", "蜂蜜\nhoney".encode()))
    assert list(read_file(str(path))) == [Raw("http://a/", "蜂蜜\nhoney".encode(), "text")]


PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("ending", PACKED)
def test_json_lines(tmp_path: Path, ending: str) -> None:
    rows = [
        {"url": "http://a/", "text": "honey", "license": "CC0"},
        {"id": 7, "html": "<p>bees</p>"},
        {"raw_content": "wax"},
        {"title": "no text"},
    ]
    lines = [*map(json.dumps, rows), "", "{cut", "[]", json.dumps({"text": "\ud800"})]
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACKED[ending]("\n".join(lines).encode()))
    found = list(read_file(str(path), "a"))
    assert found[:3] == [
        Raw("http://a/", b"honey", "text", "CC0"),
        Raw("7", b"<p>bees</p>"),
        Raw("a#3", b"wax", "text"),
    ]
    assert [(raw.path, bool(raw.trouble)) for raw in found[3:]] == [("a#4", True), ("a#6", True), ("a#7", True), ("a#8", False)]


def test_a_file_that_ends_too_early_says_so(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"text": f"{number} {number * 7919}"}) for number in range(5000)).encode()
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines)[:-5000])
    found = list(read_file(str(path), "a"))
    assert len(found) > 1000 and not any(raw.trouble for raw in found[:-2])
    assert found[-1].path == f"a#after-{len(found) - 1}" and "damaged" in found[-1].trouble


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "pages.parquet"
    pq.write_table(pa.table({"id": ["x", "y", "x"], "html": [b"<p>1</p>", None, b"<p>3</p>"]}), path)
    source = from_path(str(path))
    assert list(source.read(["x", "y"])) == [Raw("x", b"<p>1</p>"), Raw("y", b"")]
    pq.write_table(pa.table({"text": ["honey"], "license": ["CC0"]}), path)
    assert list(read_file(str(path), "f")) == [Raw("f#1", b"honey", "text", "CC0")]
    pq.write_table(pa.table({"url": ["x"]}), path)
    with pytest.raises(UserError, match="no columns id and html"):
        from_path(str(path))
    path.write_bytes(b"PAR1 and no more")
    assert [raw.trouble != "" for raw in read_file(str(path))] == [True]


def test_a_folder_of_many_kinds_and_a_url(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("honey")
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": 1, "text": "wax"}))
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": 1, "text": "bees"}))
    (tmp_path / "d.pdf").write_bytes(b"%PDF")
    source = from_path(str(tmp_path))
    assert [e.path for e in source.entries] == ["a.jsonl#1", "b.txt", "c.jsonl#1"]
    assert [raw.data for raw in source.read(["a.jsonl#1", "c.jsonl#1"])] == [b"wax", b"bees"]
    memory = fsspec.filesystem("memory")
    memory.pipe("/pages/one.html", b"<p>one</p>")
    assert [name for _, name in files_of("memory://pages")] == ["one.html"]
    assert [raw.data for raw in from_path("memory://pages").read(["one.html"])] == [b"<p>one</p>"]
    with pytest.raises(UserError, match="cannot be opened"):
        files_of("nosuch://bucket/pages")


def test_texts_are_judged_without_being_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"id": "good", "text": f"\n{ENGLISH}\n \n", "license": "CC0"}, {"id": "bad", "text": "too short"}]
    path.write_text("\n".join([*map(json.dumps, rows), "{"]))
    good, short, damaged = extract([str(path)], Data(), 1)
    assert (good["decision"], good["text"], good["licence"]) == ("kept", ENGLISH, "CC0")
    assert short["reason"]["stage"] in ("language", "quality")
    assert (damaged["decision"], damaged["reason"]["rule"], damaged["id"]) == ("dropped", "damaged", "a.jsonl#3")


def test_what_a_page_says_of_licence_and_robots() -> None:
    page = '<meta content="noai, noindex" name="robots"><link rel="license" href="https://a/by/4.0/"><a href=x rel=license>'
    assert stated_licence(page) == "https://a/by/4.0/" and stated_robots(page) == "noai, noindex"
    assert stated_licence('<a href="/by" rel="nofollow license">') == "/by"
    assert stated_licence("<p>license</p>") == stated_robots("<p>robots</p>") == ""
