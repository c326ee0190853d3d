"""Try: a text, its answer, and what was tried before."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

import gradio as gr
import pyarrow.parquet

from tl_nlp.demo.answers import nothing_yet, shown
from tl_nlp.demo.messages import as_message, typed
from tl_nlp.run import Run
from tl_nlp.serving import MAX_CHARACTERS, Served, Service
from tl_nlp.types import Label, Labels, Prediction, Scores, as_json

_N_EXAMPLES = 3
_NOTHING = nothing_yet("The answer comes here.")
_MOST_TRIED = 50  # that the history keeps


class Inputs(NamedTuple):
    """The components that a text is typed into; `typed` takes their values."""

    text: gr.Textbox
    pair: gr.Textbox
    group: gr.Dropdown


def add_inputs(served: Served, examples: list[dict[str, str]]) -> Inputs:
    """A place for a text, and where the run reads them for its pair and its group."""
    groups = [name for name in getattr(served.recipe.task, "scales", {}) if name]
    group = gr.Dropdown(groups, value=next(iter(groups), None), label="Group (prompt)", visible=bool(groups))
    has_pair = bool(examples) and "pair" in examples[0]
    pair = gr.Textbox(label="Pair (question, prompt or aspect)", visible=has_pair, max_length=MAX_CHARACTERS)
    text = gr.Textbox(
        label="Text", lines=6, max_lines=16, placeholder="Type or paste a text", max_length=MAX_CHARACTERS
    )
    return Inputs(text, pair, group)


def add_try(service: Service, served: Served) -> Inputs:
    task, examples = served.recipe.task, examples_of(served)
    tried = gr.State([])
    with gr.Row():
        with gr.Column():
            inputs = add_inputs(served, examples)
            sure = gr.Slider(
                0, 1, 0, step=0.05, label="Call it unsure below this probability", visible=task.head == "classify"
            )
            with gr.Row():
                button = gr.Button("Predict", variant="primary")
                clear = gr.ClearButton([inputs.text, inputs.pair], value="Clear")
            gr.HTML('<p class="tl-kbd"><kbd>Ctrl</kbd> + <kbd>Enter</kbd> predicts.</p>', padding=False)
        with gr.Column():
            answer = gr.HTML(_NOTHING, label="Answer", padding=False)
            took = gr.Markdown("", elem_classes="tl-kbd")
            with gr.Accordion("Copy or download it", open=False):
                as_code = gr.Code(
                    label="As tl-nlp predict prints it", language="json", lines=3, buttons=["copy", "download"]
                )
    with gr.Accordion("What you have tried", open=False):
        gr.Markdown("Kept in this window alone, and gone when you close it.", elem_classes="tl-kbd")
        history = gr.Dataframe(
            label="Tried", headers=["answer", "text"], interactive=False, wrap=True, max_height=300, buttons=["copy"]
        )
    if examples:
        filled = {"group": inputs.group, "pair": inputs.pair, "text": inputs.text}
        filled = {name: component for name, component in filled.items() if component.visible}
        rows = [[example.get(name) for name in filled] for example in examples]
        gr.Examples(rows, list(filled.values()), api_visibility="private")

    def answer_to(text: str, pair: str, group: str, sure_from: float, before: list[Any]) -> Any:
        with as_message():
            row, started = typed(text, pair, group), time.perf_counter()
            prediction = service.predict(served.name, row)
            seconds = time.perf_counter() - started
        now = [[short(prediction), row.text[:300]], *before][:_MOST_TRIED]
        line = json.dumps(as_json(prediction), ensure_ascii=False, indent=2)
        return shown(task, prediction, row, sure_from), f"Took {seconds:.2f} s.", line, now, now

    gr.on(
        [button.click, inputs.text.submit],
        answer_to,
        [*inputs, sure, tried],
        [answer, took, as_code, tried, history],
        api_visibility="private",
        show_progress_on=answer,
    )
    clear.click(lambda: (_NOTHING, "", ""), None, [answer, took, as_code], api_visibility="private")
    return inputs


def short(prediction: Prediction) -> str:
    """The answer in a few words."""
    if isinstance(prediction, Label):
        return f"{prediction.label} ({prediction.probabilities[prediction.label]:.0%})"
    if isinstance(prediction, Labels):
        return ", ".join(prediction.labels) or "none"
    if isinstance(prediction, Scores):
        return ", ".join(f"{trait} {grade:g}" for trait, grade in (prediction.grades or prediction.scores).items())
    return prediction.text


def examples_of(served: Served) -> list[dict[str, str]]:
    """The first rows of the run's own test split, which are kept on this machine and are not part of the artifact."""
    run = Run.find(served.folder)
    if run is None or not run.predictions_file("test").is_file():
        return []
    table = pyarrow.parquet.read_table(run.predictions_file("test"))
    names = [name for name in ("group", "pair", "text") if name in table.column_names]
    return table.select(names)[:_N_EXAMPLES].to_pylist()
