"""The page: one tab a run, with the answer shown as its kind of prediction asks for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import pyarrow.parquet

from tl_nlp import charts
from tl_nlp.attribution import sentence_effects
from tl_nlp.errors import RecipeError, TLError
from tl_nlp.prediction import Predictor
from tl_nlp.run import Run, results_of
from tl_nlp.tables import read_table, write_rows
from tl_nlp.types import Label, Labels, Prediction, Scores, Text, pieces

MAX_CHARACTERS = 100_000  # of one text
MAX_FILE = "20mb"
_N_EXAMPLES = 3
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(folders: list[Path], is_public: bool = False) -> None:
    """Serves the page of runs, or of artifacts alone, until interrupted.

    GRADIO_SERVER_NAME and GRADIO_SERVER_PORT are honoured; a page beyond this machine needs TL_NLP_PASSWORD, unless
    it `is_public`. Raises RecipeError where it is missing.
    """
    name, password = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("TL_NLP_PASSWORD")
    if name not in _LOOPBACK and not password and not is_public:
        raise RecipeError(
            f"GRADIO_SERVER_NAME={name} opens the page to the network; set TL_NLP_PASSWORD, with which "
            "user tl-nlp logs in, or leave the name out to serve this machine alone"
        )
    page = build(folders).queue(max_size=64)
    page.launch(
        server_name=name,
        auth=("tl-nlp", password) if password else None,
        share=False,
        show_error=False,
        enable_monitoring=False,
        max_file_size=MAX_FILE,
        allowed_paths=[],
        footer_links=[],
    )


def build(folders: list[Path]) -> gr.Blocks:
    """The page of the runs or artifacts in `folders`, each with its model loaded."""
    predictors = [Predictor.load(folder) for folder in folders]
    names = [predictor.recipe.name if predictor.recipe else "" for predictor in predictors]
    with gr.Blocks(title="tl_nlp", analytics_enabled=False) as page:
        for folder, predictor, name in zip(folders, predictors, names, strict=True):
            with gr.Tab(name if names.count(name) == 1 else f"{name} {folder.name}"):
                _tab(folder, predictor)
    return page


def _tab(folder: Path, predictor: Predictor) -> None:
    run, recipe = Run.find(folder), predictor.recipe
    assert recipe is not None, "a predictor loaded from a run knows its recipe"
    what = f"**{recipe.task.kind}**, {recipe.method.kind} on `{recipe.checkpoint.name}`."
    gr.Markdown(" ".join([what, _scores(results_of(folder)), recipe.note or ""]))
    examples = _examples(run)
    has_pair = bool(examples) and "pair" in examples[0]
    with gr.Row():
        with gr.Column():
            groups = [name for name in getattr(recipe.task, "scales", {}) if name]
            group = gr.Dropdown(groups, value=next(iter(groups), None), label="Group (prompt)", visible=bool(groups))
            pair = gr.Textbox(label="Pair (question, prompt or aspect)", visible=has_pair)
            text = gr.Textbox(label="Text", lines=6, max_lines=20, placeholder="Type or paste a text")
            button = gr.Button("Predict", variant="primary")
        with gr.Column():
            outputs, show = _answer(predictor)

    def answer(group: str | None, pair: str | None, text: str | None) -> Any:
        text = text or ""
        with _as_message():
            _refuse_long(text)
            columns = {"group": [group]} if group else {}
            prediction = predictor([text], [pair] if pair and pair.strip() else None, **columns)[0]
            return show(prediction, text, group or "")

    gr.on([button.click, text.submit], answer, [group, pair, text], outputs, api_name=False)
    if recipe.task.head == "regress":
        _moved_by(predictor, group, pair, text)
    if examples:
        shown = {"group": group if groups else None, "pair": pair if has_pair else None, "text": text}
        filled = {name: component for name, component in shown.items() if component is not None}
        gr.Examples([[example[name] for name in filled] for example in examples], list(filled.values()))

    def batch(file: str | None) -> str:
        with _as_message():
            if file is None:
                raise gr.Error("Choose a file first.")
            target = Path(tempfile.mkdtemp(prefix="tl_nlp-")) / "predictions.csv"
            table = read_table(Path(file))
            write_rows(target, predictor.predict_table(table))
            return str(target)

    with gr.Accordion("A file of texts", open=False):
        names = {recipe.data.text, "text"}
        gr.Markdown(f"A CSV with a column {' or '.join(f'`{name}`' for name in sorted(names))}.")
        with gr.Row():
            upload = gr.File(label="CSV", file_types=[".csv"])
            download = gr.File(label="Predictions", interactive=False)
        gr.Button("Predict the file").click(batch, upload, download, api_name=False)


def _refuse_long(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise gr.Error(f"The text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read.")


def _moved_by(predictor: Predictor, group: gr.Component, pair: gr.Component, text: gr.Component) -> None:
    """A button that shows which sentences moved the grade, each by what the score would be without it."""
    traits = list(getattr(predictor.task, "traits", ()))

    def explain(group: str | None, pair: str | None, text: str | None, trait: str) -> Any:
        text = text or ""
        with _as_message():
            _refuse_long(text)
            columns = {"group": group} if group else {}
            parts = sentence_effects(predictor, text, pair if pair and pair.strip() else None, **columns)
        effects = [part.effect[trait] if part.effect else None for part in parts]
        most = max((abs(effect) for effect in effects if effect is not None), default=0.0) or 1.0
        spans = [
            (part.text, None if effect is None else effect / most) for part, effect in zip(parts, effects, strict=True)
        ]
        told = [(effect, part.text) for part, effect in zip(parts, effects, strict=True) if effect is not None]
        table = [[f"{effect:+.2f}", sentence] for effect, sentence in sorted(told, key=lambda one: -abs(one[0]))]
        return spans, table[:_MOST_MOVERS]

    with gr.Accordion("Which sentences moved the grade?", open=False):
        gr.Markdown("The text is read again without each sentence: red ones raise the score, purple ones lower it.")
        trait = gr.Dropdown(traits, value=traits[0], label="Trait", visible=len(traits) > 1)
        button = gr.Button("Show")
        marked = gr.HighlightedText(label="Sentences", show_legend=True, combine_adjacent=False)
        table = gr.Dataframe(label="The score is so much higher for it", headers=["points", "sentence"], wrap=True)
        button.click(explain, [group, pair, text, trait], [marked, table], api_name=False)


_MOST_MOVERS = 10


@contextmanager
def _as_message() -> Iterator[None]:
    """An error of ours as a message of the page."""
    try:
        yield
    except TLError as error:
        raise gr.Error(str(error)) from None


def _scores(results: dict[str, Any]) -> str:
    if not results:
        return ""
    name = results["main_metric"]
    parts = [
        f"{name} {scores['metrics'][name]['value']:.3g} on {scores['rows']:,} rows ({split})"
        for split, scores in results["splits"].items()
    ]
    return "; ".join(parts) + "."


def _examples(run: Run | None) -> list[dict[str, str]]:
    """The first rows of the run's own test split, which are kept on this machine and are not part of the artifact."""
    if run is None:
        return []
    file = run.predictions_file("test")
    if not file.is_file():
        return []
    table = pyarrow.parquet.read_table(file)
    shown = [name for name in ("group", "pair", "text") if name in table.column_names]
    return table.select(shown)[:_N_EXAMPLES].to_pylist()


