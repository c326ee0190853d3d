"""Every recipe: short, declarative, runnable as a script, and run here for two steps."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Answer, review_rows, write_jsonl

RECIPES = sorted((ROOT / "recipes").glob("*.py"))
STEPS = ["training.epochs=0.01", "data.rows=12"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_short_declaration_with_its_cost(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 40
    tree = ast.parse(source)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
    docstring = ast.get_docstring(tree) or ""
    for word in ("Command", "Cost", "Expect"):
        assert re.search(rf"^{word} {{2,}}\S", docstring, re.MULTILINE), word


HUB_COLUMNS = {
    "summarization_t5": ("text", "summary"),
    "summarization_bart": ("dialogue", "summary"),
    "translation_t5": ("english", "non_english"),
    "labels_t5": ("text", "label"),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(
    path: Path,
    tiny_bert: Path,
    tiny_t5: Path,
    tiny_bart: Path,
    own_runs: Path,
    tmp_path: Path,
    command: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = list(STEPS)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{**row, "summary": "the film"} for row in review_rows(60)])
    if path.stem == "classification":
        words += [f"data.path={rows}"]
    elif path.stem.startswith("essays"):
        grades = {"negative": 1, "positive": 3}
        graded = [{**row, "target": grades[row["target"]]} for row in review_rows(60)]
        words += [f"data.path={write_jsonl(tmp_path / 'essays.jsonl', graded)}", "task.max_length=64"]
        if path.stem == "essays_modernbert":
            words += [f"checkpoint={tiny_bert}"]
    elif path.stem == "sentiment_bert":
        folder = tmp_path / "hub"
        folder.mkdir()
        for seed, split in enumerate(("train", "validation", "test")):
            named = [{"text": row["text"], "label": row["target"][:3]} for row in review_rows(30, seed)]
            write_jsonl(folder / f"{split}.jsonl", named)
        words += [f"data.name={folder}", f"checkpoint={tiny_bert}"]
    elif path.stem in ("subjects", "tldr", "simplification_t5"):
        summed = [{**row, "target": "the film"} for row in review_rows(60)]
        words += [f"data.path={write_jsonl(tmp_path / 'texts.jsonl', summed)}"]
    elif path.stem in HUB_COLUMNS:
        folder = tmp_path / "hub"
        folder.mkdir()
        text, target = HUB_COLUMNS[path.stem]
        for seed, split in enumerate(("train", "validation", "test")):
            named = [{"id": row["text"], text: row["text"], target: "the film"} for row in review_rows(30, seed)]
            write_jsonl(folder / f"{split}.jsonl", named)
        checkpoint = tiny_bart if path.stem == "summarization_bart" else tiny_t5
        words += [f"data.name={folder}", f"checkpoint={checkpoint}", "task.max_length=64", "task.max_new_tokens=8"]
    if path.stem == "simplification_t5":
        words += [f"checkpoint={tiny_t5}", "task.max_length=64", "task.max_new_tokens=8"]
    if path.stem == "translation_t5":
        words += ["data.config=null"]
    if path.stem in ("translation_t5", "labels_t5", "simplification_t5"):
        words += ["task.prefix=summarize: "]
    if path.stem in ("sentiment_two_stages", "essays"):
        words[0:1] = ["training.epochs=2", "method.head_epochs=1"]
    if path.stem == "summary_highlights":
        words += ["data.rows=3"]
    if path.stem == "distill":
        shape = [f"checkpoint={tiny_bert}", "method.n_blocks=1", "task.max_length=64"]
        taught = command(path.with_name("sentiment.py"), *words, *shape)
        words += [f"training.distillation.teacher={taught.out.splitlines()[-1]}", "task.max_length=64"]
        words += [f"checkpoint={tiny_bert}", "checkpoint.blocks=1"]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    answer = command(path, *words)
    assert answer.status == 0, answer.err
    folder = Path(answer.out.splitlines()[-1])
    assert folder.parent.parent == own_runs
    results = json.loads((folder / "results.json").read_text())
    assert results["main_metric"] in results["splits"]["test"]["metrics"]
    if path.stem == "short_answers":
        assert set(results["splits"]) == {"test", "test_unseen"}
        assert set(results["splits"]["test_unseen"]["baselines"]) == set(results["baselines"])
        assert results["splits"]["test_unseen"]["verdict"].split()[0] in ("better", "worse", "undecided")


def test_the_short_answers_are_what_their_page_says() -> None:
    folder = ROOT / "tl_nlp" / "samples" / "short_answers"
    splits = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")
    }
    assert set(splits) == {"train", "validation", "test", "test_unseen"}
    rows = [row for split in splits.values() for row in split]
    assert len(rows) >= 400
    assert len({row["group"] for row in rows}) >= 12
    assert len({row["id"] for row in rows}) == len({(row["text"].lower(), row["group"]) for row in rows}) == len(rows)
    assert {row["target"] for row in rows} == set(range(6))
    seen = {row["group"] for name in ("train", "validation", "test") for row in splits[name]}
    assert not seen & {row["group"] for row in splits["test_unseen"]}
    page = (folder / "README.md").read_text()
    assert "not" in page
    assert "teachers" in page
    for row in rows:
        question, answer = row["pair"], page
        assert question.split("?")[0][:40] in answer
