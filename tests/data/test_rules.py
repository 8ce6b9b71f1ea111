from __future__ import annotations

import random
import re
from collections import Counter as Tally

import numpy as np
import pytest

from ninthsky.config.schema import Quality
from ninthsky.data.language import detect
from ninthsky.data.made import made_pages
from ninthsky.data.rules.c4 import clean
from ninthsky.data.rules.judge import Counter, Judge, Verdict, buffers
from ninthsky.data.rules.table import table
from ninthsky.data.rules.words import SYMBOLS, Words, english, sentence_ends
from ninthsky.data.spam import spam_lines, spam_shares

RULES = table(Quality())
ENGLISH = next(page.article for page in made_pages() if page.name == "en-bees")
CHINESE = next(page.article for page in made_pages() if page.name == "zh-dukou")
AGAIN = "And this longer one, of no use whatever to the reader of a page, is said again on it."


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(RULES)


def verdict(judge: Judge, text: str, language: str = "en") -> Verdict:
    return judge([text], language)[0]


def reason(judge: Judge, text: str, language: str = "en") -> str | None:
    broken = verdict(judge, text, language).broken
    return broken.name if broken else None


def test_good_articles_pass(judge: Judge) -> None:
    for page in made_pages():
        if page.article:
            assert reason(judge, page.article, page.language) is None, page.name


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "min_words"),
        ("Too short to be of use.", "min_words"),
        (ENGLISH + "\nLorem ipsum dolor sit amet.", "lorem_ipsum"),
        ("a b c d e f g h i j " * 20, "min_word_length"),
        ("incomprehensibilities internationalisation " * 30, "max_word_length"),
        (" ".join(f"# thing the word{i} and that of" for i in range(60)), "hash_share"),
        ("\n".join(f"- the point number {i} of it and that." for i in range(40)), "bullet_lines"),
        ("\n".join(f"the story number {i} of it and then more..." for i in range(40)), "ellipsis_lines"),
        (" ".join(f"the word{i} ... of that" for i in range(40)), "ellipsis_share"),
        (" ".join(f"{i * 7919} 12345 the of" for i in range(60)), "alphabetic_share"),
        (" ".join(f"gadget{chr(97 + i % 26)}{chr(97 + i // 26)} widget" for i in range(60)), "stop_words"),
        ("\n".join(["The same line of text and that again, here." for _ in range(30)]), "duplicate_lines"),
        ("\n\n".join([ENGLISH] * 3), "duplicate_paragraphs"),
        ("the big dog of that house " * 40, "top_2_gram"),
        (ENGLISH.replace(".", ""), "terminal_lines"),
        (f"{ENGLISH}\n{AGAIN}\n{AGAIN}\n{AGAIN}", "repeated_line_characters"),
    ],
)
def test_each_rule_has_what_it_drops(judge: Judge, text: str, rule: str) -> None:
    assert reason(judge, text) == rule


def test_chinese_has_its_own_words(judge: Judge) -> None:
    assert 150 < verdict(judge, CHINESE, "zh").figures["min_words"] < 400  # 437 characters; words by spaces would be a dozen
    assert reason(judge, "好" * 500, "zh") is not None
    assert reason(judge, "渡口还罩在雾里。", "zh") == "min_words"


def test_a_shell_alone_is_dropped(judge: Judge) -> None:
    lines = [
        "24小时空调维修服务电话:400-000-0123",
        "全国统一热水器维修热线::123456(点击咨询)",
        "临江市东河区、安平市石桥县、永宁市南湖区、清源市白塔区",
    ]
    assert spam_lines(lines).all() and reason(judge, "\n".join(lines * 6), "zh") == "spam_lines"
    assert (spam_shares([CHINESE, ENGLISH, ""]) == 0).all() and not len(spam_lines([]))


def test_figures_are_kept_past_the_first_broken_rule(judge: Judge) -> None:
    short = verdict(judge, "Short.")
    assert short.broken is not None and short.broken.name == "min_words"
    assert set(short.figures) == {rule.name for rule in RULES if rule.threshold("en") is not None}


