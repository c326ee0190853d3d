"""Cached features: the same training as without them, and only where they are sound."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from conftest import artifact, review_rows, tiny_recipe, write_jsonl
from datasets import Dataset
from safetensors.torch import load_file, save_file

from tl_nlp import Predictor, features, train
from tl_nlp.batches import window_lengths
from tl_nlp.heads import head_of
from tl_nlp.model import load_model
from tl_nlp.preparation import _encode
from tl_nlp.pretrained import load_tokenizer


@pytest.mark.parametrize("task", ["classification", "highlights"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("pooling", ["checkpoint", "mean"])
def test_a_head_trained_on_cached_features_is_the_same_head(
    task: str, pooling: str, dropout: float, tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews, task, method="head").override(
        "training.epochs=3", f"training.dropout={dropout}"
    )
    if task == "classification":  # windows of 16 tokens: many rows have several, of unequal lengths
        recipe = recipe.override(f"task.pooling={pooling}", "task.max_length=16")
    elif pooling == "mean":
        pytest.skip("highlights always read all tokens")
    cached = train(recipe)
    monkeypatch.setattr(features, "MAX_BYTES", 0)
    uncached = train(recipe)
    assert [line["values"] for line in cached.history() if line["split"] == "validation"] == [
        pytest.approx(line["values"], abs=1e-3) for line in uncached.history() if line["split"] == "validation"
    ]
    before = load_file(cached.model_dir / "model.safetensors")
    for name, tensor in load_file(uncached.model_dir / "model.safetensors").items():
        torch.testing.assert_close(before[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Below how many top blocks the states of rows are taken, and how many rows: each time that a pass has a bar."""
    found: list[tuple[int, int]] = []
    states = features.last_states

    def counted(
        model: object, encoded: Dataset, pad_id: int, precision: str, description: str, n_above: int = 0
    ) -> Iterator[object]:
        if description:  # else it is a probe
            found.append((n_above, len(encoded)))
        yield from states(model, encoded, pad_id, precision, description, n_above)

    monkeypatch.setattr(features, "last_states", counted)
    return found


