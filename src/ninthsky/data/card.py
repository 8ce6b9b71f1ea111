"""The card of a corpus: where it is from, what it holds, by which rules, and what in it was made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ninthsky.config.schema import Quality
from ninthsky.data.rules.table import table
from ninthsky.errors import UserError
from ninthsky.run.folder import RunFolder, read_json

_SYNTHETIC = ("made",)  # sources that were written for a purpose, not found


def card(folder: RunFolder) -> dict[str, Any]:
    """Everything below as plain values. Raises UserError N9-DATA-003 where the run has no corpus."""
    funnel = read_json(folder.stage("data.corpus") / "funnel.json")
    pages = read_json(folder.stage("data.pages") / "summary.json")
    if funnel is None or pages is None:
        raise UserError("N9-DATA-003", "this run has no corpus yet", str(folder.path), "n9 run FILE --only data")
    used = (read_json(folder.stage("data.corpus") / "started.json") or {}).get("settings", {})
    tokens = read_json(folder.stage("data.tokens") / "tokens" / "index.json")
    quality = Quality.model_validate(used.get("data.quality", {}))
    drops = {rule: count for step in funnel["steps"] for rule, count in step["by_rule"].items()}
    return {
        "run": folder.path.name,
        "sources": {
            name: {"pages": count, "licence": _licence(name), "synthetic": name in _SYNTHETIC}
            for name, count in pages["pages_by_source"].items()
        },
        "funnel": funnel,
        "rules": [
            {"rule": r.name, "bound": r.bound, "english": r.english, "chinese": r.chinese, "source": r.source,
             "dropped": drops.get(r.name, 0)}
            for r in table(quality)
        ],
        "settings": used,
        "tokens": tokens,
        "synthetic_tokens": None if tokens is None else {
            split: sum(part["tokens"] for part in entry["parts"] if part["source"] in _SYNTHETIC)
            for split, entry in tokens["splits"].items()
        },
    }  # fmt: skip


def card_lines(content: dict[str, Any]) -> list[str]:
    """The card as a person reads it."""
    funnel, tokens, made = content["funnel"], content["tokens"], content["funnel"]["made"]
    counts = f"{funnel['documents']:,} documents, {funnel['words']:,} words of {funnel['pages']:,} pages"
    lines = [f"corpus of run {content['run']}: {counts}"]
    for name, source in content["sources"].items():
        label = "SYNTHETIC, " if source["synthetic"] else ""
        lines.append(f"  source     {name}: {source['pages']:,} pages. {label}{source['licence']}")
    for step in funnel["steps"]:
        rules = ", ".join(f"{rule} {count}" for rule, count in step["by_rule"].items())
        lines.append(f"  {step['step']:16s} {step['in']:>8,} -> {step['kept']:>8,}  {rules}")
    for label, key in (("languages", "languages"), ("licences", "licences"), ("robots", "robots"), ("masked", "masked")):
        told = ", ".join(f"{name} {count:,}" for name, count in funnel[key].items())
        lines.append(f"  {label:10s} {told or 'nothing'}")
    for rule in content["rules"]:
        bounds = ", ".join(
            f"{language} {'>=' if rule['bound'] == 'min' else '<='} {rule[language]:g}"
            for language in ("english", "chinese")
            if rule[language] is not None
        )
        lines.append(f"  rule       {rule['rule']:32s} {bounds}  ({rule['source']}): dropped {rule['dropped']:,}")
    if made:
        lines.append(
            f"  made pages (synthetic): article F1 {made['f1']:.3f}, whole page {made['whole_page_f1']:.3f}; "
            f"precision {made['precision']:.3f}, recall {made['recall']:.3f}; "
            f"shells dropped {made['shells_dropped']} of {made['shells']}"
        )
    if tokens:
        train, held = tokens["splits"]["train"], tokens["splits"]["held_out"]
        synthetic = ", ".join(f"{count:,} {split}" for split, count in content["synthetic_tokens"].items() if count)
        lines.append(
            f"  tokens     {train['tokens']:,} training, {held['tokens']:,} held out; vocabulary {tokens['vocab']}, "
            f"{tokens['bytes_per_token']} bytes per token; synthetic: {synthetic or 'none'}"
        )
    return lines


def _licence(source: str) -> str:
    known = {
        "made": "written for Ninthsky (Apache-2.0); synthetic spam shells around original articles",
        "debian-handbook": "GPL-2+ or CC BY-SA 3.0, Raphaël Hertzog, Roland Mas and translators",
    }
    return known.get(source, f"not known: pages of {Path(source).name}, given by the person who ran this")