def test_thresholds_come_from_the_settings() -> None:
    broken = verdict(Judge(table(Quality(min_words=100_000))), ENGLISH).broken
    assert broken is not None and broken.name == "min_words" and broken.threshold("en") == 100_000


def test_many_texts_at_once_are_judged_as_each_alone(judge: Judge) -> None:
    texts = ["", ENGLISH, "Short.", ENGLISH + "\n\n" + ENGLISH, "\n\n", CHINESE]
    assert judge(texts, "en") == [verdict(judge, text) for text in texts]


def test_what_was_learnt_of_words_can_be_forgotten(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ninthsky.data.rules.words.REMEMBERED", 10)
    forgetful = Judge(RULES)
    for _ in range(3):
        assert forgetful([ENGLISH, "Short."], "en") == judge([ENGLISH, "Short."], "en")


PIECES = (
    "the", "of", "and", "Bees", "don't", "e.g.", "U.S.", "x.y", "(so)", "#1", "...", "…", "wait…", "end.", "end?",
    '"Yes!"', "co-op",
    "3.5kg", "http://a.b/c?d", "naïve", "蜂蜜", "—", "•", "-", "a", "\u00a0", "\n", "\n", "\n\n", "\n\n\n", " \n", "\r\n",
    "\x85", "\u2028",
    "  ", "\t", "the bees of the house", "[1]", "[edit]", "JavaScript", "we use cookies", "Mr.", "cannot", "gonna!", "I'm.",
)  # fmt: skip


def random_texts(number: int) -> list[str]:
    draw = random.Random(5)
    texts = [" ".join(draw.choices(PIECES[: draw.choice((8, 24, 46))], k=draw.randrange(1, 120))) for _ in range(number)]
    return [*texts, *(text.replace(" ", "") for text in texts[:10])]


def test_figures_are_what_their_definitions_say() -> None:
    """Against the definitions written out over Python strings, one text at a time."""
    texts = random_texts(150)
    data, offsets = buffers(texts)
    figures = Counter("en")(data, offsets)
    for number, text in enumerate(texts):
        words = [word for run in text.split() for word in english()(run)]
        for name, wanted in defined(text, words).items():
            assert figures[name][number] == pytest.approx(wanted), (name, text)


def defined(text: str, words: list[str]) -> dict[str, float]:
    ends = tuple(sentence_ends())
    visible = [word for word in words if not SYMBOLS.issuperset(word)]
    every, full = text.splitlines(), [line for line in text.split("\n") if line.strip()]
    out = {
        "words": len(words),
        "visible_words": len(visible),
        "word_length": float(np.mean([len(word) for word in visible])) if visible else 0.0,
        "alphabetic_share": share([any(map(str.isalpha, word)) for word in words]),
        "alphabetic_runs": share([any(map(str.isalpha, run)) for run in text.split()]),
        "stop_words": len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(words)),
        "hash_share": text.count("#") / max(len(words), 1),
        "ellipsis_share": (text.count("...") + text.count("…")) / max(len(words), 1),
        "bullet_lines": share([line.lstrip().startswith(("•", "-")) for line in every]),
        "ellipsis_lines": share([line.rstrip().endswith(("...", "…")) for line in every]),
        "terminal_lines": share([line.endswith(ends) for line in full]),
        "short_lines": share([len(line) <= 30 for line in full]),
        "repeated_line_characters": repeated(full)[1] / max(len(text.replace("\n", "")), 1),
        "newlines_per_word": text.count("\n") / max(len(words), 1),
    }
    for name, parts in (("paragraph", re.split(r"\n{2,}", text.strip())), ("line", re.split(r"\n+", text))):
        count, characters = repeated(parts)
        out[f"duplicate_{name}s"], out[f"duplicate_{name}_characters"] = count / len(parts), characters / len(text)
    for n in (2, 3, 4):
        grams = Tally(" ".join(words[at : at + n]) for at in range(len(words) - n + 1))
        gram, times = grams.most_common(1)[0] if grams else ("", 0)
        out[f"top_{n}_gram"] = len(gram) * times / len(text)
    for n in range(5, 11):
        seen, at, again = set(), 0, 0
        while at + n <= len(words):
            gram = "".join(words[at : at + n])
            again += len(gram) if gram in seen else 0
            at += n if gram in seen else 1
            seen.add(gram)
        out[f"repeated_{n}_grams"] = again / len(text)
    return out


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def repeated(parts: list[str]) -> tuple[int, int]:
    """How many came before, and their characters."""
    again = [part for at, part in enumerate(parts) if part in set(parts[:at])]
    return len(again), sum(map(len, again))


