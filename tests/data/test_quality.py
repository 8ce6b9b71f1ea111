from __future__ import annotations

import pytest

from ninthsky.config.schema import Quality
from ninthsky.data.language import detect
from ninthsky.data.made import made_pages
from ninthsky.data.quality import Text, judge, table
from ninthsky.data.spam import is_spam, spam_share

RULES = table(Quality())
ENGLISH = next(page.article for page in made_pages() if page.name == "en-bees")
CHINESE = next(page.article for page in made_pages() if page.name == "zh-dukou")


def reason(text: str, language: str = "en") -> str | None:
    broken = judge(text, language, RULES)[1]
    return broken.name if broken else None


def test_good_articles_pass() -> None:
    for page in made_pages():
        if page.article:
            assert reason(page.article, page.language) is None, page.name


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Too short to be of use.", "min_words"),
        (ENGLISH + "\nLorem ipsum dolor sit amet.", "lorem_ipsum"),
        ("a b c d e f g h i j " * 20, "min_word_length"),
        ("incomprehensibilities internationalisation " * 30, "max_word_length"),
        (" ".join(f"# thing the word{i} and that of" for i in range(60)), "symbol_share"),
        ("\n".join(f"- the point number {i} of it and that." for i in range(40)), "bullet_lines"),
        ("\n".join(f"the story number {i} of it and then more..." for i in range(40)), "symbol_share"),
        (" ".join(f"{i * 7919} 12345 the of" for i in range(60)), "alphabetic_share"),
        (" ".join(f"gadget{chr(97 + i % 26)}{chr(97 + i // 26)} widget" for i in range(60)), "stop_words"),
        ("\n".join(["The same line of text and that again, here." for _ in range(30)]), "duplicate_lines"),
        ("the big dog of that house " * 40, "top_2_gram"),
        (ENGLISH.replace(".", ""), "terminal_lines"),
    ],
)
def test_each_rule_has_what_it_drops(text: str, rule: str) -> None:
    assert reason(text) == rule


def test_chinese_has_its_own_words() -> None:
    text = Text(CHINESE, "zh")
    assert 150 < text.words < 400  # 437 characters; words by spaces would be a dozen
    assert reason("好" * 500, "zh") is not None
    assert reason("渡口还罩在雾里。", "zh") == "min_words"


def test_a_shell_alone_is_dropped() -> None:
    lines = [
        "24小时空调维修服务电话:400-000-0123",
        "全国统一热水器维修热线::123456(点击咨询)",
        "临江市东河区、安平市石桥县、永宁市南湖区、清源市白塔区",
    ]
    assert all(map(is_spam, lines)) and reason("\n".join(lines * 6), "zh") == "spam_lines"
    assert spam_share(CHINESE.splitlines()) == 0 and spam_share(ENGLISH.splitlines()) == 0
    assert spam_share([]) == 0


def test_figures_are_kept_past_the_first_broken_rule() -> None:
    figures, broken = judge("Short.", "en", RULES)
    assert broken is not None and broken.name == "min_words"
    assert set(figures) == {rule.name for rule in RULES if rule.threshold("en") is not None}


def test_thresholds_come_from_the_settings() -> None:
    strict = table(Quality(min_words=100_000))
    broken = judge(ENGLISH, "en", strict)[1]
    assert broken is not None and broken.name == "min_words" and broken.threshold("en") == 100_000


def test_repeated_ngrams_by_hand() -> None:
    rule = next(rule for rule in RULES if rule.name == "repeated_5_grams")
    # Ten words, then the first five again: 5 of 15 words of equal length.
    words = [f"w{i:02d}" for i in range(10)]
    assert rule.figure(Text(" ".join(words + words[:5]), "en")) == pytest.approx(5 / 15)
    assert rule.figure(Text(" ".join(words), "en")) == 0.0
    assert rule.figure(Text("", "en")) == 0.0


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
