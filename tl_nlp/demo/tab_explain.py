"""Explain: which words and sentences moved the answer, how far to trust that, and which training texts are alike."""

from __future__ import annotations

from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from tl_nlp.attribution import METHODS, Explanation, Part, explain
from tl_nlp.demo.answers import nothing_yet, table
from tl_nlp.demo.messages import as_message, typed
from tl_nlp.demo.tab_try import Inputs, short
from tl_nlp.errors import DataError
from tl_nlp.neighbours import nearest
from tl_nlp.rows import resolved
from tl_nlp.run import Run
from tl_nlp.serving import MAX_CHARACTERS, Served, Service

_NOTHING = nothing_yet("Which words speak for the answer, and which against it, comes here.")
_MARKED_FROM = 0.08  # of the largest effect
_DARKEST = 0.5  # of the colour of a mark: the text on it stays readable in light and dark
_MOST_ROWS = 5_000  # of training, that are looked through for those alike
_BY = {"integrated_gradients": "integrated gradients", "occlusion": "occlusion: each word hidden in turn"}


def add_explain(service: Service, served: Served, tried: Inputs) -> None:
    """The text tried last is explained where none is typed. It is not written into this tab when that is opened: the
    browser opens a tab again whenever it lays its tabs out, and what was typed since would be gone."""
    outputs = served.recipe.task.outputs() if served.recipe.task.head in ("classify", "multilabel") else []
    traits = list(getattr(served.recipe.task, "traits", ()))
    with gr.Row():
        with gr.Column():
            text = gr.Textbox(
                label="Text", placeholder="Empty: the text that you tried last.", lines=5, max_lines=14,
                max_length=MAX_CHARACTERS,
            )  # fmt: skip
            target = gr.Dropdown(
                [("the answer it gave", ""), *outputs, *traits], value="", label="What is explained",
                visible=len(outputs or traits) > 1,
            )  # fmt: skip
            method = gr.Radio([(_BY[name], name) for name in METHODS], value=METHODS[0], label="How")
            button = gr.Button("Explain", variant="primary")
            alike = gr.Button("Which training texts are most like it?")
        with gr.Column():
            shown = gr.HTML(_NOTHING, padding=False)

    def explained(text: str, tried: str, pair: str, group: str, method: str, target: str) -> str:
        with as_message():
            row = typed(text or tried, pair, group)
            columns = {} if row.group is None else {"group": row.group}
            found = service.worker.do(
                lambda: explain(served.predictor, row.text, row.pair, method=method, target=target or None, **columns)
            ).result()
        return as_html(found)

    def looked_up(text: str, tried: str, pair: str, group: str) -> str:
        with as_message():
            row = typed(text or tried, pair, group)
            rows = _training_rows(served)
            found = service.worker.do(lambda: nearest(served.predictor, row.text, row.pair, rows)).result()
        told = table(
            ["alike", "target", "training text"],
            [[f"{one.similarity:.2f}", escape(str(one.target)), escape(one.text[:600])] for one in found],
        )
        note = "By the cosine of the model's own states: what it takes to be alike, which need not be so in meaning."
        return f'<div class="tl-answer" role="status">{told}<p class="tl-note">{note}</p></div>'

    inputs = [text, *tried]
    gr.on(
        [button.click, text.submit], explained, [*inputs, method, target], shown, api_visibility="private",
        concurrency_limit=1, show_progress_on=shown,
    )  # fmt: skip
    alike.click(
        looked_up, inputs, shown, api_visibility="private", concurrency_limit=1, show_progress_on=shown
    )  # fmt: skip


def _training_rows(served: Served) -> Any:
    run = Run.find(served.folder)
    if run is None:
        raise DataError("this is a model without its run, and the texts it was trained on are not here")
    return _rows_of(str(run.folder))


@lru_cache(maxsize=4)
def _rows_of(folder: str) -> Any:
    rows = resolved(Run(Path(folder)).recipe())[1]["train"]
    return rows.select(range(min(len(rows), _MOST_ROWS)))


def as_html(found: Explanation) -> str:
    """An explanation as a person reads it."""
    told = [f'<p class="tl-headline">{escape(short(found.answer))}</p>']
    what = f"{escape(found.unit)} of “{escape(found.target[:80])}”"
    told.append(f'<p class="tl-note">Numbers are in {what}: above 0 speaks for it, below 0 against it.</p>')
    if any(part.effect is not None for part in found.parts):
        told.append(f"<p>{marked_effects(found.parts)}</p>")
        told.append(
            '<p class="tl-note"><mark class="tl-up">speaks for it</mark> '
            '<mark class="tl-down">speaks against it</mark></p>'
        )
        rows = [[f"{part.effect:+.2f}", escape(part.text)] for part in found.top(8)]
        told.append(
            f"<details open><summary>The words that count most</summary>{table(['effect', 'word'], rows)}</details>"
        )
    if found.deletion is not None:
        told.append(f'<p class="tl-warning">How far to trust it: {escape(found.deletion.told)}</p>')
    if sum(part.effect is not None for part in found.sentences) > 1:
        told.append(
            f"<details><summary>By sentences</summary><p>{marked_effects(found.sentences)}</p>"
            + table(
                ["effect", "sentence"],
                [
                    [f"{part.effect:+.2f}", escape(part.text)]
                    for part in sorted(found.sentences, key=lambda one: -abs(one.effect or 0.0))[:8]
                    if part.effect is not None
                ],
            )
            + "</details>"
        )
    if found.note:
        told.append(f'<p class="tl-note">{escape(found.note)}</p>')
    return f'<div class="tl-answer" role="status">{"".join(told)}</div>'


def marked_effects(parts: list[Part]) -> str:
    """A text whose parts are the darker the more they count."""
    most = max((abs(part.effect) for part in parts if part.effect is not None), default=0.0) or 1.0
    pieces = []
    for part in parts:
        share = (part.effect or 0.0) / most
        if abs(share) < _MARKED_FROM:
            pieces.append(escape(part.text))
            continue
        colour, kind = ("29, 111, 184", "tl-up") if share > 0 else ("230, 159, 0", "tl-down")
        style = f"background: rgba({colour}, {_DARKEST * abs(share):.2f})"
        pieces.append(f'<mark class="{kind}" style="{style}" title="{part.effect:+.3g}">{escape(part.text)}</mark>')
    return "".join(pieces).replace("\n", "<br>")
