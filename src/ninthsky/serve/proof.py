"""The stage `serve.proof`: one question over real HTTP, and the export in `transformers` beside our own logits."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch

from ninthsky.errors import UserError
from ninthsky.evidence import Evidence, Fact
from ninthsky.run import StageContext
from ninthsky.serve.engine import Answer, Engine, Sampling, Turn

TOLERANCE = 1e-5  # largest difference that counts as equal, as a share of the largest logit: fp32 rounds to 6e-8 of it
START_SECONDS = 120.0  # for the server to load on a busy machine
ROWS, LENGTH = 4, 64  # held-out text that logits are compared on


@dataclass(frozen=True)
class Comparison:
    """Our logits beside those of `transformers` on the same tokens."""

    version: str
    difference: float  # largest, absolute
    scale: float  # largest logit, 1 at least
    positions: int
    same_answer: bool  # its greedy generation gives the tokens of ours

    @property
    def equal(self) -> bool:
        """Nothing but rounding lies between the two."""
        return self.difference <= TOLERANCE * self.scale


def run(ctx: StageContext) -> None:
    """Writes proof.json. Raises UserError N9-SRV-004 when the answer over HTTP is not the model's own, or logits differ."""
    export = ctx.inputs["align.dpo"] / "export"
    prompt, sampling = ctx.settings.serve.prompt, Sampling(ctx.settings.serve.max_tokens)
    torch.set_num_threads(1)
    with serving(export, ctx.out / "server.log") as (url, key, name):
        # The server loads while this process does.
        engine = Engine(export)
        ids = engine.chat_ids([Turn("user", prompt)])
        own = engine.answer(ids, sampling)
        answered, refused = ask(url, key, name, prompt, sampling.max_tokens)
    ctx.say(f"asked over HTTP: {prompt!r} -> {answered.text!r}")
    if answered != own:
        raise UserError(
            "N9-SRV-004", f"over HTTP the model says {answered.text!r}, itself {own.text!r}", str(export), "n9 chat"
        )
    if refused != 401:
        raise UserError("N9-SRV-004", f"a request without the key got status {refused}, not 401", str(export), "n9 serve")
    compared = None
    if importlib.util.find_spec("transformers") is None:
        ctx.limit("The export was not compared with `transformers`, which is not installed: pip install 'ninthsky[proof]'.")
    else:
        compared = compare(engine, export, held_out(ctx.inputs["data.tokens"] / "tokens"), ids, sampling.max_tokens)
        where = f"at {compared.positions} held-out positions, of logits up to {compared.scale:.3g}"
        ctx.say(f"transformers {compared.version}: largest logit difference {compared.difference:.2g} {where}")
        if not compared.equal:
            text = (
                f"logits differ from those of transformers {compared.version} by {compared.difference:.2g}, "
                f"over {TOLERANCE * compared.scale:.2g}"
            )
            raise UserError("N9-SRV-004", text, str(export), "the export or the decoder is wrong: please report it")
    with ctx.open("proof.json") as file:
        file.write(_json(prompt, own, compared))
    _tell(ctx, prompt, own, compared)


