from __future__ import annotations

import io
import json
import shutil
import socket
from pathlib import Path

import pytest

from ninthsky.address import is_loopback
from ninthsky.errors import UserError
from ninthsky.serve.cli import chat, serve
from ninthsky.serve.engine import Engine, Sampling, Turn
from ninthsky.serve.export import find_export
from ninthsky.serve.listen import listen


def test_one_question(
    engine: Engine, export: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = engine.answer(engine.chat_ids([Turn("user", "the fox")]), Sampling(12))
    assert chat("the fox", export=export, max_tokens=12, json_=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["answer"] == own.text and told["answer_tokens"] == own.answer_tokens
    monkeypatch.setattr("sys.stdin", io.StringIO("the fox"))
    assert chat("-", export=export, max_tokens=12) == 0
    assert capsys.readouterr().out == own.text + "\n"


@pytest.mark.parametrize(
    ("options", "code"), [({"max_tokens": 0}, "N9-CFG-012"), ({"temperature": 3}, "N9-CFG-012"), ({"run": "x"}, "N9-CFG-013")]
)
def test_questions_that_cannot_be_asked(export: Path, options: dict[str, object], code: str) -> None:
    with pytest.raises(UserError) as caught:
        chat("hi", export=export, **options)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_the_furthest_finished_export_of_a_run_is_found(export: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    with pytest.raises(UserError, match="N9-RUN-001"):
        find_export("mine", tmp_path / "runs")
    run.mkdir(parents=True)
    (run / "settings.json").write_text("{}")
    with pytest.raises(UserError, match="N9-SRV-002"):
        find_export("mine", tmp_path / "runs")
    for stage in ("train.pretrain", "align.dpo"):
        shutil.copytree(export, run / "stages" / stage / "export")
    (run / "stages" / "train.pretrain" / "manifest.json").write_text("{}")
    assert find_export(None, tmp_path / "runs")[0].parent.name == "train.pretrain"  # align.dpo is unfinished
    (run / "stages" / "align.dpo" / "manifest.json").write_text("{}")
    folder, name = find_export(str(run), tmp_path)
    assert folder.parent.name == "align.dpo" and name == "mine"
    assert find_export(str(folder), tmp_path) == (folder, "mine")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"host": "0.0.0.0", "no_auth": True}, "--no-auth on 0.0.0.0"),
        ({"host": "192.0.2.1", "no_auth": True}, "--no-auth on 192.0.2.1"),
        ({"tls_cert": Path("cert.pem")}, "without its key"),
        ({"tls_cert": Path("/nowhere/c.pem"), "tls_key": Path("/nowhere/k.pem")}, "no such file"),
    ],
)  # fmt: skip
def test_unsafe_or_impossible_servers_are_refused(export: Path, options: dict[str, object], what: str) -> None:
    with pytest.raises(UserError) as caught:
        serve(str(export), port=0, **options)  # type: ignore[arg-type]
    assert caught.value.code == "N9-SRV-003" and what in caught.value.what and caught.value.next


def refused(export: Path, **options: object) -> str:
    given = dict(
        host="127.0.0.1",
        port=0,
        store=Path(),
        key=None,
        no_auth=False,
        tls_cert=None,
        tls_key=None,
        until_eof=False,
        json_lines=False,
    )
    with pytest.raises(UserError) as caught:
        listen(str(export), **{**given, **options})  # type: ignore[arg-type]
    assert caught.value.code == "N9-SRV-003"
    return caught.value.what


def test_short_keys_taken_ports_and_false_certificates(export: Path, tmp_path: Path) -> None:
    assert "shorter" in refused(export, key="short")
    assert "N9_API_KEY is set" in refused(export, key="a-key-that-is-long-enough", no_auth=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen" in refused(export, port=taken.getsockname()[1])
    false = tmp_path / "false.pem"
    false.write_text("no certificate")
    assert "certificate cannot be used" in refused(export, tls_cert=false, tls_key=false)


def test_loopback_is_known_by_address_not_by_name() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example", ""))