def _answer(predictor: Predictor) -> tuple[list[Any], Callable[[Prediction, str, str], Any]]:
    """The components that show this task's predictions, and what fills them."""
    head = predictor.task.head
    if head == "classify":
        return [gr.Label(label="Label", num_top_classes=10)], _show_label
    if head == "multilabel":
        return [gr.Textbox(label="Labels"), gr.Label(label="Probabilities", num_top_classes=10)], _show_labels
    if head == "regress":
        columns = ["trait", "grade", "score", "give or take"]
        shown = [gr.Dataframe(label="Grades", headers=columns, interactive=False), gr.Markdown(), gr.HTML()]
        return shown, partial(_show_scores, predictor.task)
    if head == "select":
        summary = gr.Textbox(label="Summary", lines=3)
        marked = gr.HighlightedText(label="Chosen sentences", color_map={"chosen": "#b45309"}, show_legend=False)

        def show(prediction: Prediction, text: str, group: str) -> Any:
            assert isinstance(prediction, Text)
            chosen = set(prediction.sentences or [])
            sentences = predictor.task.sentences(text)  # type: ignore[attr-defined]
            spans = [(f"{sentence} ", "chosen" if n in chosen else None) for n, sentence in enumerate(sentences)]
            return prediction.text, spans

        return [summary, marked], show
    marked = gr.HighlightedText(label="Not in the text", color_map={"not in the text": "#b91c1c"}, show_legend=False)
    return [gr.Textbox(label="Summary", lines=3), marked], _show_text


def _show_label(prediction: Prediction, text: str, group: str) -> Any:
    assert isinstance(prediction, Label)
    return prediction.probabilities


def _show_labels(prediction: Prediction, text: str, group: str) -> Any:
    assert isinstance(prediction, Labels)
    return ", ".join(prediction.labels) or "none", prediction.probabilities


def _show_scores(task: Any, prediction: Prediction, text: str, group: str) -> Any:
    assert isinstance(prediction, Scores)
    grades, margins = prediction.grades or {}, prediction.margins or {}
    table = [
        [trait, grades.get(trait), round(score, 2), round(margins[trait], 2) if trait in margins else None]
        for trait, score in prediction.scores.items()
    ]
    told, drawn = _compared(task, grades, group)
    return table, " ".join(["**A teacher should read this one.**"] * bool(prediction.unsure) + told), drawn


def _compared(task: Any, grades: dict[str, float], group: str) -> tuple[list[str], str]:
    """Where grades stand among those that were given in training: in words, and drawn."""
    told, drawn = [], ""
    for trait, grade in grades.items():
        if (standing := task.standing(trait, grade, group)) is None:
            continue
        name = f"{trait}: " if len(grades) > 1 else ""
        told.append(
            f"{name}{standing.lower:.0%} of the {standing.n_grades:,} graded texts{f' of {group}' if group else ''} "
            f"have a lower grade, {standing.same:.0%} the same."
        )
        drawn += charts.bars(standing.names, standing.counts, standing.place, f"{name}grade")
    return told, drawn


def _show_text(prediction: Prediction, text: str, group: str) -> Any:
    assert isinstance(prediction, Text)
    return prediction.text, [(piece, "not in the text" if is_so else None) for piece, is_so in pieces(prediction)]
