"""`n9 serve` and `n9 chat`: the exported checkpoint behind an address, or for one question."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ninthsky.errors import OK, UserError

app = App(name="serve", help="The exported checkpoint behind an OpenAI-compatible address.")

Json = Annotated[bool, Parameter(name="--json", negative="", help="JSON lines instead of text.")]
Flag = Annotated[bool, Parameter(negative="")]


@app.default
def serve(
    target: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8009,
    store: Path = Path("runs"),
    no_auth: Flag = False,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    until_eof: Flag = False,
    json_: Json = False,
) -> int:
    """Serve an exported model: GET /v1/models, POST /v1/completions and /v1/chat/completions, also as streams.

    A key is made and printed once; N9_API_KEY gives your own. It listens on loopback unless told otherwise.

    Parameters
    ----------
    target:
        An export folder, or a run's name or folder; the newest run otherwise.
    host:
        Address to listen on.
    port:
        Port; 0 takes a free one and prints it.
    store:
        Folder of the runs.
    no_auth:
        Ask for no key; refused unless the address is loopback.
    tls_cert:
        Certificate (PEM) for https.
    tls_key:
        Its private key (PEM).
    until_eof:
        End when standard input closes, for programs that start the server and may die.
    """
    from ninthsky.serve.listen import listen

    listen(target, host, port, store, os.environ.get("N9_API_KEY"), no_auth, tls_cert, tls_key, until_eof, json_)
    return OK


def chat(
    question: str,
    *,
    run: str | None = None,
    export: Path | None = None,
    store: Path = Path("runs"),
    system: str = "",
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    json_: Json = False,
) -> int:
    """Ask the exported checkpoint one question, in this process. `-` reads the question from standard input.

    Parameters
    ----------
    question:
        What to ask.
    run:
        Name or folder of the run; the newest one otherwise.
    export:
        An export folder instead of a run.
    store:
        Folder of the runs.
    system:
        Words put before the question.
    max_tokens:
        Longest answer.
    temperature:
        0 takes the likeliest token each time.
    seed:
        Of the draws, with a temperature.
    """
    from ninthsky.serve.engine import Engine, Sampling, Turn, warm
    from ninthsky.serve.export import find_export

    if run is not None and export is not None:
        raise UserError("N9-CFG-013", "both --run and --export", "n9 chat", "name one")
    if not 1 <= max_tokens <= 4_096 or not 0 <= temperature <= 2:
        raise UserError("N9-CFG-012", "max-tokens must be 1 to 4096, temperature 0 to 2", "n9 chat", "n9 chat --help")
    folder, name = find_export(str(export) if export is not None else run, store)
    engine = Engine(folder)
    warm(engine)
    asked = sys.stdin.read() if question == "-" else question
    turns = [*([Turn("system", system)] if system else []), Turn("user", asked)]
    sampling = Sampling(max_tokens, temperature, seed)
    ids = engine.chat_ids(turns)
    if json_:
        answer = engine.answer(ids, sampling)
        print(
            json.dumps(
                {
                    "model": name,
                    "question": asked,
                    "answer": answer.text,
                    "finish": answer.finish,
                    "prompt_tokens": answer.prompt_tokens,
                    "answer_tokens": answer.answer_tokens,
                },
                ensure_ascii=False,
            )
        )
        return OK
    for text, _, _ in engine.pieces(ids, sampling):
        print(text, end="", flush=True)
    print()
    return OK
