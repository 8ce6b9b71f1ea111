"""Personal data in texts, masked where it stands: e-mail addresses, telephone numbers, identity and bank cards, hosts.

Numbers that carry a check digit are held against it, so that serial numbers of the same length stay. Service numbers (400, 800)
and private addresses (192.168...) are nobody's and stay too.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["email", "phone", "id_card", "bank_card", "ip"]
_SURE = "(?<![0-9A-Za-z_.-])", "(?![0-9A-Za-z_-]|[.][0-9A-Za-z])"  # not inside of a longer number, name or version
# Weights of GB 11643-1999 (ISO 7064, MOD 11-2) for the 17 digits before the check character.
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_CHECK = "10X98765432"


@dataclass(frozen=True)
class Pattern:
    """What a kind of personal data looks like, and what else must hold of a match."""

    kind: Kind
    needs: str  # a text without any of these characters has none
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = lambda match: True


def _id_card(match: str) -> bool:
    total = sum(int(digit) * weight for digit, weight in zip(match[:17], _ID_WEIGHTS, strict=True))
    return match[17].upper() == _ID_CHECK[total % 11]


def _luhn(match: str) -> bool:
    """The check digit of ISO/IEC 7812, annex B."""
    digits = [int(character) for character in reversed(match) if character.isdigit()]
    if not 15 <= len(digits) <= 19:
        return False
    return sum(digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(digits)) % 10 == 0


def _phone(match: str) -> bool:
    """E.164 allows 15 digits; fewer than 8 are nobody's number with a country code."""
    return 8 <= sum(map(str.isdigit, match)) <= 15


def _public(match: str) -> bool:
    try:
        return ipaddress.ip_address(match).is_global
    except ValueError:
        return False


def _digits(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.join(_SURE), re.ASCII)


_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}[@＠](?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}(?![\w-])", re.ASCII
)
_ID_CARD = _digits(r"[1-9]\d{5}(?:18|19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]")
_BANK_CARD = _digits(r"(?:62|3[47]|4\d|5[1-5])\d{2}[ -]?\d{4}[ -]?\d{4}[ -]?\d{3,7}")
_ABROAD = re.compile(r"(?<![\w+])\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,5}(?![\w-])", re.ASCII)
_CHINESE_MOBILE = _digits(r"1[3-9]\d[ -]?\d{4}[ -]?\d{4}")
_CHINESE_AREA = _digits(r"(?:\(0\d{2,3}\) ?|0\d{2,3}[- ])[2-9]\d{6,7}")
_NORTH_AMERICAN = _digits(r"(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])[2-9]\d\d[-.]\d{4}")
_IPV4 = _digits(r"(?:\d{1,3}\.){3}\d{1,3}")
_DIGITS = "0123456789"
# In this order: an identity card's digits are no telephone number. Lengths are bounded, so that no text takes long.
PATTERNS: tuple[Pattern, ...] = (
    Pattern("email", "@＠", _EMAIL),
    Pattern("id_card", _DIGITS, _ID_CARD, _id_card),
    Pattern("bank_card", _DIGITS, _BANK_CARD, _luhn),
    Pattern("phone", "+", _ABROAD, _phone),
    Pattern("phone", "1", _CHINESE_MOBILE),
    Pattern("phone", "0", _CHINESE_AREA),
    Pattern("phone", "-.)", _NORTH_AMERICAN, lambda match: match[:3] not in ("400", "800")),
    Pattern("ip", ".", _IPV4, _public),
)
MASKS: dict[Kind, str] = {"email": "[e-mail]", "phone": "[phone]", "id_card": "[ID]", "bank_card": "[card]", "ip": "[IP]"}


def mask(text: str, kinds: Sequence[Kind]) -> tuple[str, dict[Kind, int]]:
    """The text with what was found of `kinds` replaced, and how many of each."""
    found: dict[Kind, int] = {}
    for one in PATTERNS:
        if one.kind not in kinds or not any(character in text for character in one.needs):
            continue

        def replace(match: re.Match[str], one: Pattern = one) -> str:
            if not one.holds(match[0]):
                return match[0]
            found[one.kind] = found.get(one.kind, 0) + 1
            return MASKS[one.kind]

        text = one.pattern.sub(replace, text)
    return text, found
