"""Windows of one text pooled into one answer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BAD, FILLER, GOOD, tiny_recipe, write_jsonl
from transformers import AutoModelForTokenClassification

from tl_nlp import Predictor, Recipe, train
from tl_nlp.document import Document
from tl_nlp.errors import CheckpointError, RecipeError
from tl_nlp.pretrained import load_tokenizer
from tl_nlp.windows import ASKED, STATED, TEXT, apart_windows

N_HIDDEN = 8


def batch_of(*lengths: list[int], **more: torch.Tensor) -> dict[str, Any]:
    """The batch of rows whose windows have so many tokens."""
    flat = torch.tensor([length for windows in lengths for length in windows])
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor([len(windows) for windows in lengths]))
    mask = (torch.arange(int(flat.max())) < flat.unsqueeze(1)).long()
    return {"rows": rows, "lengths": flat, "attention_mask": mask, "n_rows": len(lengths), **more}


def states_of(batch: dict[str, torch.Tensor], seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*batch["attention_mask"].shape, N_HIDDEN, generator=draw)


def document(pooling: str, seed: int = 0, **shape: int) -> Document:
    torch.manual_seed(seed)
    return Document(N_HIDDEN, 2, pooling, **{"max_windows": 4, **shape}).eval()


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_pooling_begins_as_the_mean_over_all_tokens(pooling: str) -> None:
    batch = batch_of([5, 2], [3], [4, 4, 1])
    states, layer = states_of(batch), document(pooling)
    mask = batch["attention_mask"].bool()
    means = torch.stack([states[batch["rows"] == row][mask[batch["rows"] == row]].mean(0) for row in range(3)])
    torch.testing.assert_close(layer(states, batch), layer.linear(layer.norm(means)))


@pytest.mark.parametrize("pooling", ["mean", "attention", "transformer"])
def test_a_text_is_read_alone_and_padding_is_not_read(pooling: str) -> None:
    batch = batch_of([5, 2], [3], [4, 4, 1])
    states, layer = states_of(batch), document(pooling)
    if pooling == "attention":
        torch.nn.init.normal_(layer.weigh[2].weight)
    together = layer(states, batch)
    padded = states.masked_fill(~batch["attention_mask"].bool().unsqueeze(2), 1e3)
    torch.testing.assert_close(layer(padded, batch), together)
    alone = batch_of([3])
    torch.testing.assert_close(layer(states[2:3, :3], alone)[0], together[1])


def test_a_transformer_knows_the_order_of_windows_and_attention_their_weight() -> None:
    batch = batch_of([3, 3])
    states = states_of(batch)
    block = document("transformer")
    torch.nn.init.normal_(block.positions.weight)
    assert not torch.allclose(block(states, batch), block(states.flip(0), batch), atol=1e-4)
    weighed = document("attention")
    torch.testing.assert_close(weighed(states, batch), weighed(states.flip(0), batch))
    torch.nn.init.normal_(weighed.weigh[2].weight, std=50.0)
    means = states.mean(1)
    alone = weighed.linear(weighed.norm(means))
    nearest = (weighed(states, batch) - alone).abs().sum(1).min()
    assert nearest < 0.1 < (alone[0] - alone[1]).abs().sum()


def test_each_group_adds_what_sets_it_apart() -> None:
    layer = document("mean", n_surface=3, n_groups=2)
    surface = torch.tensor([[1.0, 0.0, -1.0]] * 3)
    batch = batch_of([2], [2], [2], surface=surface, group=torch.tensor([0, 1, 2]))
    states = states_of(batch)[:1].expand(3, -1, -1)
    torch.testing.assert_close(layer(states, batch)[1], layer(states, batch)[2])
    with torch.no_grad():
        own = layer.own.weight.view(3, 2, -1)
        own[1, 0, N_HIDDEN] = 2.0  # of the first count, in the first output
        own[2, 1, -1] = 3.0  # a constant, in the second
    alike, one, other = layer(states, batch)
    torch.testing.assert_close(one - alike, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(other - alike, torch.tensor([0.0, 3.0]))


def test_a_text_that_says_what_its_pair_states_is_found_token_by_token() -> None:
    """Row 0: the text repeats what its pair states and asks; row 1: the question alone; row 2: nothing is asked."""
    e = torch.eye(N_HIDDEN)
    states = torch.zeros(6, 4, N_HIDDEN)
    sides = torch.zeros(6, 4, dtype=torch.long)
    pair, text = torch.tensor([ASKED, STATED, STATED, 0]), torch.tensor([TEXT] * 4)
    states[0, :3], sides[0] = e[:3], pair
    states[1], sides[1] = e[[1, 2, 0, 3]], text
    states[2, :3], sides[2] = e[:3], pair
    states[3, :1], sides[3] = e[:1], torch.tensor([TEXT, 0, 0, 0])
    states[4, :2], sides[4] = e[:2], torch.tensor([STATED, STATED, 0, 0])
    states[5, :2], sides[5] = e[[0, 5]], torch.tensor([TEXT, TEXT, 0, 0])
    batch = batch_of([3, 4], [3, 1], [2, 2], sides=sides)
    layer = document("mean", compare=True)
    shares = layer.comparison(layer.laid_out(states, batch)).detach() / 5 + 0.5
    # of the four words of text 0 the question's weighs nothing, and two of three are stated
    wanted = torch.tensor([[1.0, 2 / 3], [0.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(shares, wanted, atol=2e-3, rtol=0)
    padded = states.masked_fill(~batch["attention_mask"].bool().unsqueeze(2), 1e3)
    torch.testing.assert_close(layer(padded, batch), layer(states, batch))
    states[1, 0] = (e[1] + e[4]) / 2**0.5  # half found: the cosine to what is stated is the root of 1/2
    assert layer.comparison(layer.laid_out(states, batch))[0, 0].item() / 5 + 0.5 == pytest.approx(
        (1 + 0.5**0.5) / 2, abs=2e-3
    )
    with torch.no_grad():
        layer.comparison.power_of_found[0] = np.log(0.5)
    assert layer.comparison(layer.laid_out(states, batch))[0, 0].item() / 5 + 0.5 == pytest.approx(
        (1 + 0.5**0.25) / 2, abs=2e-3
    )


def test_the_question_in_a_pair_is_told_from_what_it_states(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(tiny_bert)
    pairs = [
        "the film? plot: very good. is the plot fine? some dull scenes",
        "is the film good?",
        "very good",
    ]

    def sides(pair: str) -> list[tuple[str, int]]:
        rows = apart_windows(["dull"], [pair], tokenizer, 64, 2)
        assert rows["sides"][0][1] == [0, TEXT, 0]
        ids, kinds = rows["input_ids"][0][0], rows["sides"][0][0]
        return list(zip(tokenizer.convert_ids_to_tokens(ids), kinds, strict=True))

    words = {*FILLER, *GOOD, *BAD}
    told = sides(pairs[0])
    assert [kind for word, kind in told if word in ("[CLS]", "[SEP]")] == [0, 0]
    by_word = [kind for word, kind in told if word in words]
    # the film | plot (a label) | very good | is the plot fine | some dull scenes
    assert by_word == [ASKED] * 2 + [0] + [STATED] * 2 + [ASKED] * 4 + [STATED] * 3
    assert {kind for word, kind in sides(pairs[1]) if word in words} == {STATED}
    assert {kind for word, kind in sides(pairs[2]) if word in words} == {STATED}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of several windows; what is asked for is said in the last one."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(160):
        filler = draw.choice(["the", "film", "is", "very", "plot", "some"], 40).tolist()
        text = " ".join([*filler, *["good" if number % 2 else "bad"] * 6, str(number % 97)])
        rows.append({"text": text, "target": "yes" if number % 2 else "no"})
    return write_jsonl(tmp_path_factory.mktemp("ends") / "rows.jsonl", rows)


def long_recipe(checkpoint: Path, data: Path, *overrides: str) -> Recipe:
    return tiny_recipe(checkpoint, data).override(
        "task.max_length=16", "task.max_windows=6", "training.epochs=12", "training.lr=0.01", *overrides
    )


@pytest.mark.parametrize("pooling", ["attention", "transformer"])
@pytest.mark.parametrize("method", ["full", "lora", "adapter", "head"])
def test_every_method_learns_what_the_last_window_says(tiny_bert: Path, ends: Path, pooling: str, method: str) -> None:
    run = train(long_recipe(tiny_bert, ends, f"task.pooling={pooling}", f"method={method}"))
    assert run.results()["splits"]["test"]["metrics"]["accuracy"]["value"] > 0.9  # scored from disk
    assert run.data()["tokens_seen"] == {"train": 1.0, "validation": 1.0, "test": 1.0}
    kept = Predictor.load(run.model_dir)(["the film " * 20 + "good " * 6, "the film " * 20 + "bad " * 6])
    assert [one.label for one in kept] == ["yes", "no"]
    assert "needs tl_nlp" in (run.model_dir / "README.md").read_text()


def test_states_of_a_frozen_backbone_are_computed_once_for_pooled_windows(
    tiny_bert: Path, ends: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached means of windows train the same layer as the states themselves."""
    recipe = long_recipe(tiny_bert, ends, "task.pooling=attention", "method=head", "training.epochs=2")
    cached = train(recipe)
    monkeypatch.setattr("tl_nlp.features.MAX_BYTES", 0)
    computed = train(recipe)
    texts = ["the film is good", "some plot " * 30]
    for one, other in zip(Predictor.load(cached)(texts), Predictor.load(computed)(texts), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_a_layer_of_another_shape_is_refused(tiny_bert: Path, ends: Path) -> None:
    run = train(long_recipe(tiny_bert, ends, "task.pooling=attention", "training.epochs=1"))
    file = run.model_dir / "recipe.json"
    recipe = json.loads(file.read_text())
    recipe["task"]["pooling"] = "transformer"
    file.write_text(json.dumps(recipe))
    with pytest.raises(CheckpointError, match="holds another head than its recipe tells"):
        Predictor.load(run.model_dir)


def test_a_family_whose_head_ends_in_no_linear_layer_is_refused(tiny_bert: Path) -> None:
    from tl_nlp.document import insert

    model = AutoModelForTokenClassification.from_pretrained(tiny_bert)
    model.classifier = torch.nn.Sequential(model.classifier)
    with pytest.raises(RecipeError, match=r"task.pooling: the head of the family 'bert' does not end in"):
        insert(model, pooling="attention", max_windows=4)
