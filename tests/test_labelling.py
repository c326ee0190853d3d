"""Labelling: which texts first, labels that survive, agreement, export, and the run that learns from them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import review_rows, tiny_recipe, write_jsonl
from sklearn.metrics import cohen_kappa_score

from tl_nlp import Predictor, Recipe, Run, train
from tl_nlp.data.files import Files
from tl_nlp.errors import DataError, RecipeError
from tl_nlp.labelling import STRATEGIES, Labelling, cohen_kappa, order, retrain_recipe, retraining
from tl_nlp.rows import fingerprint, resolved
from tl_nlp.tables import read_table


@pytest.fixture(scope="module")
def run(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("first")
    rows = [{**row, "author": f"writer {number}", "source": None} for number, row in enumerate(review_rows(80, seed=1))]
    data = Files(path=write_jsonl(folder / "rows.jsonl", rows), keep_together="author")
    return train(tiny_recipe(tiny_bert, data), root=folder)


@pytest.fixture
def texts() -> pa.Table:
    return pa.Table.from_pylist([{"id": f"t{n}", "text": row["text"]} for n, row in enumerate(review_rows(30, seed=2))])


@pytest.fixture
def labelling(tmp_path: Path, texts: pa.Table, run: Run) -> Labelling:
    return Labelling.create(tmp_path / "labels", texts, run.recipe())


# ---- strategies


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("n", [1, 7, 500])
def test_every_row_has_one_place(strategy: str, n: int, draw: np.random.Generator) -> None:
    seen = {"probabilities": draw.dirichlet(np.ones(4), 60), "embeddings": draw.normal(size=(60, 8))}
    ordered = order(strategy, 60, **seen, n=n, seed=3)
    assert sorted(ordered.tolist()) == list(range(60))
    assert (order(strategy, 60, **seen, n=n, seed=3) == ordered).all()
    assert len(order(strategy, 0)) == 0


@pytest.mark.parametrize("strategy", ["k_center", "diverse_margin"])
def test_equal_rows_are_chosen_once_each(strategy: str) -> None:
    seen = {"probabilities": np.full((40, 2), 0.5), "embeddings": np.ones((40, 3), np.float32) * 0.1}
    assert sorted(order(strategy, 40, **seen, n=20).tolist()) == list(range(40))


def test_the_least_sure_come_first() -> None:
    probabilities = np.asarray([[0.98, 0.01, 0.01], [0.34, 0.33, 0.33], [0.5, 0.5, 0.0], [0.6, 0.2, 0.2]])
    assert order("entropy", 4, probabilities=probabilities).tolist() == [1, 3, 2, 0]
    assert order("margin", 4, probabilities=probabilities).tolist() == [2, 1, 3, 0]


def test_random_is_drawn_from_its_seed() -> None:
    assert (order("random", 50, seed=1) == order("random", 50, seed=1)).all()
    assert (order("random", 50, seed=1) != order("random", 50, seed=2)).any()
    seen = {"probabilities": np.full((50, 2), 0.5), "embeddings": np.ones((50, 2))}
    assert (order("random", 50, seed=1, **seen) == order("random", 50, seed=1)).all()


def test_k_center_visits_every_cluster_that_nothing_is_labelled_of(draw: np.random.Generator) -> None:
    centres = np.eye(6) * 20
    embeddings = np.repeat(centres, 30, axis=0) + draw.normal(size=(180, 6))
    assert set(order("k_center", 180, embeddings=embeddings, n=6)[:6] // 30) == set(range(6))
    labelled = centres[:2] + draw.normal(size=(2, 6))
    first = order("k_center", 180, embeddings=embeddings, labelled=labelled, n=4)[:4]
    assert set(first // 30) == {2, 3, 4, 5}


def test_k_center_is_the_greedy_one_of_the_paper(draw: np.random.Generator) -> None:
    rows, labelled = draw.normal(size=(50, 4)), draw.normal(size=(3, 4))
    centres, expected = list(labelled), []
    for _ in range(10):
        distance = np.min([np.linalg.norm(rows - centre, axis=1) for centre in centres], axis=0)
        expected.append(int(distance.argmax()))
        centres.append(rows[expected[-1]])
    assert order("k_center", 50, embeddings=rows, labelled=labelled, n=10)[:10].tolist() == expected


def test_diverse_margin_takes_unsure_rows_of_all_clusters(draw: np.random.Generator) -> None:
    """Of 5 clusters all unsure rows; margin alone stays in the one that is least sure."""
    embeddings = np.repeat(np.eye(6) * 20, 30, axis=0) + draw.normal(size=(180, 6))
    lead = np.repeat([0.02, 0.04, 0.06, 0.08, 0.1, 0.9], 30)  # of the last cluster the model is sure
    probabilities = np.stack([0.5 + lead / 2, 0.5 - lead / 2], axis=1)
    seen = {"probabilities": probabilities, "embeddings": embeddings}
    assert set(order("margin", 180, **seen)[:15] // 30) == {0}
    assert set(order("diverse_margin", 180, **seen, n=15)[:15] // 30) == {0, 1, 2, 3, 4}


def test_what_a_strategy_lacks_is_told() -> None:
    with pytest.raises(RecipeError, match="no strategy 'bald'; there are: diverse_margin, margin"):
        order("bald", 3)
    with pytest.raises(DataError, match="margin reads probabilities of all 3 rows; there are none"):
        order("margin", 3)
    with pytest.raises(DataError, match="k_center reads embeddings of all 3 rows; there are those of 2"):
        order("k_center", 3, embeddings=np.ones((2, 2)))


# ---- the folder


def test_a_label_a_skip_and_an_undo_survive_a_restart(labelling: Labelling) -> None:
    first = labelling.next("ann")
    assert first is not None and first.pair is None
    labelling.label("ann", first.id, "positive")
    second = labelling.next("ann")
    labelling.skip("ann", second.id)
    third = labelling.next("ann")
    labelling.label("ann", third.id, "negative")
    assert labelling.undo("ann") == third
    for opened in (labelling, Labelling(labelling.folder)):
        assert opened.labels_by("ann") == {first.id: "positive"}
        assert opened.next("ann") == third
        assert opened.next("bob") == first
        assert opened.next("bob", fresh=True) == second
        assert opened.labellers == ["ann"] and opened.n_torn == 0 and len(opened) == 30
    acts = [json.loads(line) for line in (labelling.folder / "labels.jsonl").read_text().splitlines()]
    assert [act["act"] for act in acts] == ["label", "skip", "label", "undo"]
    assert acts[0] == {"act": "label", "labeller": "ann", "id": first.id, "label": "positive", "when": acts[0]["when"]}
    assert labelling.undo("ann") == second and labelling.undo("ann") == first
    assert labelling.undo("ann") is None and labelling.undo("nobody") is None
    assert Labelling(labelling.folder).labellers == []


def test_what_was_skipped_comes_again_at_the_end(labelling: Labelling) -> None:
    skipped = [labelling.next("ann").id]
    labelling.skip("ann", skipped[0])
    skipped.append(labelling.next("ann").id)
    labelling.skip("ann", skipped[1])
    for _ in range(28):
        labelling.label("ann", labelling.next("ann").id, "positive")
    assert labelling.next("ann").id == skipped[0]
    labelling.skip("ann", skipped[0])
    assert labelling.next("ann").id == skipped[1]
    for text_id in skipped:
        labelling.label("ann", text_id, "negative")
    assert labelling.next("ann") is None and labelling.next("bob", fresh=True) is None


def test_a_label_given_again_takes_the_others_place_until_it_is_undone(labelling: Labelling) -> None:
    labelling.label("ann", "t3", "positive")
    labelling.label("ann", "t3", "negative")
    assert labelling.labels_by("ann") == {"t3": "negative"}
    labelling.undo("ann")
    assert labelling.labels_by("ann") == {"t3": "positive"}


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_passed_over(labelling: Labelling, cut: int) -> None:
    labelling.label("ann", "t1", "positive")
    log = labelling.folder / "labels.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:cut])
    opened = Labelling(labelling.folder)
    assert opened.n_torn == 1 and opened.labels_by("ann") == {"t1": "positive"}
    opened.label("ann", "t2", "negative")
    assert Labelling(labelling.folder).labels_by("ann") == {"t1": "positive", "t2": "negative"}


def test_a_disk_that_is_full_is_told_and_loses_nothing(labelling: Labelling, monkeypatch: pytest.MonkeyPatch) -> None:
    labelling.label("ann", "t1", "positive")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(DataError, match="nothing was recorded: No space left on device"):
            labelling.label("ann", "t2", "positive")
    for opened in (labelling, Labelling(labelling.folder)):
        assert opened.labels_by("ann") == {"t1": "positive"}


def test_a_log_of_anything_still_opens(labelling: Labelling) -> None:
    labelling.label("ann", "t1", "positive")
    strange = ["[]", "7", '{"act": "undo", "labeller": "eve", "id": "t1"}', '{"labeller": ["a"], "act": "x"}', "\udc80"]
    with (labelling.folder / "labels.jsonl").open("ab") as file:
        file.write("\n".join([*strange, ""]).encode("utf-8", "surrogateescape"))
        file.write(b'{"act": "label", "labeller": "ann", "id": "gone", "label": "positive"}\n')
        file.write(b'{"act": "label", "labeller": "ann", "id": "t2", "label": "no longer one"}\n')
    opened = Labelling(labelling.folder)
    assert opened.n_torn == len(strange) + 2 and opened.labels_by("ann") == {"t1": "positive"}


def test_what_cannot_be_labelled_is_refused(
    labelling: Labelling, texts: pa.Table, run: Run, tiny_bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no label 'maybe'; there are: negative, positive"):
        labelling.label("ann", "t1", "maybe")
    with pytest.raises(DataError, match="no text 'x' is here"):
        labelling.label("ann", "x", "positive")
    for name in ("", "=1+1", "a\nb", "a,b", "x" * 41, "../x", "ann "):
        with pytest.raises(DataError, match="1 to 40 letters"):
            labelling.next(name)
        with pytest.raises(DataError, match="1 to 40 letters"):
            labelling.label(name, "t1", "positive")
    labelling.label("Zoë 2", "t1", "positive")
    with pytest.raises(DataError, match="is not empty"):
        Labelling.create(labelling.folder, texts, run.recipe())
    with pytest.raises(DataError, match="holds no labelling"):
        Labelling(tmp_path / "nowhere")
    with pytest.raises(DataError, match="1 ids are there more than once, as 't0'"):
        Labelling.create(tmp_path / "twice", pa.concat_tables([texts, texts.slice(0, 1)]), run.recipe())
    with pytest.raises(DataError, match="none of the 1 rows has a text"):
        Labelling.create(tmp_path / "empty", pa.table({"text": [" "]}), run.recipe())
    with pytest.raises(RecipeError, match="names no labels to choose from"):
        Labelling.create(tmp_path / "none", texts, tiny_recipe(tiny_bert, tmp_path / "rows.jsonl"))
    several = tiny_recipe(tiny_bert, tmp_path / "rows.jsonl", "multilabel")
    with pytest.raises(RecipeError, match="task multilabel asks for something else"):
        Labelling.create(tmp_path / "none", texts, several)
    assert not (tmp_path / "none").exists()


def test_empty_broken_and_equal_texts_are_left_out(tmp_path: Path, run: Run) -> None:
    table = pa.table({"text": ["good film", "", "good film", None, "a\0b", "dull plot"], "author": [None] * 6})
    labelling = Labelling.create(tmp_path / "labels", table, run.recipe())
    assert len(labelling) == 2
    assert json.loads((tmp_path / "labels" / "labelling.json").read_text())["left_out"] == 4


# ---- two labellers


def test_kappa_is_that_of_sklearn(draw: np.random.Generator) -> None:
    for n_labels in (2, 3, 7):
        one = draw.integers(0, n_labels, 200)
        other = np.where(draw.random(200) < 0.6, one, draw.integers(0, n_labels, 200))
        ours = cohen_kappa([str(n) for n in one], [str(n) for n in other])
        assert ours == pytest.approx(cohen_kappa_score(one, other))
        weights = draw.integers(0, 3, 200)
        expected = cohen_kappa_score(one, other, sample_weight=weights)
        assert ours.under(weights[None].astype(float))[0] == pytest.approx(expected)
    assert cohen_kappa(["a", "a"], ["a", "a"]) == 1.0
    assert cohen_kappa(["a", "b"], ["b", "a"]) == -1.0


def test_two_labellers_and_how_far_they_agree(labelling: Labelling, draw: np.random.Generator) -> None:
    names = np.asarray(["negative", "positive"])
    ann, bob = names[draw.integers(0, 2, 30)], names[draw.integers(0, 2, 30)]
    for number in range(30):
        labelling.label("ann", f"t{number}", ann[number])
        if number < 20:
            labelling.label("bob", f"t{number}", bob[number])
    labelling.skip("cem", "t1")
    (both,) = labelling.agreement()
    assert both.labellers == ("ann", "bob") and both.n_texts == 20
    assert both.kappa["value"] == pytest.approx(cohen_kappa_score(ann[:20], bob[:20]))
    assert both.kappa["low"] < both.kappa["value"] < both.kappa["high"]
    assert both.equal["value"] == pytest.approx(np.mean(ann[:20] == bob[:20]))
    unlike = [f"t{n}" for n in range(20) if ann[n] != bob[n]]
    assert [row["id"] for row in labelling.disagreements()] == unlike
    row = labelling.disagreements()[0]
    assert row["target"] == "" and {row["label by ann"], row["label by bob"]} == set(names)
    assert "label by cem" not in row
    labelling.label("cem", unlike[0], "positive")
    assert labelling.disagreements()[0]["target"] == "positive"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_an_export_opens_and_runs_no_formula(tmp_path: Path, tiny_bert: Path, suffix: str) -> None:
    evil = ["=HYPERLINK(1)", "+1", "-2", "@sum", 'quoted "text", of\ntwo lines', "plain"]
    recipe = tiny_recipe(tiny_bert, tmp_path / "rows.jsonl", {"kind": "classification", "labels": ["-1", "=1+1"]})
    labelling = Labelling.create(tmp_path / "labels", pa.table({"text": evil}), recipe)
    with pytest.raises(DataError, match="no text has a label yet"):
        labelling.export(tmp_path / "out.csv")
    for text_id in "012345":
        labelling.label("ann", text_id, "=1+1")
    labelling.label("bob", "0", "-1")
    file = tmp_path / f"out{suffix}"
    assert labelling.export(file) == 6
    table = read_table(file)
    assert table.column_names == ["id", "text", "target", "agreed", "label by ann", "label by bob"]
    cells = [str(value) for row in table.to_pylist() for value in row.values()]
    if suffix == ".csv":
        assert not any(cell[:1] in ("=", "+", "-", "@") for cell in cells)
        assert table["text"].to_pylist() == [f"'{text}" for text in evil[:4]] + evil[4:]
    else:
        assert table["text"].to_pylist() == evil and table["target"].to_pylist() == ["", *["=1+1"] * 5]
    with pytest.raises(DataError, match=r"written as \.jsonl"):
        labelling.export(tmp_path / "out.xlsx")


# ---- the model's part


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reorder_asks_for_what_the_strategy_puts_first(labelling: Labelling, run: Run, strategy: str) -> None:
    predictor = Predictor.load(run)
    labelling.label("ann", "t7", "positive")
    labelling.reorder(
        None if strategy == "random" else predictor, strategy, n=5, trained=resolved(run.recipe())[1]["test"]
    )
    opened = Labelling(labelling.folder)
    assert opened.next("bob").id == "t7" and labelling.next("bob").id == "t7"
    queue = []
    while example := opened.next("ann"):
        queue.append(example)
        opened.label("ann", example.id, "negative")
    assert len({one.id for one in queue}) == 29
    if strategy in ("margin", "entropy"):
        shares = [max(one.probabilities.values()) for one in predictor([one.text for one in queue])]
        assert np.argmin(shares) == 0 and shares == pytest.approx(sorted(shares), abs=1e-4)


def test_a_model_with_other_labels_orders_nothing(tmp_path: Path, texts: pa.Table, run: Run, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, tmp_path / "rows.jsonl", {"kind": "classification", "labels": ["a", "b"]})
    labelling = Labelling.create(tmp_path / "labels", texts, recipe)
    with pytest.raises(DataError, match="labelled with a, b, and the model's are negative, positive"):
        labelling.reorder(Predictor.load(run), "margin")
    with pytest.raises(DataError, match="the model's are none"):
        labelling.reorder(None, "k_center")
    with pytest.raises(RecipeError, match="no strategy 'best'"):
        labelling.reorder(None, "best")


def test_an_adapter_gives_embeddings_too(labelling: Labelling, tmp_path: Path, tiny_bert: Path, run: Run) -> None:
    adapted = train(tiny_recipe(tiny_bert, run.recipe().data, method="lora"), root=tmp_path)
    labelling.reorder(Predictor.load(adapted), "diverse_margin", n=3)
    assert labelling.next("ann") is not None


# ---- the next run


def splits_of(recipe: Recipe) -> dict[str, str]:
    return {split: fingerprint(rows) for split, rows in resolved(recipe)[1].items()}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_retraining_learns_the_new_rows_and_keeps_the_tests(
    labelling: Labelling, run: Run, tmp_path: Path, suffix: str
) -> None:
    while example := labelling.next("ann"):
        labelling.label("ann", example.id, "positive")
    labelling.label("bob", "t0", "negative")  # a draw
    labelling.export(tmp_path / f"labels{suffix}")
    recipe = retrain_recipe(run, tmp_path / f"labels{suffix}")
    before, after = splits_of(run.recipe()), splits_of(recipe)
    assert before["test"] == after["test"] and before["validation"] == after["validation"]
    old, new = resolved(run.recipe())[1], resolved(recipe)[1]
    assert new["train"]["text"][: len(old["train"])] == old["train"]["text"][:]
    assert new["train"]["id"][len(old["train"]) :] == [f"t{n}" for n in range(1, 30)]
    assert new["test"]["id"][:] == old["test"]["id"][:]
    if suffix == ".jsonl":
        again = train(recipe, root=tmp_path)
        assert again.data()["splits"]["test"]["fingerprint"] == run.data()["splits"]["test"]["fingerprint"]
        assert again.data()["splits"]["train"]["rows"] == len(old["train"]) + 29
        assert again.recipe().checkpoint == run.recipe().checkpoint and again.is_finished
        # the same labels once more, one of them changed
        labelling.label("ann", "t1", "negative")
        labelling.export(tmp_path / "labels.jsonl")
        made = retraining(again, tmp_path / "labels.jsonl")
        assert made[1:] == (0, 1, 0, 1)
        assert len(resolved(made.recipe)[1]["train"]) == len(new["train"])
        assert made.recipe.data.train != recipe.data.train and recipe.data.train.is_file()


def test_what_a_test_has_is_not_learned(run: Run, tmp_path: Path) -> None:
    splits = resolved(run.recipe())[1]
    rows = [{"id": f"n{n}", "text": row["text"], "target": "positive"} for n, row in enumerate(review_rows(3, seed=9))]
    leaks = [
        {"id": "a", "text": splits["test"]["text"][0].upper(), "target": "positive"},
        {"id": "b", "text": splits["validation"]["text"][0], "target": "positive"},
        {"id": "c", "text": "fine new words", "target": "positive", "author": splits["test"]["keep_together"][0]},
        {"id": "d", "text": "no label", "target": ""},
        {"id": splits["test"]["id"][1], "text": "good other words", "target": "negative"},
    ]
    made = retraining(run, write_jsonl(tmp_path / "labels.jsonl", rows + leaks))
    assert made[1:] == (4, 0, 3, 1)
    assert splits_of(made.recipe)["test"] == run.data()["splits"]["test"]["fingerprint"]
    learned = resolved(made.recipe)[1]
    assert learned["train"]["text"][-1] == "good other words" and learned["test"]["id"][:] == splits["test"]["id"][:]
    with pytest.raises(DataError, match="validation and tests have all of its 1 labelled texts"):
        retraining(run, write_jsonl(tmp_path / "leak.jsonl", leaks[:1]))


def test_the_next_run_reads_the_files_that_this_one_reads(tmp_path: Path, tiny_bert: Path) -> None:
    numbers = {"negative": "0", "positive": "1"}
    rows = [
        {"review": row["text"], "label": numbers[row["target"]], "topic": f"{n % 20}", "seen": n, "from": "web"}
        for n, row in enumerate(review_rows(60, seed=6))
    ]
    choices = {
        "text": "review",
        "target": "label",
        "group": "topic",
        "keep_together": "topic",
        "where": {"from": "web"},
    }
    data = Files(path=write_jsonl(tmp_path / "rows.jsonl", rows), values={v: k for k, v in numbers.items()}, **choices)
    task = {"kind": "classification", "labels": list(numbers)}
    first = Run.create(tiny_recipe(tiny_bert, data, task), tmp_path / "runs")
    labelling = Labelling.create(
        tmp_path / "labels", pa.table({"review": ["a fine film", "dull"], "topic": [None, "3"]}), first.recipe()
    )
    labelling.label("ann", "0", "positive")
    labelling.label("ann", "1", "negative")
    labelling.export(tmp_path / "labels.jsonl")
    made = retraining(first, tmp_path / "labels.jsonl").recipe
    before, after = resolved(first.recipe())[1], resolved(made)[1]
    assert splits_of(made)["test"] == splits_of(first.recipe())["test"]
    added = after["train"]["text"][len(before["train"]) :]
    assert added == (["a fine film"] if "3" in [*before["test"]["group"], *before["validation"]["group"]] else added)
    assert (made.data.text, made.data.target, made.data.group, made.data.keep_together) == (
        "review", "label", "topic", "topic",
    )  # fmt: skip
    assert made.data.values == data.values and set(after["train"]["target"]) == set(numbers)
    assert read_table(made.data.test)["label"].to_pylist() == before["test"]["target"][:]


def test_values_that_are_labels_too_are_replaced_once(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"text": row["text"], "target": "12"[n % 2]} for n, row in enumerate(review_rows(60, seed=7))]
    data = Files(path=write_jsonl(tmp_path / "rows.jsonl", rows), values={"1": "2", "2": "3"})
    recipe = tiny_recipe(tiny_bert, data, {"kind": "classification", "labels": ["2", "3"]})
    first = Run.create(recipe, tmp_path / "runs")
    made = retrain_recipe(first, write_jsonl(tmp_path / "new.jsonl", [{"text": "one more", "target": "2"}]))
    assert splits_of(made)["test"] == splits_of(recipe)["test"]
    assert resolved(made)[1]["train"]["target"][-1] == "2"


def test_apostrophes_of_an_export_are_taken_off_again(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{**row, "target": {"positive": "+1", "negative": "-1"}[row["target"]]} for row in review_rows(60, seed=4)]
    task = {"kind": "classification", "labels": ["-1", "+1"]}
    first = Run.create(tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows), task), tmp_path / "runs")
    labelling = Labelling.create(tmp_path / "labels", pa.table({"text": ["-- dull film", "'tis good"]}), first.recipe())
    labelling.label("ann", "0", "-1")
    labelling.label("ann", "1", "+1")
    labelling.export(tmp_path / "labels.csv")
    learned = resolved(retrain_recipe(first, tmp_path / "labels.csv"))[1]["train"]
    assert learned["text"][-2:] == ["-- dull film", "'tis good"] and learned["target"][-2:] == ["-1", "+1"]


def test_what_cannot_be_retrained_is_told(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(DataError, match="has no column 'target' with the labels"):
        retraining(run, write_jsonl(tmp_path / "none.jsonl", [{"text": "good film"}]))
    with pytest.raises(DataError, match="none of its 1 rows has a label"):
        retraining(run, write_jsonl(tmp_path / "none.jsonl", [{"text": "good film", "target": ""}]))
    with pytest.raises(DataError, match="'maybe' is none of the labels negative, positive"):
        retraining(run, write_jsonl(tmp_path / "other.jsonl", [{"text": "good film", "target": "maybe"}]))
    folded = Run.create(run.recipe().override("data.folds=3"), tmp_path / "runs")
    with pytest.raises(RecipeError, match=r"data\.folds: makes of every row a test row"):
        retraining(folded, tmp_path / "other.jsonl")
    changed = Run.create(run.recipe(), tmp_path / "runs")
    changed.write_data({"splits": {"test": {"rows": 12, "fingerprint": "another"}}})
    with pytest.raises(DataError, match=r"rows are not those .* was made with"):
        retraining(changed, write_jsonl(tmp_path / "some.jsonl", [{"text": "good film", "target": "positive"}]))
