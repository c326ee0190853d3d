"""Label: texts that a model would learn most from, one key a label, and the next run from them."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from tl_nlp.demo.answers import nothing_yet, table
from tl_nlp.demo.messages import as_message, typed
from tl_nlp.demo.tab_file import text_columns
from tl_nlp.errors import DataError, TLError
from tl_nlp.jobs import Jobs
from tl_nlp.labelling import STRATEGIES, Example, Labelling, retraining
from tl_nlp.run import Run
from tl_nlp.serving import Service
from tl_nlp.tables import READERS, read_table
from tl_nlp.types import Label

N_KEYS = 9  # labels that have a key of their own
_WHY = {
    "diverse_margin": "unsure and unlike one another (take this)",
    "margin": "where two labels are closest",
    "entropy": "where all labels are open",
    "k_center": "unlike what is labelled",
    "random": "as it comes",
}
_NOTHING = nothing_yet("Choose a run and a table of texts, say who you are, and begin.")


def add_label(service: Service, jobs: Jobs, page: gr.Blocks) -> None:
    folder = jobs.root / ".labels"
    runs = _runs(service)
    with gr.Row():
        with gr.Column():
            run = gr.Dropdown(runs, value=runs[0] if runs else None, label="Labels and order are those of the run")
            labeller = gr.Textbox(label="Who are you?", max_length=40, placeholder="a name")
            with gr.Row():
                known = gr.Dropdown(_sets(folder), label="Texts to label", scale=2)
                strategy = gr.Dropdown(
                    [(_WHY[name], name) for name in STRATEGIES], value=STRATEGIES[0], label="What comes first", scale=2
                )
            with gr.Accordion("Add a table of texts", open=not _sets(folder)):
                upload = gr.File(label=f"Texts: {', '.join(READERS)}", file_types=list(READERS), height=120)
            begin = gr.Button("Begin", variant="primary")
        with gr.Column():
            shown = gr.HTML(_NOTHING, padding=False)
            with gr.Row():
                keys = [
                    gr.Button(visible=False, elem_classes=f"tl-label-{number}", min_width=110)
                    for number in range(1, N_KEYS + 1)
                ]
            others = gr.Dropdown([], label="Another label", visible=False, interactive=True)
            with gr.Row():
                skip = gr.Button("Skip (S)", size="sm", elem_classes="tl-skip")
                undo = gr.Button("Undo (U)", size="sm", elem_classes="tl-undo")
            gr.HTML('<p class="tl-kbd">Keys <kbd>1</kbd> to <kbd>9</kbd> give the labels.</p>', padding=False)
    with gr.Accordion("How far do you agree, and what now?", open=False):
        agreed = gr.HTML(nothing_yet("Where two have labelled the same texts, their agreement is shown here."))
        with gr.Row():
            form = gr.Radio(["csv", "jsonl"], value="csv", label="Write as")
            export = gr.Button("Export the labels")
            again = gr.Button("Train the run again with them")
        written = gr.File(label="Labels", interactive=False)
        told = gr.Markdown()
    at = gr.State(None)  # the id of the text that is shown

    def screen(run: str, labeller: str, known: str, example: Example | None) -> list[Any]:
        """What `visible` shows of a text."""
        labelling, hidden = _opened(folder, known), [gr.update(visible=False)] * (N_KEYS + 1)
        own = len(labelling.labels_by(labeller))
        if example is None:
            return [nothing_yet(f"All {len(labelling):,} texts are labelled by you."), None, *hidden]
        labels = list(labelling.labels)
        if len(labels) > N_KEYS:  # the likeliest have keys
            answer = service.predict(run, typed(example.text, example.pair))
            assert isinstance(answer, Label)
            labels = [name for name, _ in Counter(answer.probabilities).most_common(N_KEYS)]
        buttons = [gr.update(value=f"{number} {name}", visible=True) for number, name in enumerate(labels, 1)]
        buttons += [gr.update(visible=False)] * (N_KEYS - len(labels))
        pair = f'<p class="tl-note">{escape(example.pair)}</p>' if example.pair else ""
        card = (
            f'<div class="tl-answer" role="status">{pair}<p data-testid="to-label">{escape(example.text)}</p>'
            f'<p class="tl-note">{own:,} of {len(labelling):,} labelled by you.</p></div>'
        )
        more = gr.update(choices=list(labelling.labels), value=None, visible=len(labelling.labels) > N_KEYS)
        return [card, example.id, *buttons, more]

    visible = [shown, at, *keys, others]

    def begun(run: str | None, labeller: str, known: str | None, strategy: str, file: str | None) -> list[Any]:
        with as_message():
            if run is None:
                raise DataError("no run here gives each text one label; train a classification first")
            name = _added(folder, Path(file), service, run) if file is not None else known
            if not name:
                raise DataError("add a table of texts, or choose one that is here")
            labelling = _opened(folder, name)
            if set(labelling.labels) != set(service[run].recipe.task.outputs()):
                raise DataError(f"{name} is labelled with {', '.join(labelling.labels)}, and {run} has other labels")
            predictor = None if strategy == "random" else service[run].predictor
            service.worker.do(lambda: labelling.reorder(predictor, strategy)).result()
            choice = gr.update(choices=_sets(folder), value=name)
            return [*screen(run, labeller, name, labelling.next(labeller)), choice, None]

    def given(run: str, labeller: str, known: str, text: str | None, label: str) -> list[Any]:
        with as_message():
            labelling = _opened(folder, known)
            if text is not None:
                labelling.label(labeller, text, label)
            return screen(run, labeller, known, labelling.next(labeller))

    def by_key(run: str, labeller: str, known: str, text: str | None, button: str) -> list[Any]:
        return given(run, labeller, known, text, button.partition(" ")[2])

    def skipped(run: str, labeller: str, known: str, text: str | None) -> list[Any]:
        with as_message():
            labelling = _opened(folder, known)
            if text is not None:
                labelling.skip(labeller, text)
            return screen(run, labeller, known, labelling.next(labeller))

    def undone(run: str, labeller: str, known: str) -> list[Any]:
        with as_message():
            labelling = _opened(folder, known)
            example = labelling.undo(labeller)
            return screen(run, labeller, known, example or labelling.next(labeller))

    def exported(known: str | None, form: str) -> str:
        with as_message():
            path = folder / _named(known) / f"export.{form}"
            _opened(folder, known).export(path)
        target = Path(gr.utils.get_upload_folder()) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        return str(target)

    def trained(run: str | None, known: str | None) -> str:
        with as_message():
            found = Run.find(service[run].folder)
            if found is None:
                raise DataError("this is a model without its run, and what it was trained on is not here")
            path = folder / _named(known) / "export.jsonl"
            _opened(folder, known).export(path)
            made = retraining(found, path)
            job = jobs.add(made.recipe)
        left = f"; {made.n_held_out} that a test has are left out" if made.n_held_out else ""
        return f"Training with {made.n_new} new texts{left}: see the tab Train ({job.name})."

    who = [run, labeller, known]
    began = begin.click(
        begun, [*who, strategy, upload], [*visible, known, upload], api_visibility="private", show_progress_on=shown
    )
    # beside the queue, whose stream may lose an answer when another text is asked for at that moment; a key that is
    # pressed before the next text is shown does nothing, or it would be of the wrong one
    quick: dict[str, Any] = {
        "api_visibility": "private", "show_progress": "hidden", "trigger_mode": "once", "queue": False,
    }  # fmt: skip
    acts = [
        began,
        *(key.click(by_key, [*who, at, key], visible, **quick) for key in keys),
        others.input(given, [*who, at, others], visible, **quick),
        skip.click(skipped, [*who, at], visible, **quick),
        undo.click(undone, who, visible, **quick),
    ]
    for act in acts:  # after it, or the agreement would be that of before; the last asked for is the one that is shown
        act.then(lambda known: _agreement(folder, known), known, agreed, **quick | {"trigger_mode": "always_last"})
    page.load(
        lambda: (gr.update(choices=_runs(service)), gr.update(choices=_sets(folder))), None, [run, known], **quick
    )
    export.click(exported, [known, form], written, api_visibility="private")
    again.click(trained, [run, known], told, api_visibility="private")


def _runs(service: Service) -> list[str]:
    """The runs that give each text one label."""
    return [name for name, one in service.served.items() if one.recipe.task.kind == "classification"]


def _sets(folder: Path) -> list[str]:
    """The names of what is there to be labelled."""
    return sorted(path.parent.name for path in folder.glob("*/texts.parquet"))


def _named(known: str | None) -> str:
    if not known or not re.fullmatch(r"[\w-]+", known):
        raise DataError("choose the texts to label first")
    return known


def _opened(folder: Path, known: str | None) -> Labelling:
    return _labelling(folder / _named(known))


@lru_cache(maxsize=32)
def _labelling(folder: Path) -> Labelling:
    """One object for a folder, so that all who label share its order and its lock."""
    return Labelling(folder)


def _added(folder: Path, file: Path, service: Service, run: str) -> str:
    """A new set of texts from an uploaded table, under a name of its own."""
    stem = re.sub(r"[^\w-]+", "-", file.stem)[:40].strip("-") or "texts"
    name, number = stem, 1
    while (folder / name).exists():
        number += 1
        name = f"{stem}-{number}"
    folder.mkdir(mode=0o700, exist_ok=True)
    recipe, read = service[run].recipe, read_table(file)
    if not {"text", recipe.data.text} & set(read.column_names):
        read = read.rename_columns({text_columns(read, recipe)[0]: "text"})
    Labelling.create(folder / name, read, recipe)
    return name


def _agreement(folder: Path, known: str | None) -> str:
    """How far labellers agree, and where they do not."""
    try:
        labelling = _opened(folder, known)
        found = labelling.agreement()
    except TLError:
        found = []
    if not found:
        return nothing_yet("Where two have labelled the same texts, their agreement is shown here.")
    told = table(
        ["labellers", "texts", "equal", "Cohen's kappa"],
        [[escape(" and ".join(one.labellers)), f"{one.n_texts}", _told(one.equal), _told(one.kappa)] for one in found],
    )
    apart = labelling.disagreements()[:10]
    names = [name for name in labelling.labellers if apart and f"label by {name}" in apart[0]]
    cells = [[escape(row["text"][:300]), *(escape(row[f"label by {name}"]) for name in names)] for row in apart]
    differs = table(["text", *names], cells)
    return f'<div class="tl-answer">{told}{differs if apart else ""}</div>'


def _told(value: Any) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
