"""The OpenAI wire format, as far as it is spoken here: what is asked, what is refused, how an answer looks."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import msgspec

from ninthsky.serve.engine import Answer, Finish, Sampling, Turn

# Keys of a request that would change the answer if they were obeyed, with the value that changes nothing. Others are ignored.
ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": ("", None),
    "tools": ([], None),
    "functions": ([], None),
    "logprobs": (False, None, 0),
    "top_logprobs": (0, None),
    "logit_bias": ({}, None),
    "top_p": (1, 1.0, None),
    "presence_penalty": (0, 0.0, None),
    "frequency_penalty": (0, 0.0, None),
    "response_format": (None, {"type": "text"}),
}


class WireError(Exception):
    """A request that is refused: HTTP status, and the error object that OpenAI's clients read."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Part(msgspec.Struct):
    """Part of a message; text is the only kind that a language model reads."""

    type: str
    text: str = ""


class Message(msgspec.Struct):
    """One turn as it is sent."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def turn(self) -> Turn:
        """Raises WireError for parts that are not text."""
        if isinstance(self.content, str):
            text = self.content
        else:
            if any(part.type != "text" for part in self.content):
                raise WireError(400, "only parts of type text are read here", "unsupported_value", "messages")
            text = "\n".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class StreamOptions(msgspec.Struct):
    """What a stream carries besides text."""

    include_usage: bool = False


class Request(msgspec.Struct, kw_only=True):
    """What both kinds of completion have in common."""

    model: str
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def sampling(self, default: int, most: int) -> Sampling:
        """Raises WireError where a number is outside what is served. Without a temperature the likeliest token is taken."""
        asked = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        count = default if asked is None else asked
        if not 1 <= count <= most:
            raise WireError(400, f"max_tokens is {count}; it must be 1 to {most}", "integer_out_of_range", "max_tokens")
        temperature = 0.0 if self.temperature is None else self.temperature
        if not (math.isfinite(temperature) and 0 <= temperature <= 2):
            raise WireError(400, f"temperature is {temperature}; it must be 0 to 2", "decimal_out_of_range", "temperature")
        seed = self.seed or 0
        if abs(seed) >= 1 << 40:
            raise WireError(400, "seed must lie within 40 bits", "integer_out_of_range", "seed")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > 4 or any(not 0 < len(word) <= 64 for word in stop):
            raise WireError(400, "stop is at most 4 words of 1 to 64 letters", "invalid_stop", "stop")
        return Sampling(count, temperature, seed, stop)


class ChatRequest(Request, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]

    def turns(self) -> list[Turn]:
        """Raises WireError where no user speaks last."""
        turns = [message.turn() for message in self.messages]
        if not turns or turns[-1].role != "user":
            raise WireError(400, "the last message must be the user's", "invalid_messages", "messages")
        return turns


class TextRequest(Request, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str]

    def text(self) -> str:
        """Raises WireError for more than one prompt."""
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) != 1:
            raise WireError(400, "one prompt per request", "unsupported_value", "prompt")
        return self.prompt[0]


R = TypeVar("R", bound=Request)


def parse(body: bytes, kind: type[R]) -> R:
    """A request from its body. Raises WireError with the place of the mistake."""
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(400, f"the body is not JSON: {error}", "invalid_json") from None
    if not isinstance(tree, dict):
        raise WireError(400, "the body is not a JSON object", "invalid_json")
    for key, allowed in ONLY.items():
        if key in tree and tree[key] not in allowed:
            raise WireError(400, f"`{key}` is not supported here; leave it out", "unsupported_parameter", key)
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise WireError(400, f"bad request: {error}", "invalid_type") from None


class Reply:
    """Renders one answer in the format of its endpoint."""

    def __init__(self, chat: bool, id: str, created: int, model: str) -> None:
        self.chat = chat
        self.head: dict[str, Any] = {"id": ("chatcmpl-" if chat else "cmpl-") + id, "created": created, "model": model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        content = {"message": {"role": "assistant", "content": answer.text}} if self.chat else {"text": answer.text}
        kind = "chat.completion" if self.chat else "text_completion"
        choice = {"index": 0, **content, "finish_reason": answer.finish, "logprobs": None}
        return {**self.head, "object": kind, "choices": [choice], "usage": usage(answer.prompt_tokens, answer.answer_tokens)}

    def piece(self, text: str, finish: Finish | None, first: bool = False) -> dict[str, Any]:
        delta = {"content": text, **({"role": "assistant"} if first else {})}
        content = {"delta": delta} if self.chat else {"text": text}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": [{"index": 0, **content, "finish_reason": finish, "logprobs": None}]}

    def last(self, prompt_tokens: int, answer_tokens: int) -> dict[str, Any]:
        """The piece after all text that a client asked for with stream_options.include_usage."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": [], "usage": usage(prompt_tokens, answer_tokens)}


def usage(prompt: int, answer: int) -> dict[str, int]:
    """Tokens read and made."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
