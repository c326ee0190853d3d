"""What a summary says that its source does not: numbers, dates, names and addresses, told by their form alone.

Rules, no model: what is invented in plain words is not seen. Coverage and density are those of Grusky et al. 2018
(https://arxiv.org/abs/1804.11283, section 3).
"""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

Kind = Literal["number", "date", "name", "address"]


@dataclass(frozen=True)
class Fact:
    """A piece of a text that is true or false of its source: where it is, and its parts, each in all its spellings."""

    kind: Kind
    start: int
    end: int
    parts: tuple[frozenset[str], ...]


def facts(text: str) -> list[Fact]:
    """The numbers, dates, names and addresses of a text, in its order."""
    found: list[Fact] = []
    taken = [False] * len(text)
    for kind, pattern, parts_of in _FORMS:
        for match in pattern.finditer(text):
            if any(taken[match.start() : match.end()]):
                continue
            if parts := parts_of(match):
                found.append(Fact(kind, match.start(), match.end(), tuple(frozenset(part) for part in parts)))
                taken[match.start() : match.end()] = [True] * (match.end() - match.start())
    found += [fact for fact in _names(text) if not any(taken[fact.start : fact.end])]
    return sorted(found, key=lambda fact: fact.start)


def invented(summary: str, source: str) -> list[Fact]:
    """The facts of a summary that its source does not have, in any spelling that is known here."""
    claimed = facts(summary)
    there = _spellings(source) if claimed else frozenset()
    return [fact for fact in claimed if any(part.isdisjoint(there) for part in fact.parts)]


@lru_cache(maxsize=4096)  # a text is asked about once for each model that is scored
def _spellings(source: str) -> frozenset[str]:
    """Everything that a claim may be found by."""
    there = {spelling for fact in facts(source) for part in fact.parts for spelling in part}
    return frozenset(there | {_stem(word) for word in _WORD.findall(source)} | _initials(source))


# ---- numbers and dates


_UP_TO_19 = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_UP_TO_90 = "twenty thirty forty fifty sixty seventy eighty ninety"
_YEAR = "january february march april may june july august september october november december"
_WEEK = "monday tuesday wednesday thursday friday saturday sunday"
_SMALL = {word: value for value, word in enumerate(_UP_TO_19.split())}
_TENS = {word: 10 * value for value, word in enumerate(_UP_TO_90.split(), 2)}
_POWERS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT = {"k": 1000, "m": 10**6, "mn": 10**6, "bn": 10**9, "b": 10**9}
_MONTHS, _DAYS = _YEAR.split(), _WEEK.split()

