"""What lines of spam shells look like: lures, telephone numbers, lists of places. Used by extraction and quality rules."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Matched against lower-cased text: without a flag for case the engine skips to characters that can begin a match.
LURE = re.compile(
    "hotline|toll[- ]?free|call (?:now|us|today)|24[/x]7|24 hours?|free (?:quote|download|trial)|click (?:here|now)"
    "|you won.t believe|secret|shocking|best deal|cheap|discount|near (?:me|you)|buy now|order now|watch (?:online|free)"
    "|full (?:hd|movie)|limited time"
)
LURE_CJK = re.compile(
    "热线|咨询|24小时|点击|免费|秘密|揭秘|惊人|震惊|必看|高清|在线观看|最新|福利|真相|优惠|报修|维修|上门|服务(?:电话|中心)"
    "|官方|领取|立即|限时"
)
PHONE = re.compile(
    r"\+?\(?\d{3,4}\)?[-– .]\d{3,4}[-– .]?\d{3,4}|\b1-?8\d\d-|\b[48]00[-– ]?\d{3,4}|[:：]{1,2}\s?\d{5,}|\d{5,}\s?[(（]"
)
_PLACES = re.compile(r"[\u4e00-\u9fff]{1,14}?(?:省|市|区|县|州|旗|镇|乡|盟|街道)(?=[、，,;；|\s]|$)")
_NAME_LIST = re.compile(r"(?:^|[,;|·•/])\s*[A-Z][\w.'’-]*(?:\s+(?:of|de|on|upon|[A-Z(][\w.'’)-]*)){0,3}\s*(?=[,;|·•/]|$)")


def place_share(text: str) -> float:
    """Share of characters in a list of Chinese place names."""
    if "、" not in text and "，" not in text and "," not in text and len(text) > 12:
        return 0.0
    return sum(map(len, _PLACES.findall(text))) / len(text)


def name_list_share(text: str) -> float:
    """Share of characters in a list of capitalised names."""
    if sum(map(text.count, ",;|·•/")) < 4:
        return 0.0
    return sum(map(len, _NAME_LIST.findall(text))) / len(text)


def _lures(line: str) -> int:
    return len(LURE.findall(line.lower())) + len(LURE_CJK.findall(line))


def is_spam(line: str) -> bool:
    """Two signs of a shell in one short line, or a line that is mostly place names."""
    if place_share(line) > 0.6 or name_list_share(line) > 0.8:
        return len(line) > 20
    return len(line) <= 400 and _lures(line) + 2 * len(PHONE.findall(line)) >= 3


def spam_share(lines: Sequence[str]) -> float:
    """Share of characters in spam lines."""
    total = sum(map(len, lines))
    return sum(len(line) for line in lines if is_spam(line)) / total if total else 0.0
