from __future__ import annotations

from typing import get_args

import pytest

from ninthsky.data.personal import MASKS, Kind, mask

KINDS: tuple[Kind, ...] = get_args(Kind)


def id_card(seventeen: str) -> str:
    """With its check character, reckoned as the standard has it: powers of two modulo 11."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(seventeen))
    return seventeen + "10X98765432"[total % 11]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to jane.doe+x@mail.example.org.", "Write to [e-mail]."),
        ("邮箱：zhang_san＠qq.com，欢迎来信", "邮箱：[e-mail]，欢迎来信"),
        ("Call +44 20 7946 0958 or +8613812345678 now", "Call [phone] or [phone] now"),
        ("电话138 1234 5678。", "电话[phone]。"),
        ("手机：13812345678，座机：010-62345678", "手机：[phone]，座机：[phone]"),
        ("Fax (212) 555-4123 and 212-555-4199.", "Fax [phone] and [phone]."),
        ("a server at 8.8.8.8, a router at 192.168.0.1", "a server at [IP], a router at 192.168.0.1"),
        ("身份证 " + id_card("11010519491231002"), "身份证 [ID]"),
        ("卡号 4111 1111 1111 1111", "卡号 [card]"),
    ],
)
def test_what_is_somebodys_is_masked(text: str, masked: str) -> None:
    assert mask(text, KINDS)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "版本 1.2.3.4.5，编号 20240101123456",
        "ISBN 978-7-115-12345-6, in 1949-1950, pi is 3.14159265358979",
        "全国统一服务热线 400-810-6666",
        "身份证 110105194912310021",  # its check digit is wrong
        "卡号 4111 1111 1111 1112",
        "user@localhost and @handle and a@b",
        "commit 13812345678abcdef, file_13812345678.txt, 113812345678",
        "300.1.1.1 and 10.0.0.1",
    ],
)
def test_what_is_nobodys_stays(text: str) -> None:
    assert mask(text, KINDS) == (text, {})


def test_kinds_are_chosen_and_counted() -> None:
    text = "a@b.org, c@d.org, 13812345678"
    assert mask(text, ("email",)) == (f"{MASKS['email']}, {MASKS['email']}, 13812345678", {"email": 2})
    assert mask(text, ()) == (text, {})
    assert mask(mask(text, KINDS)[0], KINDS)[1] == {}


@pytest.mark.parametrize("piece", ["a.", "1", "1 ", "+1 ", "a@", "1.", "(0"])
def test_no_text_takes_for_ever(piece: str) -> None:
    """A pattern that tries every length from every place would take hours for this."""
    text = piece * (1_000_000 // len(piece))
    assert mask(text, KINDS)[0].count(piece[0]) > 1_000
