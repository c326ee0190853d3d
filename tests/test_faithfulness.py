"""What summaries invent: numbers, dates and names planted into human summaries of papers, and each spelling alone."""

import json
import random
import re

import pytest

from tl_nlp.errors import DataError
from tl_nlp.faithfulness import facts, fragments, invented, novel, repeated, words_of
from tl_nlp.packages import package_folder
from tl_nlp.scoring import TextMetrics

SOURCE = (
    "On March 5, 2024, John Smith of the United Nations paid $1,200 to users of GPT-4; two hundred and five people "
    "came, or 12.5 % of all. See http://example.org/a or write to ann@example.org."
)


def said(summary: str, source: str = SOURCE) -> list[str]:
    return [summary[fact.start : fact.end] for fact in invented(summary, source)]


@pytest.mark.parametrize(
    "summary",
    [
        "Smith paid 1200 dollars on 5 March 2024.",
        "It was on 2024-03-05, or 3/5/24, or 05.03.2024.",
        "He gave 1.2k, $1,200.00, 1.2 thousand.",
        "205 came; Two hundred five.",
        "The UN and GPT4 are the United Nations' and GPT-4's.",
        "12.5% came. See http://example.org/a, ask ANN@example.org.",
        "Nothing here is named, and everything may march on.",
        "I was there, and we came for one thing.",
    ],
)
def test_another_spelling_is_not_invented(summary: str) -> None:
    assert said(summary) == []


@pytest.mark.parametrize(
    ("summary", "found"),
    [
        ("Smith paid 1,300 dollars.", ["1,300"]),
        ("It was on March 6.", ["6"]),
        ("It was in April.", ["April"]),
        ("It was on 2024-03-06.", ["2024-03-06"]),
        ("We saw that Jones paid.", ["Jones"]),
        ("We saw that BERTScore pays.", ["BERTScore"]),
        ("It was GPT-5.", ["GPT-5"]),
        ("Three hundred came.", ["Three hundred"]),
        ("The EU paid.", ["EU"]),
        ("Write to bob@example.org.", ["bob@example.org"]),
        ("It cost 2.5 million.", ["2.5 million"]),
    ],
)
def test_what_the_source_does_not_have_is_found_where_it_stands(summary: str, found: list[str]) -> None:
    assert said(summary) == found


def human_summaries() -> list[tuple[str, str]]:
    """One-sentence summaries by people, and the papers that they are of."""
    folder = package_folder("aclsum", DataError) / "dataset"
    pairs = []
    for line in (folder / "train.jsonl").read_text("utf-8").splitlines():
        paper = json.loads(line)
        source = " ".join(one for part in paper["sentences"].values() for one in part)
        pairs += [(summary, source) for summary in paper["summary"].values()]
    return pairs


def test_planted_numbers_and_names_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    """In each summary with a fact one is replaced by another of its kind that the paper does not have."""
    draw = random.Random(0)
    planted = {
        "number": ["37", "4,812", "61.9", "seventeen", "1893"],
        "name": ["Garrick", "QZNet", "Voltaire-2", "XLKR"],
    }
    n_planted = n_found = n_flagged = n_clean = n_false = 0
    for summary, source in human_summaries():
        n_clean += 1
        n_false += bool(invented(summary, source))
        replaceable = [fact for fact in facts(summary) if fact.kind in planted]
        if not replaceable:
            continue
        fact = draw.choice(replaceable)
        other = draw.choice([one for one in planted[fact.kind] if one.lower() not in source.lower()])
        changed = summary[: fact.start] + other + summary[fact.end :]
        place = (fact.start, fact.start + len(other))
        flagged = [(one.start, one.end) for one in invented(changed, source)]
        n_planted += 1
        n_found += any(start < place[1] and place[0] < end for start, end in flagged)
        n_flagged += len(flagged)
    recall, precision = n_found / n_planted, n_found / n_flagged
    with capsys.disabled():
        print(
            f"\nplanted {n_planted}: recall {recall:.3f}, precision {precision:.3f}; "
            f"{n_false} of {n_clean} summaries by people flagged"
        )
    assert n_planted >= 100
    assert recall > 0.95
    assert precision > 0.9
    assert n_false / n_clean < 0.05


def test_coverage_and_density_by_hand() -> None:
    """Grusky et al. 2018: pieces of 3, 1 and 2 words."""
    source = words_of("the quick brown fox jumps over the lazy dog")
    summary = words_of("quick brown fox chased the one lazy dog")
    lengths = fragments(summary, source)
    assert lengths == [3, 1, 2]
    metrics = TextMetrics().compute(
        predictions=["quick brown fox chased the one lazy dog", ""],
        references=[["a fox"], ["a fox"]],
        sources=["the quick brown fox jumps over the lazy dog", "words"],
    )
    assert metrics["coverage"] == pytest.approx((6 / 8 + 0) / 2)
    assert metrics["density"] == pytest.approx(((9 + 1 + 4) / 8 + 0) / 2)
    assert metrics["compression"] == pytest.approx((9 / 8 + 1) / 2)
    assert metrics["novel_bigrams"] == pytest.approx((4 / 7 + 0) / 2)


def test_novel_and_repeated_sequences() -> None:
    words = re.findall(r"\w+", "a b c a b c a b")
    assert repeated(words) == (3, 6)
    assert novel(words, ["a", "b", "c"], 2) == (2, 7)
    assert novel([], ["a"], 2) == (0, 0)
