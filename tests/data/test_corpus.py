from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from ninthsky.data.why import explain
from ninthsky.run.folder import RunFolder
from tests.data.conftest import ARTICLES, Run, bad_pages


def saved(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def rows(run: RunFolder, stage: str, folder: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ds.dataset(run.stage(stage) / folder, format="parquet").to_table().to_pylist()
    return found


def digests(run: RunFolder) -> dict[str, str]:
    return {name: saved(run.stage(name) / "manifest.json")["digest"] for name in ("data.pages", "data.corpus", "data.tokens")}


def test_every_page_is_accounted_for(corpus: RunFolder) -> None:
    pages = {row["id"] for row in rows(corpus, "data.pages", "pages")}
    kept = [row["id"] for row in rows(corpus, "data.corpus", "documents")]
    dropped = [row["id"] for row in rows(corpus, "data.corpus", "dropped")]
    assert len(kept) + len(dropped) == len(pages) and {*kept, *dropped} == pages
    funnel = saved(corpus.stage("data.corpus") / "funnel.json")
    assert funnel["pages"] == len(pages) and funnel["documents"] == len(kept)
    left = len(pages)
    for step in funnel["steps"]:
        assert step["in"] == left and step["dropped"] == sum(step["by_rule"].values())
        left = step["kept"]
    assert left == len(kept) and not (corpus.stage("data.corpus") / "work").exists()


def test_bad_pages_are_dropped_with_a_reason_or_read(corpus: RunFolder) -> None:
    dropped = {row["path"]: row for row in rows(corpus, "data.corpus", "dropped")}
    reasons = {name: (dropped[name]["stage"], dropped[name]["rule"]) for name in bad_pages() if name in dropped}
    assert reasons["empty.html"] == reasons["white.html"] == ("reading", "empty")
    assert reasons["huge.html"] == ("reading", "page_bytes") and dropped["huge.html"]["figure"] > 50_000_000
    assert reasons["binary.html"] == ("reading", "undecodable")
    assert reasons["wrong-encoding.html"][0] in ("reading", "extraction", "language", "quality")
    assert reasons["deep.html"][0] in ("extraction", "language", "quality")
    assert reasons["cut-in-a-tag.html"][0] in ("extraction", "language", "quality")
    for row in dropped.values():
        assert row["rule"] and row["figure"] is not None and row["threshold"] is not None and row["detail"]
    # The cut page is read as far as it goes: most of its text is that of the whole one, so one of the two is a duplicate.
    documents = {row["path"]: row for row in rows(corpus, "data.corpus", "documents")}
    assert "cut.html" in documents or dropped["cut.html"]["stage"] == "near duplicate"


def test_other_languages_short_pages_and_duplicates(corpus: RunFolder) -> None:
    dropped = {row["path"]: row for row in rows(corpus, "data.corpus", "dropped")}
    assert (dropped["french.html"]["stage"], dropped["french.html"]["language"]) == ("language", "fr")
    assert dropped["short.html"]["stage"] in ("extraction", "quality")
    # en-chess.html and exact.html are equal, near.html is longer by two words and survives.
    exact = [row for row in dropped.values() if row["stage"] == "exact duplicate"]
    near = [row for row in dropped.values() if row["stage"] == "near duplicate" and "near.html" in row["detail"]]
    assert [row["path"] for row in exact] == ["exact.html"] and "en-chess.html" in exact[0]["detail"]
    assert [row["path"] for row in near] == ["en-chess.html"] and near[0]["figure"] > 0.8 == near[0]["threshold"]


def test_articles_are_kept_whole(corpus: RunFolder) -> None:
    documents = {row["path"]: row for row in rows(corpus, "data.corpus", "documents")}
    for name, article in ARTICLES.items():
        row = documents.get(f"{name}.html")
        if row is None:
            continue
        assert row["text"].count("\n") >= 3 and row["language"] == name[:2]
        assert article.splitlines()[-1] in row["text"] and "Menu entry" not in row["text"]
        assert all(span["first"] < span["last"] for span in row["spans"])
    assert len(documents) >= len(ARTICLES) - 2


def test_why_answers_for_every_page(corpus: RunFolder) -> None:
    folder = corpus.stage("data.corpus")
    for row in rows(corpus, "data.corpus", "dropped"):
        record = explain(folder, row["id"])
        assert record is not None and record.verdict.startswith(f"dropped at {row['stage']} by {row['rule']}")
        assert record.facts[0].threshold == row["threshold"] and record.where["path"] == row["path"]
        assert row["path"] in record.render()
    kept = rows(corpus, "data.corpus", "documents")[0]
    record = explain(folder, kept["id"])
    assert record is not None and record.verdict.startswith("kept") and len(record.facts) > 20
    assert explain(folder, "doc-0000000000000000") is None and explain(folder, "F-0001") is None


def test_tokens_are_what_the_index_says(corpus: RunFolder) -> None:
    folder = corpus.stage("data.tokens") / "tokens"
    index = saved(folder / "index.json")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    documents = rows(corpus, "data.corpus", "documents")
    texts: list[str] = []
    for split in index["splits"].values():
        ids = np.fromfile(folder / split["file"], index["dtype"])
        assert len(ids) == split["tokens"] == sum(split["by_language"].values())
        ends = np.flatnonzero(ids == index["eos"])
        # Parts lie one after another, each with one source and language, and with as many bytes of text as it says.
        kinds = [(part["source"], part["language"]) for part in split["parts"]]
        assert kinds == sorted(set(kinds)) and sum(part["bytes"] for part in split["parts"]) == split["bytes"]
        at = 0
        for part in split["parts"]:
            assert part["start"] == at and ids[at + part["tokens"] - 1] == index["eos"]
            text = tokenizer.decode(ids[at : at + part["tokens"]].tolist())
            assert len(text.encode()) == part["bytes"]
            assert int((ids[at : at + part["tokens"]] == index["eos"]).sum()) == part["documents"]
            at += part["tokens"]
        assert at == split["tokens"]
        assert len(ends) == split["documents"] and ends[-1] == len(ids) - 1 and ids.max() < index["vocab"]
        texts += [tokenizer.decode(part[:-1].tolist()) for part in np.split(ids, ends[:-1] + 1)]
    assert sorted(texts) == sorted(row["text"] for row in documents)
    assert index["splits"]["held_out"]["documents"] >= 1 and set(index["splits"]["held_out"]["by_language"]) == {"en", "zh"}
    assert index["bytes_per_token"] > 1


@pytest.mark.slow
def test_the_same_again_gives_the_same_bytes(corpus: RunFolder, run_data: Run, pages_folder: Path) -> None:
    assert digests(run_data(pages_folder, page_seconds=20, held_out=0.1)) == digests(corpus)


@pytest.mark.slow
def test_it_goes_on_from_finished_parts(run_data: Run, tmp_path: Path) -> None:
    """Three shards, one of them done: as a stage finds its folder after a kill."""
    from ninthsky.data.corpus import part_of

    source = tmp_path / "pages"
    source.mkdir()
    sentences = re.split(r"(?<=\.)\s", " ".join(ARTICLES[name] for name in ("en-glass", "en-bees", "en-chess", "en-nightbus")))
    for number in range(300):
        chosen = random.Random(number).sample(sentences, 12)
        (source / f"{number:03d}.html").write_text("".join(f"<p>{sentence}</p>" for sentence in chosen))
    first = run_data(source, into=tmp_path / "a", max_pages=1_000, repeat_pages=0)
    again = RunFolder(tmp_path / "b")
    run_data(source, into=again.path, max_pages=1_000, repeat_pages=0)
    out = again.stage("data.corpus")
    (out / "manifest.json").unlink()
    (out / "work").mkdir()
    pages = sorted((again.stage("data.pages") / "pages").glob("*.parquet"))
    assert len(pages) == 3
    data = run_settings(again)
    part_of((str(pages[1]), str(out / "work" / pages[1].name), data), {}, lambda index: None)
    (out / "work" / f"{pages[2].name}.999").write_bytes(b"half a draft")
    run_data(source, into=again.path, max_pages=1_000, repeat_pages=0)
    assert digests(again) == digests(first)
    assert pq.read_metadata(out / "documents" / "00000.parquet").num_rows >= 1


def run_settings(run: RunFolder) -> Any:
    from ninthsky.config.schema import Settings

    return Settings.model_validate(saved(run.path / "settings.json")).data


def test_a_corpus_of_nothing_is_told(run_data: Run, tmp_path: Path) -> None:
    from ninthsky.errors import UserError

    (tmp_path / "one.html").write_text("<p>One page only, and short.</p>")
    with pytest.raises(UserError) as caught:
        run_data(tmp_path)
    assert caught.value.code == "N9-DATA-002"


@pytest.mark.slow
def test_killed_at_any_moment(corpus: RunFolder, pages_folder: Path, tmp_path: Path) -> None:
    """SIGKILL of the driver at two moments, then to the end: the same digests. `benchmarks.kills` has more, and workers."""
    program = (
        "import sys; from pathlib import Path; from ninthsky.config.load import parse_settings\n"
        "from ninthsky.data.stages import STAGES; from ninthsky.run.engine import run_stages\n"
        "from ninthsky.run.folder import RunFolder; from ninthsky.run.progress import PlainScreen\n"
        "if __name__ == '__main__':\n"
        "    text = Path(sys.argv[1], 'run.toml').read_text()\n"
        "    run_stages(RunFolder(Path(sys.argv[1])), parse_settings(text, 'test'), list(STAGES), PlainScreen())\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    run = tmp_path / "run"
    run.mkdir()
    lines = ['size = "nano"', "[data]", f'sources = ["{pages_folder}"]', "page_seconds = 20", "held_out = 0.1"]
    (run / "run.toml").write_text("\n".join(lines))
    for moment in (0.9, 2.4):
        process = subprocess.Popen([sys.executable, script, run], stdout=subprocess.DEVNULL)
        time.sleep(moment)
        process.kill()  # its workers have to notice by themselves
        process.wait()
    subprocess.run([sys.executable, script, run], check=True, stdout=subprocess.DEVNULL)
    assert digests(RunFolder(run)) == digests(corpus)
