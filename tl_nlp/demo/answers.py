"""Predictions as HTML: every kind of answer as a person reads it. All text is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from tl_nlp import charts
from tl_nlp.recipe import Task
from tl_nlp.serving import Row
from tl_nlp.types import Label, Labels, Prediction, Scores, Text, pieces

_MOST_BARS = 12


def shown(task: Task, prediction: Prediction, row: Row, sure_from: float = 0.0) -> str:
    """The answer; a label below the probability `sure_from` is called unsure."""
    if isinstance(prediction, Label):
        told = _label(prediction, sure_from)
    elif isinstance(prediction, Labels):
        told = _labels(task, prediction)
    elif isinstance(prediction, Scores):
        told = _scores(task, prediction, row.group or "")
    elif prediction.sentences is not None:
        told = _picked(task, prediction, row.text)
    else:
        told = _written(prediction)
    return f'<div class="tl-answer" role="status">{told}</div>'


def nothing_yet(text: str) -> str:
    """What stands in the place of an answer before there is one."""
    return f'<div class="tl-answer"><p class="tl-note">{escape(text)}</p></div>'


def marked(parts: Iterable[tuple[str, str | None]], told: str) -> str:
    """A text in pieces, some with a class of marks; `told` says aloud what a mark means."""
    return "".join(
        escape(text) if kind is None else f'<mark class="{kind}" title="{escape(told)}">{escape(text)}</mark>'
        for text, kind in parts
    ).replace("\n", "<br>")


def table(headers: list[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in headers)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    # what scrolls sideways on a phone must be in reach of the keyboard
    return (
        f'<div class="tl-table" tabindex="0" role="region" aria-label="{escape(headers[0])}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _label(prediction: Label, sure_from: float) -> str:
    best = prediction.probabilities[prediction.label]
    unsure = ""
    if best < sure_from:
        unsure = f'<p class="tl-warning">Not sure: no label reaches {sure_from:.0%}.</p>'
    bars = _bars(prediction.probabilities, dict.fromkeys(prediction.probabilities, sure_from))
    return f'<p class="tl-headline" data-testid="label">{escape(prediction.label)}</p>{unsure}{bars}'


def _labels(task: Any, prediction: Labels) -> str:
    given = ", ".join(prediction.labels) or "none"
    ticks = {name: task.threshold_of(name) for name in prediction.probabilities}
    bars = _bars(prediction.probabilities, ticks)
    note = '<p class="tl-note">A label is given from the mark on its bar on.</p>'
    return f'<p class="tl-headline" data-testid="labels">{escape(given)}</p>{bars}{note}'


def _bars(probabilities: dict[str, float], ticks: dict[str, float]) -> str:
    shares = sorted(probabilities.items(), key=lambda one: -one[1])
    bars = []
    for name, share in shares[:_MOST_BARS]:
        tick = f'<span class="tl-tick" style="left:{100 * ticks[name]:.1f}%"></span>' if ticks[name] else ""
        bars.append(
            f'<div class="tl-bar"><span>{escape(name)}</span><span class="tl-track">'
            f'<span class="tl-fill" style="width:{100 * share:.1f}%"></span>{tick}</span>'
            f'<span class="tl-share">{share:.1%}</span></div>'
        )
    if len(shares) > _MOST_BARS:
        bars.append(f'<p class="tl-note">and {len(shares) - _MOST_BARS} more below {shares[_MOST_BARS][1]:.1%}</p>')
    return "".join(bars)


def _scores(task: Any, prediction: Scores, group: str) -> str:
    grades, margins = prediction.grades or {}, prediction.margins or {}
    told = ['<p class="tl-warning">A teacher should read this one.</p>'] if prediction.unsure else []
    if len(grades) == 1:
        (grade,) = grades.values()
        told.append(f'<p class="tl-headline" data-testid="grade">{grade:g}</p>')
    rows = [
        [escape(trait), f"{grades[trait]:g}" if trait in grades else "", f"{score:.2f}",
         f"± {margins[trait]:.2f}" if trait in margins else "not known"]
        for trait, score in prediction.scores.items()
    ]  # fmt: skip
    told.append(table(["trait", "grade", "score", "95 of 100 are within"], rows))
    for trait, grade in grades.items():
        if (standing := task.standing(trait, grade, group)) is None:
            continue
        name = f"{trait}: " if len(grades) > 1 else ""
        of_group = f" of {group}" if group else ""
        told.append(
            f"<p>{escape(name)}{standing.lower:.0%} of the {standing.n_grades:,} graded texts{escape(of_group)} "
            f"have a lower grade, {standing.same:.0%} the same.</p>"
        )
        told.append(charts.bars(standing.names, standing.counts, standing.place, f"{name}grade"))
    return "".join(told)


def _picked(task: Any, prediction: Text, text: str) -> str:
    chosen = set(prediction.sentences or [])
    parts = [
        (f"{sentence} ", "tl-chosen" if number in chosen else None)
        for number, sentence in enumerate(task.sentences(text))
    ]
    return (
        f'<p data-testid="summary">{escape(prediction.text)}</p><hr>'
        f'<p class="tl-note">Where it is from:</p><p>{marked(parts, "chosen for the summary")}</p>'
    )


def _written(prediction: Text) -> str:
    parts = [(piece, "tl-invented" if is_so else None) for piece, is_so in pieces(prediction)]
    told = f'<p data-testid="summary">{marked(parts, "not in the text")}</p>'
    if prediction.invented:
        told += '<p class="tl-warning">What is underlined is not in the text: check it before you use it.</p>'
    if prediction.unfinished:
        told += '<p class="tl-warning">It would have gone on: the limit of its length was reached.</p>'
    return told
