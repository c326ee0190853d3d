"""Kinds of data: files of a package, folders in the Hub's layout, ACLSum."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from tl_nlp.data.aclsum import Aclsum
from tl_nlp.data.files import Files
from tl_nlp.data.hub import Hub, named_classes
from tl_nlp.data.package import Package
from tl_nlp.errors import DataError, HubError, RecipeError


def test_a_package_is_read_and_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "booby_trapped"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('run')")
    (package / "rows.csv").write_text("text,target\n" + "".join(f"text {n},{n % 2}\n" for n in range(40)))
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = Package(module="booby_trapped", path="rows.csv").load()
    assert sum(len(split) for split in rows.values()) == 40
    with pytest.raises(DataError, match="no package 'nosuch_one' is installed; pip install nosuch-one"):
        Package(module="nosuch_one", path="rows.csv").load()


def test_a_hub_data_set_names_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = Dataset.from_dict({"text": [f"text {n}" for n in range(40)], "label": [n % 2 for n in range(40)]}, features)
    folder = tmp_path / "set"
    folder.mkdir()
    rows.to_parquet(folder / "train.parquet")
    splits = Hub(name=str(folder), target="label", values={"neg": "negative"}).load()
    assert set(splits["train"]["target"]) == {"negative", "pos"}
    sliced = Hub(name=str(folder), train="train[:50%]", test="train[50%:]", target="label").load()
    assert {name: len(split) for name, split in sliced.items()} == {"train": 17, "validation": 3, "test": 20}
    with pytest.raises(DataError, match="split 'dev'"):
        Hub(name=str(folder), test="dev", target="label").load()


def test_a_hub_data_set_out_of_reach_is_one_sentence() -> None:
    with pytest.raises(HubError, match="data set 'stanfordnlp/imdb' is neither cached here nor reachable"):
        Hub(name="stanfordnlp/imdb").load()


def test_aclsum_is_papers_by_aspects() -> None:
    splits = Aclsum().load()
    assert {name: len(split) for name, split in splits.items()} == {"train": 300, "validation": 150, "test": 300}
    row = splits["test"][0]
    assert row["id"].endswith(row["pair"])
    assert len(row["sentences"]) == len(row["sections"]) == len(row["highlights"])
    assert row["text"].startswith(row["sentences"][0])
    assert len(Aclsum(aspects=("outcome",)).load()["train"]) == 100


def test_lists_of_classes_name_them_too() -> None:
    from datasets import List

    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["joy", "fear"]))})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "labels": [[1, 0], [], [0]]}, features)
    assert named_classes(rows)["labels"].to_pylist() == [["fear", "joy"], [], ["joy"]]


def test_paths_stay_inside_the_package_and_names_inside_the_run() -> None:
    with pytest.raises(DataError, match="leads out of the package tl_nlp"):
        Package(module="tl_nlp", path="../secret.csv").load()
    for name in ("../../x", "train"):
        with pytest.raises(RecipeError, match="tests"):
            Files(path="a.csv", tests={name: "b.csv"})
