"""The report, in a real browser: it stands alone, says the verdict first, and fits a phone."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Answer, review_rows, tiny_recipe, write_jsonl

from tl_nlp import Run, train

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def run(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("report")
    rows = [{**row, "text": f"{row['text']} <script>alert('x')</script>"} for row in review_rows(400)]
    recipe = tiny_recipe(tiny_bert, write_jsonl(folder / "rows.jsonl", rows))
    return train(recipe.override("name=reviews", "training.lr=1e-6"), root=folder / "runs")


@pytest.fixture
def page(run: Run) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium here; .ci/run installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(run.report_file.as_uri())
        yield page
        assert asked == [run.report_file.as_uri()]
        assert said == []
        browser.close()


def test_the_first_line_is_the_verdict(run: Run, page: Any) -> None:
    verdict = run.results()["verdict"]
    assert page.locator("body").inner_text().splitlines()[0] == verdict[0].upper() + verdict[1:]


def test_it_holds_what_a_reader_asks_for(run: Run, page: Any) -> None:
    text = page.locator("body").inner_text()
    assert [heading.inner_text() for heading in page.locator("h2").all()] == [
        "Against the baselines",
        "Scores",
        "The data",
        "Labels",
        "How far to trust an answer's probability",
        "Where it is worst",
        "The most confident mistakes",
        "The training",
        "How to do it again",
    ]
    for words in ("majority", "tfidf", "frozen", "precision", "Expected calibration error", "MB at most", "tl-nlp"):
        assert words in text
    assert "Negative transfer?" in text  # this rate teaches nothing
    assert page.locator("svg").count() >= 6
    assert "<script>alert('x')</script>" in text  # shown, not run


def test_it_fits_a_phone(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_report_is_written_again(run: Run, command: Callable[..., Answer]) -> None:
    before = run.report_file.read_text("utf-8")
    run.report_file.unlink()
    assert command("report", run.folder).out.strip() == str(run.report_file)
    assert run.report_file.read_text("utf-8") == before


@pytest.mark.parametrize("task", ["multilabel", "grading", "highlights"])
def test_every_task_has_a_report(task: str, tiny_bert: Path, tmp_path: Path) -> None:
    targets = {"multilabel": "good|film", "grading": "{}", "highlights": "the plot"}
    rows = [{"text": f"The film {n} is good. It was dull.", "target": targets[task].format(n % 5)} for n in range(60)]
    run = train(tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows), task))
    assert "Against the baselines" in run.report_file.read_text("utf-8")


def test_a_summarizer_has_a_report(tiny_t5: Path, tmp_path: Path) -> None:
    rows = [{**row, "target": " ".join(row["text"].split()[:3])} for row in review_rows(40)]
    task = {"kind": "summarization", "max_length": 64, "max_new_tokens": 6}
    run = train(tiny_recipe(tiny_t5, write_jsonl(tmp_path / "rows.jsonl", rows), task))
    assert set(run.results()["baselines"]) == {"lead", "textrank"}
    assert "Against the baselines" in run.report_file.read_text("utf-8")
