"""What may be published: the licences of what a model was made from, and what they ask of it together.

The strictest obligation wins, and a licence that nobody states is never taken for a permissive one. This is a careful
reading and no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Duty = Literal["credit", "share-alike", "non-commercial", "no-derivatives", "restricted use", "own terms", "unknown"]

DUTIES: dict[Duty, str] = {
    "credit": "name who made it",
    "share-alike": "what is made from it goes under the same licence",
    "non-commercial": "no commercial use",
    "no-derivatives": "what is made from it is not published",
    "restricted use": "its list of forbidden uses is passed on",
    "own terms": "its own agreement is passed on, with its notices and its rules for names",
    "unknown": "nobody says what is allowed",
}


@dataclass(frozen=True)
class Terms:
    """What a licence asks of what is made from the work, and where that can be read."""

    duties: frozenset[Duty]
    source: str
    becomes: tuple[str, ...] = ()
    """Of those that share alike: other licences that what is made from it may go under."""


@dataclass(frozen=True)
class Stated:
    """The licence of a part (`base`, `data`, `teacher`): which work it is, and where that is stated."""

    part: str
    work: str
    licence: str
    source: str

    def __str__(self) -> str:
        return f"the {self.part} {self.work} is under {_title(self.licence)} ({self.source})"


@dataclass(frozen=True)
class Ruling:
    """The licence of a model, what it asks of those who use it, and why it may not be public, where it may not."""

    licence: str
    name: str
    duties: tuple[Duty, ...]
    obstacles: tuple[str, ...]


def rule(parts: Sequence[Stated]) -> Ruling:
    """What the licences of a model's parts ask of it together.

    A share-alike licence is kept or becomes one that it allows, and nothing may be added to it; other licences with
    duties beyond credit stand side by side; where there is none, the base's stays.
    """
    known = [(part, LICENCES[part.licence]) for part in parts]
    obstacles = [f"{part}: {DUTIES[duty]}" for part, one in known for duty in _CLOSED if duty in one.duties]
    duties: set[Duty] = set().union(*(one.duties for _, one in known))
    alike = [(part, one) for part, one in known if "share-alike" in one.duties]
    strict = list(dict.fromkeys(part.licence for part, one in known if one.duties - {"credit"}))
    chosen = strict or [max(parts, key=lambda part: len(LICENCES[part.licence].duties)).licence]
    if alike and "unknown" not in duties:
        fitting = [
            name
            for name in dict.fromkeys(name for part, one in alike for name in (part.licence, *one.becomes))
            if all(name in (part.licence, *one.becomes) for part, one in alike)
            and duties - {"credit"} <= LICENCES[name].duties
        ]
        if fitting:
            chosen = fitting[:1]
        else:
            words = " and ".join(_title(name) for name in strict)
            obstacles.append(f"{words} cannot both be kept: {_title(alike[0][0].licence)} lets nothing be added to it")
    ordered: tuple[Duty, ...] = tuple(duty for duty in DUTIES if duty in duties)
    is_one = len(chosen) == 1 and chosen[0] not in _NOT_OF_THE_HUB
    name = " AND ".join(chosen)
    return Ruling(chosen[0] if is_one else "other", name, ordered, tuple(dict.fromkeys(obstacles)))


_CLOSED: tuple[Duty, ...] = ("no-derivatives", "unknown")
_NOT_OF_THE_HUB = ("own", "unknown")


def identified(text: str | None) -> str:
    """The entry of `LICENCES` that a licence is, however it is written; "unknown" where it is none of them."""
    if not text:
        return "unknown"
    plain = re.sub(r"[\s_]+", "-", text.strip().lower().removeprefix("license ::").rpartition("::")[2].strip())
    plain = re.sub(r"^the-|-?\(.*\)$", "", plain).replace("licence", "license")
    for name in (plain, re.sub(r"-?(public-)?license(-|$)|-?(international|software)", "", plain).strip("-")):
        found = _ALIASES.get(name, name)
        if found in LICENCES:
            return found
    return "unknown"


def _title(licence: str) -> str:
    return {"unknown": "a licence that nobody states", "own": "the publisher's own terms"}.get(licence, licence)


_ALIASES = {
    "apache-2": "apache-2.0", "apache": "apache-2.0", "apache-version-2.0": "apache-2.0", "asl-2.0": "apache-2.0",
    "apache-license-2.0": "apache-2.0", "apache-license,-version-2.0": "apache-2.0", "bsd": "bsd-3-clause",
    "expat": "mit", "cc0": "cc0-1.0", "cc-by": "cc-by-4.0", "gplv3": "gpl-3.0", "gpl-3.0-only": "gpl-3.0",
    "gpl-3.0-or-later": "gpl-3.0", "gpl-2.0-only": "gpl-2.0", "agpl-3.0-only": "agpl-3.0",
    "agpl-3.0-or-later": "agpl-3.0", "lgpl-3.0-only": "lgpl-3.0", "lgpl-3.0-or-later": "lgpl-3.0",
    "mozilla-2.0-(mpl-2.0)": "mpl-2.0", "mozilla-2.0": "mpl-2.0", "odc-by-1.0": "odc-by", "odbl-1.0": "odbl",
}  # fmt: skip

_CC = "https://creativecommons.org/licenses/"
_SPDX = "https://spdx.org/licenses/"
_LLAMA = "https://www.llama.com/"


def _of(source: str, *duties: Duty, becomes: tuple[str, ...] = ()) -> Terms:
    return Terms(frozenset(duties), source, becomes)


LICENCES: dict[str, Terms] = {
    "own": _of("what the publisher says of works of their own"),
    "cc0-1.0": _of("https://creativecommons.org/publicdomain/zero/1.0/"),
    "pddl": _of(f"{_SPDX}PDDL-1.0.html"),
    "unlicense": _of(f"{_SPDX}Unlicense.html"),
    "wtfpl": _of(f"{_SPDX}WTFPL.html"),
    "cdla-permissive-2.0": _of(f"{_SPDX}CDLA-Permissive-2.0.html"),
    "mit": _of(f"{_SPDX}MIT.html", "credit"),
    "isc": _of(f"{_SPDX}ISC.html", "credit"),
    "apache-2.0": _of(f"{_SPDX}Apache-2.0.html", "credit"),
    "bsd-2-clause": _of(f"{_SPDX}BSD-2-Clause.html", "credit"),
    "bsd-3-clause": _of(f"{_SPDX}BSD-3-Clause.html", "credit"),
    "zlib": _of(f"{_SPDX}Zlib.html", "credit"),
    "afl-3.0": _of(f"{_SPDX}AFL-3.0.html", "credit"),
    "odc-by": _of(f"{_SPDX}ODC-By-1.0.html", "credit"),
    "etalab-2.0": _of(f"{_SPDX}etalab-2.0.html", "credit"),
    "cc-by-2.0": _of(f"{_CC}by/2.0/", "credit"),
    "cc-by-3.0": _of(f"{_CC}by/3.0/", "credit"),
    "cc-by-4.0": _of(f"{_CC}by/4.0/", "credit"),
    "cc-by-sa-3.0": _of(f"{_CC}by-sa/3.0/", "credit", "share-alike", becomes=("cc-by-sa-4.0",)),
    "cc-by-sa-4.0": _of(f"{_CC}by-sa/4.0/", "credit", "share-alike", becomes=("gpl-3.0",)),
    "cc-by-nc-2.0": _of(f"{_CC}by-nc/2.0/", "credit", "non-commercial"),
    "cc-by-nc-3.0": _of(f"{_CC}by-nc/3.0/", "credit", "non-commercial"),
    "cc-by-nc-4.0": _of(f"{_CC}by-nc/4.0/", "credit", "non-commercial"),
    "cc-by-nc-sa-3.0": _of(
        f"{_CC}by-nc-sa/3.0/", "credit", "non-commercial", "share-alike", becomes=("cc-by-nc-sa-4.0",)
    ),
    "cc-by-nc-sa-4.0": _of(f"{_CC}by-nc-sa/4.0/", "credit", "non-commercial", "share-alike"),
    "cc-by-nd-4.0": _of(f"{_CC}by-nd/4.0/", "credit", "no-derivatives"),
    "cc-by-nc-nd-3.0": _of(f"{_CC}by-nc-nd/3.0/", "credit", "non-commercial", "no-derivatives"),
    "cc-by-nc-nd-4.0": _of(f"{_CC}by-nc-nd/4.0/", "credit", "non-commercial", "no-derivatives"),
    "odbl": _of(f"{_SPDX}ODbL-1.0.html", "credit", "share-alike"),
    "cdla-sharing-1.0": _of(f"{_SPDX}CDLA-Sharing-1.0.html", "credit", "share-alike"),
    "mpl-2.0": _of(f"{_SPDX}MPL-2.0.html", "credit", "share-alike", becomes=("gpl-3.0", "agpl-3.0", "lgpl-3.0")),
    "lgpl-3.0": _of(f"{_SPDX}LGPL-3.0-only.html", "credit", "share-alike", becomes=("gpl-3.0",)),
    "gpl-2.0": _of(f"{_SPDX}GPL-2.0-only.html", "credit", "share-alike"),
    "gpl-3.0": _of(f"{_SPDX}GPL-3.0-only.html", "credit", "share-alike", becomes=("agpl-3.0",)),
    "agpl-3.0": _of(f"{_SPDX}AGPL-3.0-only.html", "credit", "share-alike"),
    "openrail": _of("https://huggingface.co/blog/open_rail", "credit", "restricted use"),
    "openrail++": _of(
        "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
        "credit",
        "restricted use",
    ),
    "creativeml-openrail-m": _of(
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license", "credit", "restricted use"
    ),
    "bigscience-openrail-m": _of(
        "https://www.licenses.ai/blog/2022/8/26/bigscience-open-rail-m-license", "credit", "restricted use"
    ),
    "bigscience-bloom-rail-1.0": _of("https://huggingface.co/spaces/bigscience/license", "credit", "restricted use"),
    "bigcode-openrail-m": _of(
        "https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement", "credit", "restricted use"
    ),
    "llama2": _of(f"{_LLAMA}llama2/license/", "credit", "restricted use", "own terms"),
    "llama3": _of(f"{_LLAMA}llama3/license/", "credit", "restricted use", "own terms"),
    "llama3.1": _of(f"{_LLAMA}llama3_1/license/", "credit", "restricted use", "own terms"),
    "llama3.2": _of(f"{_LLAMA}llama3_2/license/", "credit", "restricted use", "own terms"),
    "llama3.3": _of(f"{_LLAMA}llama3_3/license/", "credit", "restricted use", "own terms"),
    "gemma": _of("https://ai.google.dev/gemma/terms", "credit", "restricted use", "own terms"),
    "unknown": _of("no statement was found", "unknown"),
}
"""By their names on the Hub (https://huggingface.co/docs/hub/repositories-licenses), and "own" for one's own works."""
