"""Cached features: the same training as without them, and only where they are sound."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe
from safetensors.torch import load_file

from tl_nlp import features, train
from tl_nlp.model import load_model
from tl_nlp.pretrained import load_tokenizer
from tl_nlp.training import _encode


@pytest.mark.parametrize("task", ["classification", "highlights"])
@pytest.mark.parametrize("pooling", ["checkpoint", "mean"])
def test_a_head_trained_on_cached_features_is_the_same_head(
    task: str, pooling: str, tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews, task, method="head").override("training.epochs=3", "training.dropout=0.1")
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


def test_only_what_the_head_reads_is_kept(tiny_bert: Path, reviews: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews, method="head")
    rows = recipe.data.load()
    task = recipe.task.resolve(rows)
    tokenizer = load_tokenizer(tiny_bert)
    encoded = _encode(rows["validation"], task, tokenizer, "validation")
    for pooling, first_only in (("checkpoint", True), ("mean", False)):
        chosen = recipe.model_copy(update={"task": task.model_copy(update={"pooling": pooling})})
        model = load_model(chosen, tiny_bert)
        computed = features.compute(model, encoded, 0, "float32", "features")
        for windows, lengths in zip(computed.columns["features"], computed.lengths, strict=True):
            assert [len(window) for window in windows] == ([1] * len(lengths) if first_only else lengths)


def test_what_learns_below_the_head_is_not_cached(tiny_bert: Path, tiny_t5: Path, reviews: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    rows = recipe.data.load()
    encoded = _encode(rows["train"], recipe.task.resolve(rows), load_tokenizer(tiny_bert), "train")
    resolved = recipe.model_copy(update={"task": recipe.task.resolve(rows)})
    model = load_model(resolved, tiny_bert)
    assert features.is_cacheable(model, {"classifier.weight", "bert.pooler.dense.bias"}, [encoded])
    assert not features.is_cacheable(model, {"classifier.weight", "bert.encoder.layer.1.output.dense.bias"}, [encoded])
    lora = load_model(resolved.override("method=lora"), tiny_bert)
    assert not features.is_cacheable(lora, set(), [encoded])
