"""A file: predictions for every row of a table."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
import pyarrow as pa
import pyarrow.compute as pc

from tl_nlp.demo.messages import as_message
from tl_nlp.errors import DataError
from tl_nlp.recipe import Recipe
from tl_nlp.rows import columns_of, select
from tl_nlp.serving import MAX_CHARACTERS, Row, Served, Service
from tl_nlp.tables import READERS, read_table
from tl_nlp.types import Label, Labels, Prediction, Scores, Text, as_json
from tl_nlp.writing import flattened, write_rows

MOST_ROWS = 100_000
_SHOWN = 8  # rows of a preview
_LONG = 120  # characters of a cell of it


def add_file(service: Service, served: Served) -> None:
    with gr.Row():
        with gr.Column():
            upload = gr.File(label=f"Table: {', '.join(READERS)}", file_types=list(READERS), height=140)
            column = gr.Dropdown([], label="Column of the texts", interactive=True)
            sure = gr.Slider(
                0, 1, 0.8, step=0.05, label="Flag answers below this probability",
                visible=served.recipe.task.head in ("classify", "multilabel"),
            )  # fmt: skip
            form = gr.Radio(["csv", "jsonl", "parquet"], value="csv", label="Write as")
            button = gr.Button("Predict the file", variant="primary")
        with gr.Column():
            first = gr.Dataframe(label="Its first rows", interactive=False, wrap=True, max_height=300)
            told = gr.Markdown("Choose a table; its first rows are shown here.", elem_classes="tl-kbd")
            download = gr.File(label="Predictions", interactive=False)

    def look(file: str | None) -> Any:
        if file is None:
            return gr.update(choices=[], value=None), [], "Choose a table; its first rows are shown here."
        with as_message():
            table = _read(file)
        choices = text_columns(table, served.recipe)
        return (
            gr.update(choices=choices, value=choices[0]),
            preview(table.slice(0, _SHOWN)),
            f"{len(table):,} rows.",
        )

    def predict_all(
        file: str | None, column: str | None, sure_from: float, form: str, progress: gr.Progress = _PROGRESS
    ) -> Any:
        with as_message():
            if file is None:
                raise DataError("choose a table first")
            rows, ids = _rows(_read(file), column, served)
            answers = service.worker.stream(served.predictor, rows)
            lines = [
                {"id": row_id, "text": row.text, "flagged": is_doubtful(answer, sure_from), **as_json(answer, row_id)}
                for row_id, row, answer in zip(
                    ids, rows, progress.tqdm(answers, total=len(rows), unit="rows"), strict=True
                )
            ]
            path = Path(tempfile.mkdtemp(dir=gr.utils.get_upload_folder())) / f"predictions.{form}"
            write_rows(path, lines)
        n_flagged = sum(line["flagged"] for line in lines)
        shown = pa.Table.from_pylist([{k: str(v) for k, v in flattened(one).items()} for one in lines[:_SHOWN]])
        return preview(shown), f"{len(lines):,} rows, {n_flagged:,} flagged for a second look.", str(path)

    upload.change(look, upload, [column, first, told], api_visibility="private")
    button.click(
        predict_all, [upload, column, sure, form], [first, told, download], api_visibility="private",
        concurrency_limit=2, show_progress_on=told,
    )  # fmt: skip


_PROGRESS = gr.Progress()


def is_doubtful(prediction: Prediction, sure_from: float) -> bool:
    """Whether a person should look: labels less probable than `sure_from`, grades that a teacher should read, texts
    that invent something or were not finished."""
    if isinstance(prediction, Label):
        return prediction.probabilities[prediction.label] < sure_from
    if isinstance(prediction, Labels):
        return any(max(share, 1 - share) < sure_from for share in prediction.probabilities.values())
    if isinstance(prediction, Scores):
        return bool(prediction.unsure)
    assert isinstance(prediction, Text)
    return bool(prediction.invented or prediction.unfinished)


def text_columns(table: pa.Table, recipe: Recipe) -> list[str]:
    """The columns that texts may be in, the likeliest first: what the recipe names, then the longest."""
    texts = [name for name in table.column_names if pa.types.is_string(table[name].type)]
    named = (recipe.data.text, "text")
    return sorted(texts, key=lambda name: (name not in named, -_length(table[name]))) or table.column_names


def _length(column: pa.ChunkedArray) -> float:
    """Mean number of characters."""
    return pc.mean(pc.utf8_length(column)).as_py() or 0.0


def _read(file: str) -> pa.Table:
    table = read_table(Path(file))
    if len(table) > MOST_ROWS:
        raise DataError(
            f"the table has {len(table):,} rows and at most {MOST_ROWS:,} are read here; "
            "tl-nlp predict RUN --input reads more"
        )
    return table


def _rows(table: pa.Table, column: str | None, served: Served) -> tuple[list[Row], list[str]]:
    """What is predicted from, with its ids. Raises DataError that names the row."""
    if column is not None and column not in table.column_names:
        raise DataError(f"the table has no column {column!r}; choose one of {', '.join(table.column_names)}")
    if column is not None and column != "text":
        table = table.drop_columns(["text"]) if "text" in table.column_names else table
        table = table.append_column("text", table[column])
    found = columns_of(select(table, served.recipe.data, served.recipe.task.columns), ("id", "text", "pair", "group"))
    rows = []
    for number, text in enumerate(found["text"]):
        try:
            rows.append(Row(text, *(found[name][number] if name in found else None for name in ("pair", "group"))))
        except DataError as error:
            raise DataError(f"row {found['id'][number]}: {error}; at most {MAX_CHARACTERS:,} characters go") from None
    return rows, found["id"]


def preview(table: pa.Table) -> dict[str, Any]:
    """Rows of a table as a Dataframe shows them, long cells cut."""
    cells = [[_short(value) for value in row.values()] for row in table.to_pylist()]
    return {"headers": table.column_names, "data": cells}


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"
