from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ninthsky.errors import UserError
from ninthsky.model.generate import generate
from ninthsky.serve.engine import ASSISTANT, EOS, USER, Engine, Sampling, Turn, _held_back

words = st.text(max_size=30)


def test_a_question_stands_in_the_form_that_align_trains_on(engine: Engine) -> None:
    from ninthsky.align.dialogue import prompt_ids

    for text in ("the quick fox", "基站 sleeps", ""):
        assert engine.chat_ids([Turn("user", text)]) == prompt_ids(engine.tokenizer, text)


def test_a_conversation_keeps_its_turns_apart(engine: Engine) -> None:
    turns = [Turn("system", "be brief"), Turn("user", "one"), Turn("assistant", "two"), Turn("user", "three")]
    ids = engine.chat_ids(turns)
    assert [token for token in ids if token in (EOS, USER, ASSISTANT)] == [USER, ASSISTANT, EOS, USER, ASSISTANT]
    assert engine.tokenizer.decode(ids[1 : ids.index(ASSISTANT)]) == "be brief\none"


@given(st.lists(st.sampled_from(["<eos>", "<assistant>", "<user>", "<pad>", "hi", " "]), max_size=8))
def test_words_never_become_control_tokens(engine: Engine, parts: list[str]) -> None:
    ids = engine.chat_ids([Turn("user", "".join(parts))])
    assert ids[0] == USER and ids[-1] == ASSISTANT and all(token > 5 for token in ids[1:-1])


@settings(max_examples=25, deadline=None)
@given(text=words, count=st.integers(1, 24), temperature=st.sampled_from([0.0, 0.8, 2.0]), seed=st.integers(0, 5))
def test_pieces_are_the_answer_and_the_answer_is_what_generate_gives(
    engine: Engine, text: str, count: int, temperature: float, seed: int
) -> None:
    ids = engine.chat_ids([Turn("user", text.encode("utf-8", "replace").decode())])
    sampling = Sampling(count, temperature, seed)
    answer = engine.answer(ids, sampling)
    expected = generate(engine.model, ids, count, stop=EOS, temperature=temperature, seed=seed)
    assert answer.text == engine.tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.answer_tokens == len(expected) and answer.prompt_tokens == len(ids)
    assert answer.finish == ("length" if len(expected) == count else "stop")
    pieces = list(engine.pieces(ids, sampling))
    assert "".join(piece for piece, _, _ in pieces) == answer.text
    assert [finish for _, _, finish in pieces[:-1]] == [None] * (len(pieces) - 1)


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 20), length=st.integers(1, 6), seed=st.integers(0, 20))
def test_an_answer_ends_before_its_stop_word(engine: Engine, start: int, length: int, seed: int) -> None:
    ids = engine.text_ids("the")
    whole = engine.answer(ids, Sampling(32, 1.5, seed)).text
    stop = whole[start : start + length].strip("\ufffd")
    if not stop:
        return
    pieces = list(engine.pieces(ids, Sampling(32, 1.5, seed, (stop, "never said"))))
    assert "".join(piece for piece, _, _ in pieces) == whole[: whole.index(stop)]
    assert pieces[-1][2] == "stop"


@given(text=words, more=st.text(max_size=4), stop=st.text(alphabet="ab\ufffd", min_size=1, max_size=5))
def test_what_was_shown_is_never_part_of_a_stop_word(text: str, more: str, stop: str) -> None:
    """However the text goes on: a stop word that ends later does not begin in what was shown, unless it began with garbage."""
    for sent in (text, text + "a", text + "ab\ufffd", text + stop[:-1]):
        finished = sent.rstrip("\ufffd")
        shown = len(sent) - _held_back(sent, (stop,))
        assert shown <= len(finished)
        begins = (finished + more).find(stop)
        assert begins == -1 or begins >= shown or begins + len(stop) <= len(finished)


def test_a_folder_without_tokenizer_or_model_is_told(tmp_path: Path, export: Path) -> None:
    with pytest.raises(UserError, match="N9-SRV-001"):
        Engine(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="N9-MOD-001"):
        Engine(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((export / name).read_bytes())
    with pytest.raises(UserError, match=r"N9-SRV-001.*damaged"):
        Engine(tmp_path)
