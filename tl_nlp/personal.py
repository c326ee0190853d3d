"""Personal data in texts: what looks like it by its pattern and, where it has one, by its check digits."""

from __future__ import annotations

import re
from collections.abc import Callable

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
_CARD = re.compile(r"\b(?:\d[ -]?){12,18}\d\b")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_SSN = re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b")


def _is_card(text: str) -> bool:
    """Luhn's check digit (ISO/IEC 7812)."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """The check digits of ISO 13616."""
    letters = text.replace(" ", "")
    return int("".join(str(int(letter, 36)) for letter in letters[4:] + letters[:4])) % 97 == 1


_PATTERNS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "e-mail address": (_EMAIL, lambda text: True),
    "bank account": (_IBAN, _is_iban),
    "card number": (_CARD, _is_card),
    "social security number": (_SSN, lambda text: True),
}


def personal_data(text: str) -> list[tuple[str, int, int]]:
    """What looks like personal data: its kind, and where it begins and ends."""
    found: list[tuple[str, int, int]] = []

    def add(kind: str, start: int, end: int) -> None:
        if not any(one < end and start < other for _, one, other in found):
            found.append((kind, start, end))

    for kind, (pattern, is_one) in _PATTERNS.items():
        for match in pattern.finditer(text):
            if is_one(match.group()):
                add(kind, match.start(), match.end())
    if sum(letter.isdigit() for letter in text) >= 7:
        from phonenumbers import PhoneNumberMatcher

        for number in PhoneNumberMatcher(text, "US"):  # numbers of other countries are known by their +
            add("phone number", number.start, number.end)
    return sorted(found, key=lambda one: one[1])


def masked(text: str) -> str:
    """The text with each piece of personal data replaced by its kind: [e-mail address]."""
    for kind, start, end in reversed(personal_data(text)):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    return text
