from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ninthsky.errors import UserError
from ninthsky.model import Decoder, Shape
from ninthsky.signal.learn import BATCH, batches, make_reader
from ninthsky.signal.reader import EOS, Form, Reader, Reading, answer_loss, load_reader, question_ids, save_reader, texts
from ninthsky.signal.tasks import TASKS, Prepared, prepare
from ninthsky.train.step.loop import Recipe, fit
from tests.align.small import letters

SHAPE = Shape(262, layers=2, dim=32, heads=2, kv_heads=1, experts=4, experts_per_token=2, expert_dim=16, dense_dim=32)


@pytest.fixture(scope="module")
def digits() -> Prepared:
    return prepare(TASKS["digits"], 7)


def reader(seed: int = 1) -> Reader:
    return Reader(Decoder(SHAPE, seed=seed), {"digits": Form(16, 4)}, seed)


def batch(rows: int = 3) -> Reading:
    text, target = texts(letters(), "digit?", ["7", "3", "10"][:rows])
    draw = torch.Generator().manual_seed(0)
    return Reading("digits", torch.randn(rows, 16, 4, generator=draw), text, target)


def test_only_the_answer_and_its_end_are_targets() -> None:
    text, target = texts(letters(), "digit?", ["7", "10"])
    asked = len(question_ids(letters(), "digit?"))
    assert target[0].nonzero().flatten().tolist() == [asked, asked + 1, asked + 2]  # " ", "7", <eos>
    assert target[1].sum() == 4 and text[0, asked + 2] == EOS


def test_the_loss_equals_the_answers_log_probability_token_by_token() -> None:
    model, asked = reader().eval(), batch()
    total, count = answer_loss(model, asked)
    wanted, counted = 0.0, 0
    with torch.no_grad():
        for row in range(len(asked.text)):
            places = asked.target[row].nonzero().flatten().tolist()
            for place in places:
                # Asked anew with the text cut off before the token: a token that leaked from behind would show here.
                before = model.stream("digits", asked.patches[row : row + 1])
                seen = model.decoder.embed(asked.text[row : row + 1, :place])
                hidden = model.decoder(embeddings=torch.cat([before, seen], 1), prefix=before.shape[1])
                wanted -= float(model.decoder.logits(hidden[:, -1]).log_softmax(-1)[0, asked.text[row, place]])
                counted += 1
    assert int(count) == counted
    assert float(total.detach()) == pytest.approx(wanted, rel=1e-4)


def test_answers_with_a_cache_equal_answers_without() -> None:
    model, asked = reader(), batch()
    question = question_ids(letters(), "digit?")
    said = model.answer("digits", asked.patches, question, 5)
    with torch.no_grad():
        for row in range(3):
            tokens = list(question)
            for _ in range(5):
                before = model.stream("digits", asked.patches[row : row + 1])
                text = model.decoder.embed(torch.tensor([tokens]))
                hidden = model.decoder(embeddings=torch.cat([before, text], 1), prefix=before.shape[1])
                tokens.append(int(model.decoder.logits(hidden[0, -1]).argmax()))
            new = tokens[len(question) :]
            assert said[row] == (new[: new.index(EOS)] if EOS in new else new)


def test_the_order_of_patches_matters() -> None:
    model, asked = reader().eval(), batch(1)
    turned = Reading("digits", asked.patches.flip(1), asked.text, asked.target)
    with torch.no_grad():
        assert float(answer_loss(model, asked)[0]) != pytest.approx(float(answer_loss(model, turned)[0]), rel=1e-4)


def test_a_batch_is_a_function_of_the_step(digits: Prepared) -> None:
    first, again = (batches([digits], letters(), 7) for _ in range(2))
    assert torch.equal(first(5).patches, again(5).patches) and torch.equal(first(5).text, again(5).text)
    assert not torch.equal(first(5).patches, first(6).patches)
    steps = len(digits.train) // BATCH
    seen = torch.cat([first(step).patches for step in range(steps)])
    assert len(seen.flatten(1).unique(dim=0)) >= 0.99 * len(seen)  # a few digits are alike to the pixel


def test_training_rows_alone_are_shown(digits: Prepared) -> None:
    trained = {patches.tobytes() for patches in digits.patches[digits.train]}
    batch_at = batches([digits], letters(), 7)
    for step in range(0, 40, 7):
        for row in batch_at(step).patches.numpy().astype(np.float32):
            assert row.tobytes() in trained


@pytest.mark.slow
def test_it_learns_digits_it_has_not_seen(digits: Prepared) -> None:
    torch.set_num_threads(1)
    model = make_reader(Decoder(SHAPE, seed=1), [digits], 7)
    fit(model, batches([digits], letters(), 7), answer_loss, Recipe(lr=5e-3, schedule="cosine"), 250)
    said = model.answer("digits", torch.from_numpy(digits.patches[digits.test]), question_ids(letters(), "digit?"), 3)
    right = [letters().decode(ids).strip() == digits.answers[row] for ids, row in zip(said, digits.test, strict=True)]
    assert np.mean(right) > 0.6  # chance is 0.1


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    model, asked = reader(), batch()
    letters().save(str(tmp_path / "tokenizer.json"))
    save_reader(model, tmp_path / "reader", tmp_path / "tokenizer.json")
    again = load_reader(tmp_path / "reader")
    question = question_ids(letters(), "digit?")
    assert again.answer("digits", asked.patches, question, 4) == model.answer("digits", asked.patches, question, 4)
    first = (tmp_path / "reader" / "entrances.safetensors").read_bytes()
    save_reader(again, tmp_path / "twice", tmp_path / "tokenizer.json")
    assert (tmp_path / "twice" / "entrances.safetensors").read_bytes() == first


def test_a_folder_without_a_reader(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="N9-SIG-005"):
        load_reader(tmp_path)
