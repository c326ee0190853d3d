"""What licences ask of a model together: every pair, and known answers for those that matter."""

import pytest

from tl_nlp.licences import DUTIES, LICENCES, Stated, identified, rule

PERMISSIVE = ("own", "cc0-1.0", "mit", "apache-2.0", "cc-by-4.0")


def ruled(base: str, data: str, model: str | None = None):
    parts = [Stated("base", "a/base", base, "its card"), Stated("data", "a/data", data, "its card")]
    return rule([Stated("model", "mine", model, "me"), *parts] if model else parts)


@pytest.mark.parametrize("base", LICENCES)
def test_no_pair_loses_a_duty(base: str) -> None:
    """The strictest wins: what either asks is asked, and what is public keeps a share-alike licence to the letter."""
    for data in LICENCES:
        ruling, other = ruled(base, data), ruled(data, base)
        asked = LICENCES[base].duties | LICENCES[data].duties
        assert set(ruling.duties) == asked == set(other.duties)
        assert bool(ruling.obstacles) == bool(other.obstacles)
        if asked & {"unknown", "no-derivatives"}:
            assert ruling.obstacles
        if ruling.obstacles:
            continue
        named = set(ruling.name.split(" AND "))
        assert asked - {"credit"} <= set().union(*(LICENCES[name].duties for name in named))
        assert ruling.licence in (*LICENCES, "other")
        for one, theirs in ((base, data), (data, base)):
            if "share-alike" in LICENCES[one].duties:
                assert ruling.licence in (one, *LICENCES[one].becomes)
                assert LICENCES[theirs].duties - {"credit"} <= LICENCES[ruling.licence].duties


@pytest.mark.parametrize(
    ("base", "data", "licence"),
    [
        ("apache-2.0", "mit", "apache-2.0"),
        ("mit", "apache-2.0", "mit"),
        ("cc0-1.0", "cc-by-4.0", "cc-by-4.0"),
        ("apache-2.0", "own", "apache-2.0"),
        ("own", "own", "other"),
        ("apache-2.0", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("apache-2.0", "cc-by-sa-3.0", "cc-by-sa-3.0"),
        ("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-sa-4.0"),
        ("cc-by-sa-4.0", "gpl-3.0", "gpl-3.0"),
        ("gpl-3.0", "agpl-3.0", "agpl-3.0"),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"),
        ("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"),
        ("bigscience-openrail-m", "mit", "bigscience-openrail-m"),
        ("llama3.1", "cc-by-4.0", "llama3.1"),
        ("gemma", "cc-by-nc-4.0", "other"),
        ("llama2", "bigcode-openrail-m", "other"),
    ],
)
def test_what_a_public_model_is_under(base: str, data: str, licence: str) -> None:
    ruling = ruled(base, data)
    assert not ruling.obstacles
    assert ruling.licence == licence


@pytest.mark.parametrize(
    ("base", "data", "why"),
    [
        ("apache-2.0", "unknown", "nobody says what is allowed"),
        ("unknown", "own", "the base a/base is under a licence that nobody states"),
        ("apache-2.0", "cc-by-nd-4.0", "what is made from it is not published"),
        ("cc-by-nc-nd-4.0", "mit", "what is made from it is not published"),
        ("cc-by-sa-4.0", "cc-by-nc-4.0", "lets nothing be added to it"),
        ("gpl-2.0", "gpl-3.0", "cannot both be kept"),
        ("cc-by-sa-4.0", "gemma", "lets nothing be added to it"),
        ("cc-by-nc-sa-4.0", "cc-by-sa-4.0", "cannot both be kept"),
        ("openrail", "odbl", "lets nothing be added to it"),
    ],
)
def test_what_stays_private(base: str, data: str, why: str) -> None:
    assert why in " ".join(ruled(base, data).obstacles)


def test_the_publisher_may_be_stricter_and_not_laxer() -> None:
    assert ruled("apache-2.0", "mit", "cc-by-4.0").licence == "cc-by-4.0"
    assert ruled("apache-2.0", "mit", "cc-by-nc-4.0").licence == "cc-by-nc-4.0"
    assert ruled("cc-by-nc-4.0", "own", "mit").licence == "cc-by-nc-4.0"
    assert ruled("mit", "unknown", "mit").obstacles


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("Apache 2.0", "apache-2.0"),
        ("Apache License 2.0", "apache-2.0"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("License :: OSI Approved :: Apache Software License", "apache-2.0"),
        ("MIT License", "mit"),
        ("The MIT License", "mit"),
        ("License :: OSI Approved :: MIT License", "mit"),
        ("CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0"),
        ("BSD-3-Clause", "bsd-3-clause"),
        ("GPL-3.0-or-later", "gpl-3.0"),
        ("llama3.2", "llama3.2"),
        ("other", "unknown"),
        ("Proprietary", "unknown"),
        ("License :: Other/Proprietary License", "unknown"),
        ("MIT-like, but ask me", "unknown"),
        ("cc", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_licences_are_known_however_they_are_written(text: str | None, licence: str) -> None:
    """And what is not plainly one of them is none: no guess."""
    assert identified(text) == licence


def test_every_licence_says_where_it_can_be_read() -> None:
    for name, terms in LICENCES.items():
        assert terms.source.startswith("https://") or name in ("own", "unknown")
        assert terms.duties <= set(DUTIES)
        assert not terms.becomes or "share-alike" in terms.duties
        assert identified(name) == name
