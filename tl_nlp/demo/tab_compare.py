"""Compare: one text, several runs, and where they differ."""

from __future__ import annotations

import difflib
import re
import time
from html import escape
from typing import Any

import gradio as gr

from tl_nlp.demo.answers import marked, nothing_yet, shown, table
from tl_nlp.demo.messages import as_message, typed
from tl_nlp.errors import DataError
from tl_nlp.serving import MAX_CHARACTERS, Row, Served, Service
from tl_nlp.types import Label, Labels, Prediction, Scores, Text

_NOTHING = nothing_yet("Choose two runs or more of one task; their answers come here side by side.")


def add_compare(service: Service, page: gr.Blocks) -> None:
    names = list(service.served)
    by_task: dict[str, list[str]] = {}
    for name, one in service.served.items():
        by_task.setdefault(one.recipe.task.kind, []).append(name)
    first = next((theirs for theirs in by_task.values() if len(theirs) > 1), names[:1])
    chosen = gr.CheckboxGroup(_choices(service), value=first, label="Runs")
    with gr.Row():
        with gr.Column():
            pair = gr.Textbox(label="Pair (question, prompt or aspect), where they read one", max_length=MAX_CHARACTERS)
            text = gr.Textbox(label="Text", lines=6, max_lines=16, max_length=MAX_CHARACTERS)
            button = gr.Button("Compare", variant="primary")
        with gr.Column():
            answers = gr.HTML(_NOTHING, padding=False)
    memory = gr.Markdown(_memory(service), elem_classes="tl-kbd")

    def compare(runs: list[str], text: str, pair: str) -> str:
        with as_message():
            if len(runs) < 2:
                raise DataError("choose two runs or more to compare")
            asked = [service[name] for name in runs]
            kinds = {one.recipe.task.kind for one in asked}
            if len(kinds) > 1:
                raise DataError(f"runs of one task are compared, and these are of {' and '.join(sorted(kinds))}")
            row = typed(text, pair)
            made = []
            for one in asked:
                started = time.perf_counter()
                made.append((one, service.predict(one.name, row), time.perf_counter() - started))
        return side_by_side(made, row)

    def refreshed() -> Any:  # with the runs that were trained since
        return gr.update(choices=_choices(service)), _memory(service)

    page.load(refreshed, None, [chosen, memory], api_visibility="private", show_progress="hidden")
    gr.on(
        [button.click, text.submit], compare, [chosen, text, pair], answers, api_visibility="private",
        show_progress_on=answers,
    )  # fmt: skip


def _choices(service: Service) -> list[tuple[str, str]]:
    recipes = {name: one.recipe for name, one in service.served.items()}
    return [(f"{name} ({recipe.task.kind}, {recipe.method.kind})", name) for name, recipe in recipes.items()]


def side_by_side(made: list[tuple[Served, Prediction, float]], row: Row) -> str:
    """The answers of runs of one task in columns, what differs from the first marked."""
    (first, reference, _), *_ = made
    rows = [[escape(one.name), _against(answer, reference), f"{seconds:.2f} s"] for one, answer, seconds in made]
    told = table(["run", "answer", "time"], rows)
    agree = all(_decision(answer) == _decision(reference) for _, answer, _ in made)
    verdict = "They agree." if agree else f"They differ; what is not as {escape(first.name)} has it is marked."
    details = "".join(
        f"<details><summary>{escape(one.name)}</summary>{shown(one.recipe.task, answer, row)}</details>"
        for one, answer, _ in made
    )
    return f'<div class="tl-answer" role="status"><p class="tl-headline">{verdict}</p>{told}{details}</div>'


def _decision(prediction: Prediction) -> Any:
    if isinstance(prediction, Label):
        return prediction.label
    if isinstance(prediction, Labels):
        return prediction.labels
    if isinstance(prediction, Scores):
        return prediction.grades or {trait: round(score, 2) for trait, score in prediction.scores.items()}
    return prediction.text


def _against(answer: Prediction, reference: Prediction) -> str:
    """The answer in a few words, what the reference has otherwise marked."""
    if isinstance(answer, Label):
        shares = f" {answer.probabilities[answer.label]:.1%}"
        return _if_other(answer.label, _decision(answer) != _decision(reference)) + shares
    if isinstance(answer, Labels):
        known = set(reference.labels) if isinstance(reference, Labels) else set()
        given = [_if_other(name, name not in known) for name in answer.labels]
        missing = [f"<s>{_if_other(name, True)}</s>" for name in sorted(known - set(answer.labels))]
        return ", ".join([*given, *missing]) or "none"
    if isinstance(answer, Scores):
        theirs = _decision(reference)
        return ", ".join(
            f"{escape(trait)} {_if_other(f'{grade:g}', grade != theirs.get(trait))}"
            for trait, grade in _decision(answer).items()
        )
    assert isinstance(answer, Text) and isinstance(reference, Text)
    return marked(differences(reference.text, answer.text), "not in the first run's answer")


def _if_other(text: str, differs: bool) -> str:
    return marked([(text, "tl-differs" if differs else None)], "differs from the first run")


def differences(reference: str, text: str) -> list[tuple[str, str | None]]:
    """A text in pieces, those marked whose words the reference does not have there."""
    ours, theirs = (re.findall(r"\s+|\w+|[^\w\s]", one) for one in (text, reference))
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    return [
        ("".join(ours[start:end]), None if tag == "equal" else "tl-differs")
        for tag, _, _, start, end in matcher.get_opcodes()
        if end > start
    ]


def _memory(service: Service) -> str:
    if not service.served:
        return ""
    together, apart = service.megabytes, service.megabytes_apart
    told = f"{len(service.served)} runs take {together:,.0f} MB of weights in memory"
    if apart > together * 1.01:
        told += f"; each with a checkpoint of its own they would take {apart:,.0f} MB"
    return f"{told}."
