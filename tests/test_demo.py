"""The page in a real browser: type a text, press the button, read the answer."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CHROMIUM, ROOT, opened_page, review_rows, tiny_recipe, write_jsonl

from tl_nlp import Run, train

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium here; .ci/run installs it")


@pytest.fixture(scope="module")
def runs(tiny_bert: Path, tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    rows = review_rows(240)
    grades = [{**row, "target": "5" if row["target"] == "positive" else "1", "pair": "is it good ?"} for row in rows]
    tags = [{**row, "target": f"{row['target']}|film"} for row in rows]
    papers = [
        {"text": f"The film was good. It is the plot {n}. It was dull.", "target": f"it is the plot {n}"}
        for n in range(60)
    ]
    made = []
    for name, task, theirs in (
        ("labels", "classification", rows),
        ("tags", {"kind": "multilabel", "max_length": 64, "threshold": 0.5}, tags),
        ("grades", "grading", grades),
        ("sentences", {"kind": "highlights", "n_sentences": 1}, papers),
    ):
        recipe = tiny_recipe(
            tiny_bert, write_jsonl(root / f"{name}.jsonl", theirs), task, name=name, note=f"Note {name}."
        )
        made.append(train(recipe.override("training.epochs=4", "training.lr=3e-3"), root=root))
    numbered = [{**row, "target": "film 42"} for row in rows]
    task = {"kind": "summarization", "max_length": 64, "max_new_tokens": 8}
    recipe = tiny_recipe(tiny_t5, write_jsonl(root / "written.jsonl", numbered), task, name="written")
    made.append(train(recipe.override("training.epochs=4", "training.lr=1e-2"), root=root))
    return made


@pytest.fixture(scope="module")
def page(runs: list[Run]) -> Iterator[object]:
    """The page as `python app.py` serves it, of the newest finished run of each recipe."""
    with opened_page(ROOT / "app.py", TL_NLP_RUNS=str(runs[0].folder.parent.parent)) as page:
        yield page


def ask(page, tab: str, text: str):
    """Types a text into a tab, presses the button and returns the tab's panel."""
    page.get_by_role("tab", name=tab, exact=True).click()
    panel = page.get_by_role("tabpanel").filter(has=page.locator("visible=true")).locator("visible=true").first
    panel.get_by_label("Text", exact=True).fill(text)
    panel.get_by_role("button", name="Predict", exact=True).click()
    return panel


def test_there_is_a_tab_for_each_run(page) -> None:
    page.get_by_role("tab").first.wait_for()
    assert sorted(tab.inner_text() for tab in page.get_by_role("tab").all()) == [
        "grades",
        "labels",
        "sentences",
        "tags",
        "written",
    ]


def test_a_label_with_its_probabilities(page) -> None:
    from playwright.sync_api import expect

    panel = ask(page, "labels", "the film was lovely")
    expect(panel.get_by_test_id("label-output-value")).to_have_text("positive")
    panel = ask(page, "labels", "the film was awful")
    expect(panel.get_by_test_id("label-output-value")).to_have_text("negative")
    expect(panel).to_contain_text("%")


def test_several_labels(page) -> None:
    from playwright.sync_api import expect

    panel = ask(page, "tags", "the film was lovely")
    expect(panel.get_by_label("Labels")).to_have_value("film, positive")


def test_grades(page) -> None:
    from playwright.sync_api import expect

    panel = ask(page, "grades", "the film was lovely")
    expect(panel.locator("table").first).to_contain_text("score")
    expect(panel).to_contain_text("Note grades.")
    expect(panel).to_contain_text("of the 168 graded texts have a lower grade")
    expect(panel.locator("svg").get_by_text("this text")).to_be_visible()


def test_the_sentences_that_moved_a_grade(page) -> None:
    from playwright.sync_api import expect

    panel = ask(page, "grades", "The film was lovely. The plot is some more.")
    panel.get_by_text("Which sentences moved the grade?").click()
    panel.get_by_role("button", name="Show", exact=True).click()
    expect(panel.get_by_role("row", name=re.compile(r"^\+\d\.\d\d The film was lovely"))).to_be_visible()


def test_the_chosen_sentences_are_marked(page) -> None:
    from playwright.sync_api import expect

    panel = ask(page, "sentences", "The film was good. It is the plot 7. It was dull.")
    expect(panel.get_by_label("Summary")).to_have_value("It is the plot 7.")
    expect(panel.get_by_text("chosen", exact=True)).to_be_visible()
    marked = panel.get_by_text("chosen", exact=True).locator("xpath=..")
    expect(marked).to_contain_text("It is the plot 7.")
    expect(marked).not_to_contain_text("dull")


def test_what_the_text_does_not_have_is_marked(page) -> None:
    from playwright.sync_api import expect

    panel = ask(page, "written", "the film was good")
    expect(panel.get_by_label("Summary")).to_have_value("film 42")
    marked = panel.get_by_text("not in the text", exact=True).locator("xpath=..")
    expect(marked).to_contain_text("42")
    expect(marked).not_to_contain_text("film")
    panel = ask(page, "written", "the film was good 42")
    expect(panel.get_by_text("not in the text", exact=True)).to_have_count(0)


def test_an_empty_text_is_a_message_and_not_a_crash(page) -> None:
    from playwright.sync_api import expect

    ask(page, "labels", "  ")
    expect(page.get_by_text("the text is empty")).to_be_visible()


def test_an_artifact_alone_is_a_page(runs: list[Run]) -> None:
    from tl_nlp.demo.page import build

    labels = [block.label for block in build([runs[0].model_dir]).blocks.values() if hasattr(block, "label")]
    assert "labels" in labels


def test_examples_fill_the_text(page) -> None:
    panel = page.get_by_role("tabpanel").locator("visible=true").first
    page.get_by_role("tab", name="labels", exact=True).click()
    row = panel.locator(".gallery-item, tr.tr-body").first
    row.click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('textarea')].some(area => area.value.split(' ').length > 3)"
    )
    assert row.inner_text().strip()


def test_a_file_of_texts_becomes_a_file_of_predictions(page, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text("id,text\na,the film was lovely\nb,the film was awful\n")
    page.get_by_role("tab", name="labels", exact=True).click()
    panel = page.get_by_role("tabpanel").locator("visible=true").first
    panel.get_by_role("button", name="A file of texts").click()
    panel.locator("input[type=file]").first.set_input_files(str(file))
    panel.get_by_text("in.csv").first.wait_for()
    panel.get_by_role("button", name="Predict the file").click()
    with page.expect_download() as download:
        panel.locator("a[download='predictions.csv']").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["a", "positive"], ["b", "negative"]]
