"""A block for datatrove's pipelines (0.10): what reads HTML stands before it, what counts or writes documents behind it.

LocalPipelineExecutor([WarcReader("crawl/"), Ninthsky(), JsonlWriter("out/")], tasks=8).run()
"""

from __future__ import annotations

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from ninthsky.config.schema import Data
from ninthsky.data.adapters import Records, reason_of
from ninthsky.data.formats import Raw


class Ninthsky(BaseFilter):
    """`text` holds HTML before and the article behind; language, licence, robots and figures come into the metadata.

    `settings` are those of `[data]`. What is dropped goes to `exclusion_writer` with a `filter_reason`: `quality: min_words`.
    """

    name = "Ninthsky: extraction, language, rules"

    def __init__(self, settings: Data | None = None, exclusion_writer: DiskWriter | None = None, batch_size: int = 64) -> None:
        super().__init__(exclusion_writer, batch_size)
        self._records = Records(settings or Data())

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        answers: list[bool | tuple[bool, str]] = []
        pages = [Raw(str(doc.metadata.get("url") or doc.id), doc.text.encode("utf-8", "replace")) for doc in batch]
        for doc, record in zip(batch, self._records(pages), strict=True):
            if reason := reason_of(record):
                answers.append((False, reason))  # its text stays as it was, for the exclusion writer
            else:
                doc.text = record["text"]
                answers.append(True)
            doc.metadata |= {key: record[key] for key in ("language", "licence", "robots")}
            doc.metadata |= {f"figure_{name}": figure for name, figure in record["figures"].items()}
        return answers
