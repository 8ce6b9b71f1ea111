from __future__ import annotations

import contextlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from ninthsky.data import handbook
from ninthsky.data.formats import Raw
from ninthsky.data.pages import choose, document_id
from ninthsky.data.sources import Entry, Source, entry, group, open_source
from ninthsky.errors import UserError
from ninthsky.run.progress import PlainScreen, Progress


class Quiet(PlainScreen):
    """A teller that tells nobody."""

    def say(self, text: str) -> None: ...
    def line(self, text: str, style: str = "") -> None: ...

    def progress(self, title: str, total: float | None = None, unit: str = "") -> contextlib.nullcontext[Progress]:
        return contextlib.nullcontext(self.task(title, total, unit))


quiet = Quiet()


def test_a_folder_is_read_in_path_order(tmp_path: Path) -> None:
    for name in ("b/two.html", "a/one.HTM", "c.pdf", "zh-CN/apt.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    source = open_source(str(tmp_path), quiet)
    assert [e.path for e in source.entries] == ["a/one.HTM", "b/two.html", "zh-CN/apt.html"]
    assert list(source.read(["b/two.html"])) == [Raw("b/two.html", b"b/two.html")]
    assert source.entries[2].language == "zh"


def test_translations_are_one_group() -> None:
    assert entry("zh-TW/sect.apt.html") == Entry("zh-TW/sect.apt.html", "*/sect.apt.html", "zh")
    assert (
        group("debian-handbook", "en-US/x.html") == group("debian-handbook", "zh-CN/x.html") != group("other", "en-US/x.html")
    )
    assert entry("sites/page.html").language == ""


@pytest.mark.parametrize("make", ["missing", "empty", "kind"])
def test_what_is_no_source_is_told(tmp_path: Path, make: str) -> None:
    path = tmp_path / {"missing": "no such thing", "empty": "folder", "kind": "file.docx"}[make]
    if make == "empty":
        path.mkdir()
    if make == "kind":
        path.write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        open_source(str(path), quiet)
    assert caught.value.code == "N9-DATA-001" and caught.value.next


def test_ids_are_stable() -> None:
    assert document_id("made", "zh-dukou.html") == document_id("made", "zh-dukou.html")
    assert len(document_id("a", "b")) == len("doc-") + 16
    assert document_id("a", "b") != document_id("b", "a")


def test_cap_keeps_wanted_languages_first_and_groups_together() -> None:
    languages = ("en-US", "zh-CN", "zh-TW", "de-DE", "fr-FR")
    entries = tuple(entry(f"{language}/page{i}.html") for language in languages for i in range(40))
    source = Source("s", entries, lambda chosen: iter(()))
    chosen = choose(source, 100, ("en", "zh"))
    assert len(chosen) == 100 and chosen == choose(source, 100, ("en", "zh"))
    wanted = [e for e in chosen if e.language in ("en", "zh")]
    assert len(wanted) == 90
    by_group: dict[str, int] = {}
    for e in wanted:
        by_group[e.group] = by_group.get(e.group, 0) + 1
    assert sorted(by_group.values())[1:] == [3] * (len(by_group) - 1)
    assert choose(source, 1_000, ("en",)) == sorted(entries, key=lambda e: e.path)


# -- Debian's package ---------------------------------------------------------------------------------------------------


def make_deb(path: Path, members: list[tuple[str, bytes]], compression: str = "xz") -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("./usr/share/doc/debian-handbook/html/en-US/link.html")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    parts = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        (f"data.tar.{compression}", buffer.getvalue()),
        ("after", b"x"),
    ]
    with path.open("wb") as out:
        out.write(b"!<arch>\n")
        for name, data in parts:
            out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2))


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_a_package_is_unpacked_safely(tmp_path: Path, compression: str) -> None:
    root = "./usr/share/doc/debian-handbook/html"
    package = tmp_path / "debian-handbook_1_all.deb"
    make_deb(package, [
        (f"{root}/en-US/apt.html", b"<p>a</p>"), (f"{root}/en-US/images/x.png", b"png"), ("../../../../evil.html", b"evil"),
        ("/etc/evil.html", b"evil"), (f"{root}/../../../../../evil.html", b"evil"), (f"{root}/zh-CN/apt.html", b"<p>b</p>"),
    ], compression)  # fmt: skip
    assert dict(handbook.pages_of(package)) == {"en-US/apt.html": b"<p>a</p>", "zh-CN/apt.html": b"<p>b</p>"}
    assert not list(tmp_path.rglob("evil*"))


def test_what_is_no_package_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(b"not an archive")
    with pytest.raises(UserError, match="not a Debian package"):
        list(handbook.pages_of(path))


def fake_apt(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def test_apt_that_fails_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(tmp_path, monkeypatch, 'echo "E: Unable to locate package debian-handbook" >&2; exit 100')
    with pytest.raises(UserError) as caught:
        open_source("debian-handbook", quiet)
    assert (
        caught.value.code == "N9-DATA-001" and "Unable to locate" in caught.value.what and "apt-get update" in caught.value.next
    )


def test_no_apt_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no apt-get"):
        open_source("debian-handbook", quiet)


def test_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "store.deb"
    make_deb(package, [("./usr/share/doc/debian-handbook/html/en-US/a.html", b"<p>a</p>")])
    script = f'case "$*" in *download*) cp {package} debian-handbook_1_all.deb; echo x >> {tmp_path}/calls;; esac'
    fake_apt(tmp_path, monkeypatch, script)
    for _ in range(2):
        source = open_source("debian-handbook", quiet)
        assert list(source.read(["en-US/a.html"])) == [Raw("en-US/a.html", b"<p>a</p>")]
    assert (tmp_path / "calls").read_text() == "x\n"