def test_plain_words_are_cut_as_spacy_cuts_them() -> None:
    import spacy

    whole = spacy.blank("en").tokenizer
    for text in (ENGLISH, *random_texts(60)):
        assert [word for run in text.split() for word in english()(run)] == [t.text for t in whole(text) if t.text.strip()]


@pytest.mark.parametrize("ended", [True, False])
def test_c4_takes_the_lines_out_that_its_definition_takes_out(ended: bool) -> None:
    import spacy

    pipeline = spacy.blank("en")
    pipeline.add_pipe("sentencizer")
    texts = [*random_texts(80), "One two three { four.", "It says lorem Ipsum dolor.\nAnd one more line.", "x" * 1001 + " y z."]
    data, offsets = buffers(texts)
    cleaned = clean(data, offsets, Words("en"), ended)
    for number, text in enumerate(texts):
        kept, sentences = [], 0
        for line in map(str.strip, text.splitlines()):
            few = len(line.split()) < 3 or any(len(word) > 1000 for word in line.split())
            line = re.sub(r"\[\d*]|\[edit]|\[citation needed]", "", line)
            low = line.lower()
            if few or (ended and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("..."))):
                continue
            if "lorem ipsum" in low:
                break
            if "javascript" in low or "use cookies" in low:
                continue
            if "{" in line:
                break
            kept.append(line)
            sentences += sum(1 for sentence in pipeline(line).sents if sentence.text.strip())
        else:
            assert cleaned.data[cleaned.offsets[number] : cleaned.offsets[number + 1]].tobytes().decode() == "\n".join(kept)
            assert cleaned.sentences[number] == sentences, text
            continue
        assert cleaned.lorem_ipsum[number] or cleaned.curly_bracket[number]


def test_c4_is_asked_where_the_settings_say_so() -> None:
    asked = Judge(table(Quality(c4=True)))
    text = ENGLISH + "\nThis site uses cookies to know you. Read our cookie policy."
    found = verdict(asked, text)
    assert found.broken is None and found.text == ENGLISH.strip() and found.figures["c4_sentences"] >= 5
    assert reason(asked, ENGLISH + "\nfunction () { return it; }") == "c4_curly_bracket"
    assert verdict(asked, CHINESE, "zh").text == CHINESE


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The administrator must know which services are running and how they are started at boot."),
        ("de", "Der Administrator muss wissen, welche Dienste laufen und wie sie beim Hochfahren gestartet werden."),
        ("fr", "L'administrateur doit savoir quels services sont actifs et comment ils sont lancés au démarrage."),
        ("es", "El administrador debe saber qué servicios están en marcha y cómo se inician durante el arranque."),
        ("ru", "Администратор должен знать, какие службы запущены и как они запускаются при загрузке системы."),
        ("ar", "يجب أن يعرف المدير الخدمات التي تعمل وكيف يتم تشغيلها عند الإقلاع وما هي ملفات الإعداد."),
        ("el", "Ο διαχειριστής πρέπει να γνωρίζει ποιες υπηρεσίες εκτελούνται και πώς ξεκινούν κατά την εκκίνηση."),
        ("ja", "管理者は、どのサービスが実行されているか、また起動時にどのように開始されるかを知っておく必要があります。"),
        ("ko", "관리자는 어떤 서비스가 실행 중인지, 부팅할 때 어떻게 시작되는지 알아야 합니다."),
        ("zh", "管理员应当知道哪些服务正在运行，以及它们在系统启动时是怎样被启动的。"),
        ("zh", "管理員應當知道 apt-get 與 aptitude 這兩個命令，以及它們在系統啟動時是怎樣被啟動的。"),
        ("unknown", "1234 5678 :: 90"),
        ("unknown", ""),
    ],
)
def test_language(language: str, text: str) -> None:
    assert detect(text)[0] == language