@contextmanager
def serving(export: Path, log: Path) -> Iterator[tuple[str, str, str]]:
    """A server process on a free loopback port: (address, key, model's name). It is ended on leaving.

    Raises UserError N9-SRV-004 with the log's last line when it does not come up.
    """
    key = secrets.token_urlsafe(32)
    environment = {**os.environ, "N9_API_KEY": key, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ninthsky", "serve", str(export), "--port", "0", "--until-eof", "--json"]
    with log.open("wb") as errors:
        server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    assert server.stdin is not None and server.stdout is not None
    patience = threading.Timer(START_SECONDS, server.kill)
    patience.start()
    try:
        first = server.stdout.readline()  # one line, or nothing when the process ended
        patience.cancel()
        if not first:
            server.wait()
            last = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
            raise UserError("N9-SRV-004", f"the server ended with status {server.returncode}: {last[0]}", str(log), "n9 serve")
        told = json.loads(first)
        yield told["url"], key, told["model"]
    finally:
        patience.cancel()
        server.stdin.close()
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()
        log.unlink(missing_ok=True)


def ask(url: str, key: str, model: str, prompt: str, max_tokens: int) -> tuple[Answer, int]:
    """One question in OpenAI's wire format, and the status that the same question gets without the key."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}
    with httpx.Client(timeout=60, trust_env=False) as client:
        refused = client.post(f"{url}/chat/completions", json=body)
        reply = client.post(f"{url}/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
    if reply.status_code != 200:
        raise UserError(
            "N9-SRV-004", f"the server answered with status {reply.status_code}: {reply.text[:200]}", url, "n9 serve"
        )
    told = reply.json()
    choice, usage = told["choices"][0], told["usage"]
    answer = Answer(choice["message"]["content"], usage["prompt_tokens"], usage["completion_tokens"], choice["finish_reason"])
    return answer, refused.status_code


def held_out(folder: Path) -> torch.Tensor:
    """The first held-out tokens as LongTensor [rows, length]: fewer where there are fewer."""
    index = json.loads((folder / "index.json").read_text("utf-8"))
    file = folder / index["splits"]["held_out"]["file"]
    tokens = np.fromfile(file, np.dtype(index["dtype"]), ROWS * LENGTH).astype(np.int64)
    length = min(LENGTH, len(tokens))
    return torch.from_numpy(tokens[: len(tokens) // length * length].reshape(-1, length))


def compare(engine: Engine, export: Path, tokens: torch.Tensor, prompt: list[int], max_tokens: int) -> Comparison:
    """Loads the folder in `transformers`, without network, and holds fp32 logits and a greedy answer beside ours."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    theirs = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = theirs(tokens).logits
        difference = float((engine.model.logits(engine.model(tokens)) - logits).abs().max())
        scale = max(float(logits.abs().max()), 1.0)
        row = torch.tensor([prompt])
        made = theirs.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=max_tokens, do_sample=False)
    ids = made[0, len(prompt) :].tolist()
    ids = ids[: ids.index(1)] if 1 in ids else ids
    own = engine.answer(prompt, Sampling(max_tokens))
    same = engine.tokenizer.decode(ids, skip_special_tokens=True) == own.text
    return Comparison(importlib.metadata.version("transformers"), difference, scale, tokens.numel(), same)


def _tell(ctx: StageContext, prompt: str, own: Answer, compared: Comparison | None) -> None:
    facts = [Fact("answer over HTTP", "equals the model's own", source="POST /v1/chat/completions")]
    facts += [Fact("without the key", "status 401", source="POST /v1/chat/completions")]
    if compared:
        source = f"transformers {compared.version}, {compared.positions} held-out positions, fp32"
        facts += [Fact("largest logit difference", compared.difference, TOLERANCE * compared.scale, source=source)]
        facts += [Fact("greedy answer there", "the same" if compared.same_answer else "another", source=source)]
        if not compared.same_answer:
            ctx.limit(
                "`transformers` continued the question with another greedy answer: two tokens were almost equally likely."
            )
    ctx.evidence(
        Evidence(
            id="answer-served",
            kind="answer",
            subject=f"question {prompt!r}",
            verdict=f"answered {own.text!r}",
            facts=tuple(facts),
            decided_by="greedy decoding",
        )
    )
    rows: list[list[str | int]] = [
        ["question", prompt],
        ["answer over HTTP, equal to the model's own", own.text],
        ["tokens", own.answer_tokens],
    ]
    if compared:
        rows += [
            [f"largest logit difference to transformers {compared.version}", f"{compared.difference:.2g}"],
            ["largest logit", f"{compared.scale:.3g}"],
        ]
    ctx.table("serve", "One question to the exported model", ["what", "value"], rows)
    ctx.summary(
        prompt=prompt,
        answer=own.text,
        logit_difference=compared.difference if compared else None,
        transformers=compared.version if compared else None,
    )
    ctx.limit("Serve: one question at a time on one process; no batching, no quantisation, no speed is claimed.")


def _json(prompt: str, own: Answer, compared: Comparison | None) -> bytes:
    proof = {
        "prompt": prompt,
        "answer": own.text,
        "answer_tokens": own.answer_tokens,
        "finish": own.finish,
        "http_equals_model": True,
        "logit_difference": compared.difference if compared else None,
        "largest_logit": compared.scale if compared else None,
        "positions": compared.positions if compared else 0,
        "transformers_gives_same_answer": compared.same_answer if compared else None,
    }
    return (json.dumps(proof, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()
