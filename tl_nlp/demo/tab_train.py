"""Train: from a table to a run, watched while it learns."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from tl_nlp import charts
from tl_nlp.checking import check
from tl_nlp.demo.answers import nothing_yet, table
from tl_nlp.demo.messages import as_message
from tl_nlp.demo.tab_file import preview
from tl_nlp.demo.tab_try import add_try
from tl_nlp.errors import DataError, RecipeError, TLError
from tl_nlp.guessing import Guess, guess
from tl_nlp.hub import is_id
from tl_nlp.jobs import Jobs, Progress
from tl_nlp.planning import Choice, methods_for, recipe_for
from tl_nlp.recipe import Recipe
from tl_nlp.rejects import Rejects
from tl_nlp.rows import resolved
from tl_nlp.run import Run, all_runs
from tl_nlp.serving import Service
from tl_nlp.tables import READERS, read_table

_EVERY = 2.0  # seconds between two looks at a training
_SHOWN = 5  # rows of a preview
_TASKS = {
    "classification": "one label for each text",
    "multilabel": "any number of labels for each text",
    "grading": "a grade for each text",
    "highlights": "the sentences that matter",
    "summarization": "a summary that is written",
}
_METHODS = {"full": "All weights", "lora": "A small adapter", "head": "Only a new head"}
_NO_JOB = nothing_yet("No training yet. What you start is shown here, and goes on when you close the page.")


@dataclass(frozen=True)
class _Plan:
    """What a visitor has uploaded and chosen so far."""

    path: Path
    guess: Guess
    choices: list[Choice]


def add_train(service: Service, jobs: Jobs, page: gr.Blocks, tab: gr.Tab) -> None:
    plan = gr.State(None)
    tried = gr.State("")
    with gr.Row():
        with gr.Column():
            upload = gr.File(label=f"Your table: {', '.join(READERS)}", file_types=list(READERS), height=140)
            why = gr.Markdown("Choose a table. Its columns are guessed, and you can say otherwise.")
            with gr.Row():
                task = gr.Dropdown([(told, name) for name, told in _TASKS.items()], label="What shall it learn?")
                text = gr.Dropdown([], label="Column of the texts")
                target = gr.Dropdown([], label="Column of the answers")
            minutes = gr.Number(0, label="How many minutes do you have? (0: any)", minimum=0, precision=1)
            method = gr.Radio([], label="How shall it learn?")
            with gr.Accordion("More", open=False):
                name = gr.Textbox(label="Name of the run", value="mine", max_length=60)
                checkpoint = gr.Textbox(
                    label="Checkpoint of the Hugging Face Hub, owner/name (empty: the one that comes along)",
                    max_length=200,
                )
            with gr.Row():
                checked = gr.Button("Check the data")
                start = gr.Button("Train", variant="primary")
        with gr.Column():
            rows = gr.Dataframe(label="Its first rows", interactive=False, wrap=True, max_height=240)
            findings = gr.HTML(nothing_yet("What is wrong with the data, if anything, comes here."), padding=False)
    gr.Markdown("### Trainings")
    with gr.Row():
        chosen = gr.Dropdown([], label="Training", interactive=True, scale=3)
        cancel = gr.Button("Stop it", size="sm")
        resume = gr.Button("Go on", size="sm")
        use = gr.Button("Try it", size="sm")
    progress = gr.HTML(_NO_JOB, padding=False)
    with gr.Accordion("All runs, with their scores", open=False):
        listed = gr.HTML(padding=False)

    upload.change(_looked_at, upload, [plan, why, task, text, target, method, rows], api_visibility="private")
    for component in (task, text, target, minutes):
        component.input(
            _chosen, [plan, task, text, target, minutes], [plan, why, text, target, method], api_visibility="private"
        )
    checked.click(_checked, [plan, method], findings, api_visibility="private", show_progress_on=findings)

    clock = gr.Timer(_EVERY, active=False)  # while there is something to watch
    watched = [progress, listed, clock]

    def watch(job: str | None) -> list[Any]:
        """What `watched` shows; the list of runs changes when a training ends."""
        is_going = job is not None and jobs.get(job).status in ("queued", "running")
        return [_shown(jobs, job), gr.update() if is_going else _runs(jobs), gr.Timer(active=is_going)]

    def begin(plan: _Plan | None, method: str | None, name: str | None, checkpoint: str | None) -> list[Any]:
        with as_message():
            job = jobs.add(_recipe(plan, method, name, checkpoint), plan.path if plan else None)
        return [gr.update(choices=_names(jobs), value=job.id), *watch(job.id)]

    def opened() -> list[Any]:
        named = _names(jobs)
        job = next((one.id for one in reversed(jobs.all()) if one.status == "running"), named[0][1] if named else None)
        return [gr.update(choices=named, value=job), *watch(job)]

    def stop(job: str | None) -> list[Any]:
        with as_message():
            return watch(jobs.cancel(_one(job)).id)

    def go_on(job: str | None) -> list[Any]:
        with as_message():
            return watch(jobs.resume(_one(job)).id)

    def served(job: str | None) -> str:
        with as_message():
            found = jobs.get(_one(job))
            if found.status != "finished":
                raise DataError(f"this training is {found.status}; what has finished can be tried")
            return service.add(found.folder).name

    start.click(begin, [plan, method, name, checkpoint], [chosen, *watched], api_visibility="private")
    chosen.input(watch, chosen, watched, api_visibility="private")
    cancel.click(stop, chosen, watched, api_visibility="private")
    resume.click(go_on, chosen, watched, api_visibility="private")
    use.click(served, chosen, tried, api_visibility="private")
    # what is there while it is looked up stays readable: gradio dims what waits for an answer to a fifth
    unasked: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    gr.on([page.load, tab.select], opened, None, [chosen, *watched], **unasked)
    clock.tick(watch, chosen, watched, **unasked)

    @gr.render(inputs=tried)
    def try_it(name: str) -> None:
        if name:
            gr.Markdown(f"### Try {name}")
            add_try(service, service[name])


def _looked_at(file: str | None) -> Any:
    """The plan of an uploaded table, and what its components show."""
    if file is None:
        return None, "Choose a table.", *[gr.update()] * 3, gr.update(choices=[], value=None), []
    with as_message():
        path = Path(file)
        read = read_table(path)
        plan = _Plan(path, guess(read), [])
        planned, why, text, target, method = _filled(plan, None)
    names = read.column_names
    return (
        planned, why, gr.update(value=plan.guess.task), gr.update(**text, choices=names),
        gr.update(**target, choices=names), gr.update(**method), preview(read.slice(0, _SHOWN)),
    )  # fmt: skip


def _chosen(plan: _Plan | None, task: str, text: str, target: str, minutes: float | None) -> Any:
    """The plan after a visitor has said otherwise."""
    with as_message():
        if plan is None:
            raise DataError("choose a table first")
        said = guess(read_table(plan.path), task=task, text=text, target=target)
        planned, why, text_, target_, method = _filled(replace(plan, guess=said), minutes)
    return planned, why, gr.update(**text_), gr.update(**target_), gr.update(**method)


def _filled(plan: _Plan, minutes: float | None) -> tuple[_Plan, str, dict[str, Any], dict[str, Any], dict[str, Any]]:
    found = plan.guess
    choices = methods_for(found.n_rows, found.n_words, minutes or None, found.task)
    also = "".join(
        f" `{column}` is {what}."
        for column, what in ((found.pair, "read beside it"), (found.group, "its group"))
        if column
    )
    why = f"{found.why}. {found.n_rows:,} rows of about {found.n_words:,.0f} words.{also}"
    named = [(f"{_METHODS[one.method]} (about {_time(one.minutes)}): {one.reason}", one.method) for one in choices]
    return (
        replace(plan, choices=choices), why, {"value": found.text}, {"value": found.target},
        {"choices": named, "value": choices[0].method},
    )  # fmt: skip


def _time(minutes: float | None) -> str:
    return "? min" if minutes is None else f"{60 * minutes:.0f} s" if minutes < 1 else f"{minutes:g} min"


def _recipe(plan: _Plan | None, method: str | None, name: str | None, checkpoint: str | None) -> Recipe:
    if plan is None:
        raise DataError("choose a table first")
    choice = next((one for one in plan.choices if one.method == method), plan.choices[0])
    asked, named = ((value or "").strip() or None for value in (checkpoint, name))
    if asked is not None and not is_id(asked):
        raise RecipeError(f"{asked!r} is no checkpoint of the Hub, as owner/name", "checkpoint")
    return recipe_for(plan.path, plan.guess, choice, asked, named)


def _checked(plan: _Plan | None, method: str | None) -> str:
    """What the check of the data finds, without the checkpoint."""
    with as_message():
        recipe = _recipe(plan, method, "check", "").override("data.max_rejects=0.99")
        rejects = Rejects()
        task, rows = resolved(recipe, rejects)
        found = check(rows, task, rejects)
    sizes = ", ".join(f"{split} {len(theirs):,}" for split, theirs in rows.items())
    if not found:
        return f'<div class="tl-answer"><p>Nothing is wrong with the data ({sizes}).</p></div>'
    cells = [
        [escape(one.severity), escape(one.message), escape(one.mend), escape(", ".join(one.examples[:3]))]
        for one in found
    ]
    return f'<div class="tl-answer"><p>{sizes}.</p>{table(["what", "found", "mend it", "rows"], cells)}</div>'


def _one(job: str | None) -> str:
    if not job:
        raise DataError("choose a training first")
    return job


def _names(jobs: Jobs) -> list[tuple[str, str]]:
    """The trainings, the newest first."""
    return [
        (f"{job.name}, {time.strftime('%d %b %H:%M', time.localtime(job.queued))}", job.id)
        for job in reversed(jobs.all())
    ]


def _shown(jobs: Jobs, job: str | None) -> str:
    """How far a training is, with its curves."""
    if not job:
        return _NO_JOB
    try:
        progress = jobs.progress(job)
    except TLError as error:
        return nothing_yet(str(error))
    found = progress.job
    told = [f'<p class="tl-headline" data-testid="status">{escape(found.name)}: {found.status}</p>']
    if found.error:
        told.append(f'<p class="tl-warning">{escape(found.error)}</p>')
    told.append(f"<p>{escape(progress.stage.capitalize())}{_left(progress)}.</p>")
    if progress.share is not None and found.status == "running":
        told.append(
            f'<div class="tl-bar"><span>this part</span><span class="tl-track"><span class="tl-fill" '
            f'style="width:{100 * progress.share:.1f}%"></span></span>'
            f'<span class="tl-share">{progress.share:.0%}</span></div>'
        )
    told.append(_curves(progress))
    if found.status == "finished":
        told.append(f"<p>{escape('; '.join(_scored(Run(found.folder))))}.</p><p>Press Try it to see what it says.</p>")
    return f'<div class="tl-answer" aria-live="polite">{"".join(told)}</div>'


def _left(progress: Progress) -> str:
    if progress.seconds_left is None or progress.job.status != "running":
        return ""
    seconds = progress.seconds_left
    return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"


def _curves(progress: Progress) -> str:
    drawn = ""
    if len(progress.losses) > 1:
        steps, losses = zip(*progress.losses, strict=True)
        drawn += charts.lines({"loss": (steps, losses)}, "step", "loss")
    scored = [one for one in progress.scores if progress.main_metric in one]
    if scored:
        points = [one["epoch"] for one in scored], [one[progress.main_metric] for one in scored]
        drawn += charts.lines({progress.main_metric: points}, "epoch", f"validation: {progress.main_metric}")
    return f'<div class="tl-charts">{drawn}</div>' if drawn else ""


def _scored(run: Run) -> tuple[str, str]:
    """The main score of the test rows with its interval, and the verdict."""
    results = run.results()
    value = results["splits"]["test"]["metrics"][results["main_metric"]]
    interval = f" [{value['low']:.3g}, {value['high']:.3g}]" if "low" in value else ""
    return f"{results['main_metric']} {value['value']:.3g}{interval}", results.get("verdict", "")


def _runs(jobs: Jobs) -> str:
    """All runs with their scores, the newest first."""
    rows = []
    for run in reversed(all_runs(jobs.root)):
        try:
            recipe = run.recipe()
            scored = _scored(run) if run.is_finished else ("", "")
            cells = [recipe.name, run.folder.name, run.status, recipe.task.kind, recipe.method.kind, *scored]
        except (TLError, KeyError) as error:
            cells = [run.folder.parent.name, run.folder.name, f"damaged: {error}", "", "", "", ""]
        rows.append([escape(cell) for cell in cells])
    if not rows:
        return nothing_yet("No run yet.")
    return table(["run", "begun", "status", "task", "method", "test score", "verdict"], rows)