_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_ISO = re.compile(r"\b(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})\b|\b(\d{1,2})[-/.](\d{1,2})[-/.](\d{4}|\d{2})\b")
_NUMBER = re.compile(
    rf"(?<![\w.])(?:[$€£#]\s?)?({_DIGITS})(?:(st|nd|rd|th)|\s?({'|'.join(_POWERS)})|({'|'.join(_SHORT)}))?(?![\w])",
    re.IGNORECASE,
)
_IN_WORDS = re.compile(
    rf"\b(?:{'|'.join([*list(_SMALL)[2:], *_TENS])})"  # zero and one are words like others
    rf"(?:(?:(?<=hundred) and)?[ -](?:{'|'.join([*_SMALL, *_TENS, *_POWERS])}))*\b",
    re.IGNORECASE,
)
_CALENDAR = re.compile(
    rf"\b({'|'.join(f'{name}|{name[:3]}' for name in (*_MONTHS, *_DAYS))}|sept|tues|thur|thurs)\b", re.IGNORECASE
)
_VERSIONED = re.compile(r"\b[A-Z]\w*-\d+(?:\.\d+)?\b")
_ADDRESS = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\b(?:https?://|www\.)[^\s<>\"')]+")


def _told(value: float) -> str:
    return f"{value:.10g}"


def _number(match: re.Match[str]) -> list[set[str]]:
    digits, _, power, short = match.groups()
    value = float(digits.replace(",", ""))
    if power or short:
        value *= _POWERS[power.lower()] if power else _SHORT[short.lower()]
    return [{_told(value)}]


def _in_words(match: re.Match[str]) -> list[set[str]]:
    """The value of a number in words: "two hundred and five" is 205."""
    total, part = 0, 0
    for word in re.split("[ -]", match[0].lower()):
        if word in _POWERS and _POWERS[word] > 100:
            total, part = total + max(part, 1) * _POWERS[word], 0
        elif word == "hundred":
            part = max(part, 1) * 100
        elif word != "and":
            part += (_SMALL | _TENS)[word]
    return [{_told(total + part)}]


def _iso(match: re.Match[str]) -> list[set[str]]:
    """The year, and month and day in either order."""
    year = int(match[1] or match[6])
    others = [int(part) for part in (match[2], match[3], match[4], match[5]) if part]
    years = {str(year), str(year % 100), *(f"{century}{year:02}" for century in (19, 20) if year < 100)}
    return [years, *({str(one), *_month(one)} for one in others)]


def _month(number: int) -> set[str]:
    return {_MONTHS[number - 1][:3]} if 1 <= number <= 12 else set()


def _calendar(match: re.Match[str]) -> list[set[str]]:
    name = match[1]
    return [] if name.lower() in _ALSO_WORDS and not name[0].isupper() else [{name[:3].lower()}]


_ALSO_WORDS = frozenset(["may", "march", "mar", "sat", "sun", "wed", "dec", "jan", "mon"])


def _versioned(match: re.Match[str]) -> list[set[str]]:
    """A name with its number, with a hyphen or without."""
    return [{match[0].lower(), match[0].lower().replace("-", "")}]


_FORMS: tuple[tuple[Kind, re.Pattern[str], Any], ...] = (
    ("address", _ADDRESS, lambda match: [{match[0].lower().rstrip(".,;")}]),
    ("name", _VERSIONED, _versioned),
    ("date", _ISO, _iso),
    ("number", _NUMBER, _number),
    ("number", _IN_WORDS, _in_words),
    ("date", _CALENDAR, _calendar),
)


# ---- names


_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_SENTENCE = re.compile(r"[.!?:;]['\")\]]*\s+|\n+|^\s*")


def _names(text: str) -> list[Fact]:
    """Words that are spelt as names are. At the start of a sentence, and where most words are capitalised (a title), a
    capital says nothing: there those are names that no dictionary has."""
    words = list(_WORD.finditer(text))
    begins = [match.end() for match in _SENTENCE.finditer(text)]  # sentences, in their order
    long = [match[0] for match in words if len(match[0]) > 3]
    is_title = len(long) > 1 and sum(word[0].isupper() for word in long) > 0.6 * len(long)
    found = []
    for match in words:
        word = match[0]
        if not _is_spelt_as_name(word):
            continue
        is_plain = word[1:] == word[1:].lower() and not any(letter.isdigit() for letter in word)
        begun = begins[bisect.bisect_right(begins, match.start()) - 1]
        starts = not text[begun : match.start()].strip("\"'“([*-")
        if is_plain and (starts or is_title) and _is_common(word):
            continue
        if word.lower() in _NO_NAMES:
            continue
        found.append(Fact("name", match.start(), match.end(), (frozenset({_stem(word)}),)))
    return found


def _is_spelt_as_name(word: str) -> bool:
    """A capital somewhere, or letters and digits together; a capital alone is an initial or a label."""
    has_letter = any(letter.isalpha() for letter in word)
    return len(word) > 1 and has_letter and (any(letter.isupper() for letter in word) or any(map(str.isdigit, word)))


_NOT_NAMES = "i i'm i'll i've i'd re fw fwd ok am pm mr mrs ms dr st"
_NO_NAMES = frozenset(_NOT_NAMES.split())


def _stem(word: str) -> str:
    """A word without case, possessive and plural."""
    word = re.sub(r"['\u2019]s?$", "", word.lower())
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _initials(text: str) -> set[str]:
    """What two to six words in a row may be shortened to, whatever their case: "United Nations" to "un"."""
    found: set[str] = set()
    for run in re.findall(r"\b[^\W\d_][\w-]*(?:\s+(?:of|and|for|the|in)?\s*[^\W\d_][\w-]*)+", text):
        letters = "".join(part[0] for word in run.split() for part in word.split("-") if part)
        for start in range(len(letters)):
            found.update(
                _stem(letters[start:end].lower()) for end in range(start + 2, min(start + 6, len(letters)) + 1)
            )
    return found


@lru_cache(maxsize=100_000)
def _is_common(word: str) -> bool:
    return word.lower() in _dictionary()


@lru_cache
def _dictionary() -> Any:
    from spellchecker import SpellChecker

    return SpellChecker("en").word_frequency


# ---- how much is the source's own


def words_of(text: str) -> list[str]:
    """Words and numbers without case, as ROUGE counts them."""
    return [word.lower() for word in _WORD.findall(text)]


def fragments(summary: list[str], source: list[str]) -> list[int]:
    """The lengths of the pieces of the source that a summary is made of, the longest taken first from its start on."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, word in enumerate(source):
        places[word].append(place)
    found, at = [], 0
    while at < len(summary):
        longest = 0
        for place in places.get(summary[at], ()):
            length = 1
            while (
                at + length < len(summary)
                and place + length < len(source)
                and summary[at + length] == source[place + length]
            ):
                length += 1
            longest = max(longest, length)
        if longest:
            found.append(longest)
        at += max(longest, 1)
    return found


def novel(summary: list[str], source: list[str], n_words: int) -> tuple[int, int]:
    """How many of a summary's sequences of `n_words` words the source does not have, and how many there are."""
    theirs = set(sequences(source, n_words))
    ours = sequences(summary, n_words)
    return sum(one not in theirs for one in ours), len(ours)


def repeated(summary: list[str], n_words: int = 3) -> tuple[int, int]:
    """How many of a summary's sequences of `n_words` words it had before, and how many there are."""
    ours = sequences(summary, n_words)
    return len(ours) - len(set(ours)), len(ours)


def sequences(words: list[str], n_words: int) -> list[tuple[str, ...]]:
    """All runs of `n_words` words."""
    return [tuple(words[at : at + n_words]) for at in range(len(words) - n_words + 1)]
