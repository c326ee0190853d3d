"""The page: a tab for each run, and what goes over all of them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tl_nlp.demo.tab_compare import add_compare
from tl_nlp.demo.tab_file import add_file
from tl_nlp.demo.tab_label import add_label
from tl_nlp.demo.tab_report import add_report
from tl_nlp.demo.tab_train import add_train
from tl_nlp.demo.tab_try import add_try
from tl_nlp.jobs import Jobs
from tl_nlp.run import is_export, results_of
from tl_nlp.serving import Row, Served, Service
from tl_nlp.types import as_json

_KEPT = 3600  # seconds that a file stays which somebody uploaded or made


def build(service: Service, jobs: Jobs | None = None) -> gr.Blocks:
    """The page of what the service serves; with `jobs` trainings can be begun there."""
    with gr.Blocks(title="tl_nlp", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as page:
        with gr.Tabs():
            for served in service.served.values():
                with gr.Tab(served.name):
                    _add_run(service, served)
            if len(service.served) > 1 or jobs is not None:
                with gr.Tab("Compare"):
                    add_compare(service, page)
            if jobs is not None:
                with gr.Tab("Label"):
                    add_label(service, jobs, page)
                with gr.Tab("Train") as train:
                    add_train(service, jobs, page, train)

        def predict(
            text: str, pair: str | None = None, group: str | None = None, run: str | None = None
        ) -> dict[str, Any]:
            """One line of `tl-nlp predict`: a label with probabilities, labels, scores by trait, or a text."""
            return as_json(service.predict(run, Row(text, pair, group)), "0")

        gr.api(predict, api_name="predict")
    return page


def _add_run(service: Service, served: Served) -> None:
    recipe = served.recipe
    what = f"**{recipe.task.kind}**, {recipe.method.kind} on `{recipe.checkpoint.name}`."
    gr.Markdown(" ".join([what, _scores(results_of(served.folder)), recipe.note or ""]))
    with gr.Tabs():
        with gr.Tab("Try"):
            tried = add_try(service, served)
        # what it picks it shows itself; an export has nothing to explain by, and may be where torch is not
        if served.recipe.task.head != "select" and not is_export(served.folder):
            from tl_nlp.demo.tab_explain import add_explain

            with gr.Tab("Explain"):
                add_explain(service, served, tried)
        with gr.Tab("A file"):
            add_file(service, served)
        with gr.Tab("Report") as report:
            add_report(served, report)


def _scores(results: dict[str, Any]) -> str:
    if not results:
        return ""
    name = results["main_metric"]
    parts = [
        f"{name} {scores['metrics'][name]['value']:.3g} on {scores['rows']:,} rows ({split})"
        for split, scores in results["splits"].items()
    ]
    verdict = f" Verdict: {results['verdict']}." if "verdict" in results else ""
    return f"{'; '.join(parts)}.{verdict}"