@pytest.mark.parametrize("pooling", ["checkpoint", "mean"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_of_a_second_head_no_text_is_read(
    pooling: str,
    precision: str,
    tiny_bert: Path,
    reviews: Path,
    tmp_path: Path,
    reads: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its test rows among them, which its artifact answers as `predict` does that reads them."""
    monkeypatch.setenv("TL_NLP_CACHE", str(tmp_path / "cache"))
    recipe = tiny_recipe(tiny_bert, reviews, method="head").override(
        f"task.pooling={pooling}", "task.max_length=16", f"training.precision={precision}"
    )
    train(recipe)
    assert reads
    reads.clear()
    run = train(recipe.override("training.seed=7", "training.lr=1e-2"))
    assert not reads
    kept = pyarrow.parquet.read_table(run.predictions_file("test"))
    anew = Predictor.load(run).predict(run.recipe().data.load()["test"])
    assert kept["prediction"].to_pylist() == [one.label for one in anew]
    for row, one in zip(kept["probabilities"].to_pylist(), anew, strict=True):
        assert row == pytest.approx(one.probabilities, abs=1e-5 if precision == "float32" else 2e-3)


def test_only_what_the_head_reads_is_kept(tiny_bert: Path, reviews: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews, method="head")
    rows = recipe.data.load()
    task = recipe.task.resolve(rows)
    tokenizer = load_tokenizer(tiny_bert)
    encoded = _encode(rows["validation"], task, tokenizer, "validation")
    for pooling in ("checkpoint", "mean"):
        chosen = recipe.model_copy(update={"task": task.model_copy(update={"pooling": pooling})})
        model = load_model(chosen, tiny_bert)
        kind = features.kind_of(model, head_of(chosen.task))
        assert kind == {"checkpoint": "first", "mean": "mean"}[pooling]
        whole, kept = (
            features.compute(model, encoded, 0, "float32", "features", features.cache_of(model, "float32", each))
            for each in ("tokens", kind)
        )
        everything = list(range(len(encoded)))
        for windows, all_states, lengths in zip(
            kept[everything]["features"], whole[everything]["features"], whole.lengths, strict=True
        ):
            assert [len(states) for states in all_states] == lengths
            for window, states in zip(windows, all_states, strict=True):
                told = states.mean(axis=0) if kind == "mean" else states[0]
                np.testing.assert_allclose(window, told[None], atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "n_computed"),
    [
        (["method=full"], 0),
        (["method.embeddings=false"], 0),
        (["method=bitfit"], 0),
        (["method=lora"], 0),
        (["method=head"], 4),
        (["method=top_layers", "method.n_blocks=1"], 2),
        (["method=top_layers", "method.n_blocks=2"], 0),
        (["method=top_layers", "method.n_blocks=1", "method.head_epochs=1.5", "training.epochs=2"], 4),
        (["method=gradual", "method.head_epochs=0.5", "method.every=0.5", "training.epochs=1"], 2),
        (["method=gradual", "method.head_epochs=0.5", "method.every=0.25", "training.epochs=1"], 0),
    ],
)
def test_only_what_never_learns_is_kept(
    overrides: list[str], n_computed: int, tiny_bert: Path, reviews: Path, computed: list[int]
) -> None:
    """Training and validation rows for each place where states are taken; a head alone answers its validation and test
    rows from them at last."""
    train(tiny_recipe(tiny_bert, reviews).override(*overrides))
    assert len(computed) == n_computed


@pytest.mark.parametrize(
    ("task", "overrides"),
    [
        ("classification", ["training.dropout=0.1"]),
        ("classification", ["task.pooling=mean", "method.head_epochs=1", "training.epochs=3"]),
        ("classification", ["task.pooling=attention", "training.r_drop=0.5", "training.dropout=0.1"]),
        ("classification", ["training.gradient_checkpointing=true", "training.precision=bfloat16"]),
        ("highlights", ["training.ema=0.9"]),
    ],
)
def test_blocks_trained_on_kept_states_are_the_same_blocks(
    task: str, overrides: list[str], tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews, task).override("method=top_layers", "method.n_blocks=1", *overrides)
    if task == "classification":
        recipe = recipe.override("task.max_length=16")  # many rows have several windows
    kept = train(recipe)
    monkeypatch.setattr(features, "MAX_BYTES", 0)
    anew = train(recipe)
    assert [line["values"] for line in kept.history()] == [
        pytest.approx(line["values"], rel=1e-3, abs=1e-3) for line in anew.history()
    ]
    before = load_file(kept.model_dir / "model.safetensors")
    for name, tensor in load_file(anew.model_dir / "model.safetensors").items():
        torch.testing.assert_close(before[name], tensor, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("family", "overrides", "places"),
    [
        ("t5", ["method=top_layers", "method.n_blocks=2", "task.beams=2"], {0}),
        ("t5", ["method=top_layers", "method.n_blocks=3"], set()),  # the lowest block has the others' distances
        ("t5", ["method=top_layers", "method.n_blocks=2", "encoder_repetition_penalty"], set()),  # it asks for tokens
        ("bart", ["method=top_layers", "method.n_blocks=2", "task.candidates=3"], {0}),
        ("bart", ["method=top_layers", "method.n_blocks=3"], {1}),
        ("bert", ["checkpoint.warm_start=true", "method.head_epochs=1", "training.epochs=2"], {0}),
    ],
)
def test_a_decoder_learns_from_kept_states_as_from_tokens(
    family: str,
    overrides: list[str],
    places: set[int],
    reviews: Path,
    tmp_path: Path,
    reads: list[tuple[int, int]],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TL_NLP_CACHE", str(tmp_path / "cache"))
    rows = [{**row, "target": " ".join(row["text"].split()[:3])} for row in review_rows(90)]
    folder = tmp_path / family
    shutil.copytree(request.getfixturevalue(f"tiny_{family}"), folder)
    if "encoder_repetition_penalty" in overrides:
        overrides = overrides[:-1]
        (folder / "generation_config.json").write_text(
            json.dumps(
                {**json.loads((folder / "generation_config.json").read_text()), "encoder_repetition_penalty": 3.0}
            )
        )
    if family == "bart":  # blocks that matter, as pretrained ones do
        weights = load_file(folder / "model.safetensors")
        larger = {
            name: 8 * tensor if ".layers." in name and tensor.ndim > 1 else tensor for name, tensor in weights.items()
        }
        save_file(larger, folder / "model.safetensors", metadata={"format": "pt"})
    recipe = tiny_recipe(folder, write_jsonl(tmp_path / "rows.jsonl", rows), "summarization").override(
        "task.max_new_tokens=8", "training.dropout=0.1", "data.similarity=1", *overrides
    )
    kept = train(recipe)
    assert {n_above for n_above, _ in reads} == places
    reads.clear()
    monkeypatch.setattr(features, "MAX_BYTES", 0)
    anew = train(recipe)
    assert not reads
    assert [line["values"] for line in kept.history()] == [
        pytest.approx(line["values"], rel=1e-3, abs=1e-3) for line in anew.history()
    ]
    before = artifact(kept)
    for name, tensor in artifact(anew).items():
        # of each: where a gradient is almost nothing, Adam makes a step of what is rounded
        assert (before[name] - tensor).norm() < 1e-2 * tensor.norm() + 2e-3, name


def test_of_a_second_training_no_text_is_read_by_the_lower_blocks(
    tiny_bert: Path, reviews: Path, tmp_path: Path, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TL_NLP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "_PIECE", 5000)  # several files
    recipe = tiny_recipe(tiny_bert, reviews).override("method=top_layers", "method.n_blocks=1")
    train(recipe)
    assert {n_above for n_above, _ in reads} == {0, 1}  # 0: the baseline
    assert len(list((tmp_path / "cache" / "features").rglob("tokens/*.safetensors"))) > 2
    reads.clear()
    train(recipe.override("training.seed=7", "training.lr=1e-2"))
    assert not reads
    train(recipe.override("task.max_length=8"))
    assert 1 in {n_above for n_above, _ in reads}


def test_a_glance_reads_no_more_tokens_than_it_may(tiny_bert: Path, tmp_path: Path) -> None:
    """Short texts whole, of the long ones beginnings of one length; what was computed whole is not computed again."""
    rows = [{"text": " ".join(["film"] * (4 if n % 2 else 60)), "target": "xy"[n % 2]} for n in range(40)]
    rows = [{**row, "text": f"{row['text']} {n}"} for n, row in enumerate(rows)]
    task = {"kind": "classification", "labels": ["x", "y"], "max_length": 32}
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows), task).override("data.similarity=1")
    data = recipe.data.load()["train"]
    encoded = _encode(data, recipe.task, load_tokenizer(tiny_bert), "train")
    lengths = np.asarray([sum(windows) for windows in window_lengths(encoded)])
    model = load_model(recipe, tiny_bert)
    everything = features.embeddings(model, encoded, 0, "float32", "features")
    whole = features.Frozen(model, {"train": encoded}, 0, "float32")
    places = np.arange(len(data))
    np.testing.assert_allclose(whole.glance("train", places, int(lengths.sum())), everything, atol=1e-5)
    few = features.Frozen(model, {"train": encoded}, 0, "float32")
    some = few.glance("train", places, int(lengths.sum() * 0.6))
    is_short = lengths < 20
    np.testing.assert_allclose(some[is_short], everything[is_short], atol=1e-5)
    assert np.abs(some[~is_short] - everything[~is_short]).max(axis=1).min() > 1e-4
    np.testing.assert_allclose(few.of("train", places), everything, atol=1e-5)


def test_features_serve_while_the_head_learns_alone(
    tiny_bert: Path, reviews: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of the head on features, then all weights on tokens: the same as on tokens throughout."""
    recipe = tiny_recipe(tiny_bert, reviews).override(
        "method.head_epochs=2", "training.epochs=4", "task.pooling=mean", "task.max_length=16"
    )
    cached = train(recipe)
    assert len(computed) == 2  # training and validation rows
    monkeypatch.setattr(features, "MAX_BYTES", 0)
    uncached = train(recipe)
    assert len(computed) == 2
    assert [line["values"] for line in cached.history()] == [
        pytest.approx(line["values"], abs=2e-3) for line in uncached.history()
    ]


class TestCache:
    """Features on disk, found by content."""

    @pytest.fixture
    def read(
        self, tiny_bert: Path, tmp_path: Path, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., tuple[np.ndarray, int]]:
        """Embeddings of texts, and how many rows were computed for them."""
        monkeypatch.setenv("TL_NLP_CACHE", str(tmp_path / "cache"))

        def embedded(texts: list[str], *overrides: str, precision: str = "float32") -> tuple[np.ndarray, int]:
            recipe = tiny_recipe(tiny_bert, tmp_path, {"kind": "classification", "labels": ["x", "y"]}).override(
                "task.max_length=16", *overrides
            )
            reads.clear()
            encoded = Dataset.from_dict(recipe.task.encode({"text": texts}, load_tokenizer(tiny_bert)))
            found = features.embeddings(load_model(recipe, tiny_bert), encoded, 0, precision, "features")
            return found, sum(n_rows for _, n_rows in reads)

        return embedded

    def test_what_is_known_is_not_computed_again(self, read: Callable) -> None:
        texts = ["the film is good", "some plot " * 20, "the film is good"]
        first, n_computed = read(texts)
        assert n_computed == 2  # two of the rows are one
        again, n_computed = read(texts, "training.seed=5", "method=head")
        assert n_computed == 0
        np.testing.assert_array_equal(first, again)
        changed, n_computed = read([*texts[:2], "the film is bad"])
        assert n_computed == 1
        assert np.abs(changed[2] - first[2]).max() > 1e-4

    @pytest.mark.parametrize(
        ("override", "precision"),
        [("checkpoint.load_in=bfloat16", "float32"), ("checkpoint.blocks=1", "float32"), ("method=head", "bfloat16")],
    )
    def test_another_model_finds_nothing_of_this_one(self, read: Callable, override: str, precision: str) -> None:
        assert read(["the film"])[1] == 1
        assert read(["the film"], override, "method=head", precision=precision)[1] == 1

    def test_a_damaged_file_is_computed_again(self, read: Callable, tmp_path: Path) -> None:
        before, _ = read(["the film is good"])
        (file,) = (tmp_path / "cache").rglob("*.safetensors")
        file.write_bytes(file.read_bytes()[:40])
        after, n_computed = read(["the film is good"])
        assert n_computed == 1
        np.testing.assert_array_equal(before, after)
        assert read(["the film is good"])[1] == 0

    def test_nothing_is_kept_where_that_is_asked(
        self, read: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TL_NLP_CACHE", "")
        assert [read(["the film"])[1] for _ in range(2)] == [1, 1]
        assert not (tmp_path / "cache").exists()

    def test_a_folder_that_cannot_be_written_is_told(
        self, read: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        (tmp_path / "cache").write_text("a file in the way")
        assert read(["the film"])[1] == 1
        assert "features are not kept for the next run" in capsys.readouterr().err

    def test_the_oldest_files_go_first(self, read: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read(["the film"])
        (oldest,) = (tmp_path / "cache").rglob("*.safetensors")
        os.utime(oldest, (0, 0))
        monkeypatch.setattr("tl_nlp.cache.MAX_BYTES", int(1.5 * oldest.stat().st_size))
        read(["some plot"])
        (left,) = (tmp_path / "cache").rglob("*.safetensors")
        assert left != oldest
        assert read(["some plot"])[1] == 0
        assert read(["the film"])[1] == 1
