"""HTML to documents, end to end, one core: ours against datatrove as shipped, and with resiliparse as its extractor.

    python -m benchmarks.end_to_end [PAGES.parquet]

Ours is what a worker does with a shard: decoding, extraction by blocks, language, quality rules, masking of personal data,
duplicate sketches on disk. datatrove's is its extractor (trafilatura; or resiliparse's main text), its four filters (Gopher
repetition and quality, C4, FineWeb; those behind a filter that drops are not asked) and its MinHash signature, called in one
process without its sandbox, readers and writers, and without language detection, whose model is a download. Both read the same
English pages that our extraction was not fitted on, in turns; processor time.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.pages import pages_file
from benchmarks.peers import Peer, interpreter
from benchmarks.report import median_interval, publish
from ninthsky.config.schema import Data
from ninthsky.data.blocks import decode
from ninthsky.data.duplicates.shard import leave, rank
from ninthsky.data.extract import Extractor, documents_of
from ninthsky.data.fit import fitted_on
from ninthsky.data.formats import Raw
from ninthsky.data.personal import mask

PEER = ("datatrove[processing]==0.10.1", "lxml_html_clean", "spacy>=3.8,<4", "orjson", "xxhash", "resiliparse==2.0.1")
ROUNDS, TURN, PAGES = 5, 20, 120
KEYS = {"trafilatura": "end_to_end_over_datatrove", "resiliparse": "end_to_end_over_datatrove_resiliparse"}
_PROGRAM = """
import json, struct, sys, time, tempfile
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.hashing import HashConfig
from resiliparse.extract.html2text import extract_plain_text
filters = (
    GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False), FineWebQualityFilter(),
)
config = MinhashConfig(hash_config=HashConfig(hash_fc="xxhash", precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)
minhash = MinhashDedupSignature(tempfile.mkdtemp(), config=config, language="eng_Latn")
shipped = Trafilatura(favour_precision=True)
extractors = {"trafilatura": shipped.extract, "resiliparse": lambda html: extract_plain_text(html, main_content=True)}
def passes(one, document):
    found = one.filter(document)
    return found if isinstance(found, bool) else found[0]
def document_of(html, extract):
    try:
        text = extract(html)
    except Exception:
        return False
    document = Document(text=text or "", id="")
    if not document.text or not all(passes(one, document) for one in filters):
        return False
    minhash.get_signature(minhash.get_shingles(document.text))
    return True
for extract in extractors.values():
    document_of("<html><body><article>" + "<p>Warm up, and then the rest of it, as you do. </p>" * 20 + "</article>", extract)
while header := sys.stdin.buffer.read(4):
    name, pages = json.loads(sys.stdin.buffer.read(struct.unpack("<I", header)[0]))
    began = time.process_time()
    kept = sum(document_of(html, extractors[name]) for html in pages)
    print(json.dumps([kept, time.process_time() - began]), flush=True)
"""


def ours(extractor: Extractor, pages: list[bytes], folder: Path) -> tuple[int, float]:
    """(documents kept, processor seconds) of a shard."""
    began = time.process_time()
    raws = [Raw(f"https://example.org/{number}", page) for number, page in enumerate(pages)]
    documents = documents_of(extractor, raws, {}, lambda item: None)
    kept = [number for number, document in enumerate(documents) if document.drop is None]
    texts = [mask(documents[number].text, extractor.data.mask)[0] for number in kept]
    figures = [documents[number].figures for number in kept]
    ranks = [rank(each["language_share"], each["min_words"]) for each in figures]
    leave(folder, kept, texts, ranks, ["example.org"] * len(kept))
    return len(kept), time.process_time() - began


def measure(source: Path) -> tuple[list[list[Any]], dict[str, Any]]:
    """Rows of the table (what, ours, peer's) and figures."""
    rows = pq.read_table(source, columns=["id", "language", "html"]).to_pylist()
    pages = [row["html"] for row in rows if row["language"] == "en" and not fitted_on(row["id"])]
    pages = pages[:: max(len(pages) // PAGES, 1)][:PAGES]
    texts = [decode(page)[0] for page in pages]  # datatrove takes text: its decoding is not counted
    peer = Peer(interpreter("bench-end-to-end", *PEER), _PROGRAM)
    extractor = Extractor(Data())
    seconds: dict[str, list[float]] = defaultdict(list)
    kept: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        ours(extractor, pages[:5], Path(name) / "warm")
        for number in range(ROUNDS):
            used: dict[str, float] = defaultdict(float)
            count: dict[str, int] = defaultdict(int)
            for start in range(0, len(pages), TURN):
                part = slice(start, start + TURN)
                answers = {tool: peer(json.dumps([tool, texts[part]]).encode()) for tool in KEYS}
                answers["ours"] = ours(extractor, pages[part], Path(name) / f"{number}-{start}")
                for tool, (documents, spent) in answers.items():
                    used[tool] += spent
                    count[tool] += documents
            for tool, spent in used.items():
                seconds[tool].append(spent)
            kept |= count
            print(f"round {number + 1} of {ROUNDS}: {used['trafilatura'] / used['ours']:.1f} x", file=sys.stderr, flush=True)
    size = sum(map(len, pages)) / 1e6
    rate = {tool: f"{size * ROUNDS / sum(spent):.2f} MB/s of HTML, {kept[tool]} kept" for tool, spent in seconds.items()}
    table: list[list[Any]] = []
    figures: dict[str, Any] = {"end_to_end_pages": len(pages)}
    for tool, key in KEYS.items():
        table.append([f"HTML to documents, {len(pages)} pages; datatrove with {tool}", rate["ours"], rate[tool]])
        ratios = [theirs / mine for theirs, mine in zip(seconds[tool], seconds["ours"], strict=True)]
        figures |= median_interval(ratios, key)
        table.append([f"times datatrove's speed with {tool}", figures[key], 1.0])
    return table, figures


if __name__ == "__main__":
    chosen = pages_file(*sys.argv[1:2])
    publish("end_to_end", *measure(chosen), columns=("what", "ours", PEER[0]))
