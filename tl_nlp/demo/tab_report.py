"""Report: what training has told of a run."""

from __future__ import annotations

from html import escape

import gradio as gr

from tl_nlp.demo.answers import nothing_yet
from tl_nlp.run import Run
from tl_nlp.serving import Served


def add_report(served: Served, tab: gr.Tab) -> None:
    report = gr.HTML(nothing_yet("The report comes here."), padding=False)
    tab.select(lambda: _framed(served), None, report, api_visibility="private", show_progress="hidden")


def _framed(served: Served) -> str:
    run = Run.find(served.folder)
    if run is None or not run.report_file.is_file():
        return nothing_yet("This is a model without its run, so there is no report; its README.md says what it is.")
    page = run.report_file.read_text("utf-8")
    # without rights of its own: a run may be a stranger's
    title = f"Report of {escape(served.name)}"
    return f'<iframe class="tl-report" title="{title}" sandbox="" srcdoc="{escape(page)}"></iframe>'
