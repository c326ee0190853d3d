"""Losses, pulls, averages and augmentation: each against what its definition says."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import MINILM, artifact, review_rows, tiny_recipe, write_jsonl
from safetensors.torch import load_file
from torch.nn import functional

from tl_nlp import Recipe, Run, train
from tl_nlp.artifact import locate
from tl_nlp.augmentation import Augmented, neighbours
from tl_nlp.batches import collate
from tl_nlp.dropout import fast_dropout
from tl_nlp.errors import RecipeError
from tl_nlp.heads import HEADS
from tl_nlp.metrics import Measured
from tl_nlp.model import load_model
from tl_nlp.objective import Objective
from tl_nlp.preparation import _encode, prepare
from tl_nlp.pretrained import load_tokenizer
from tl_nlp.recipe import Augmentation, Training
from tl_nlp.steps import Steps, _mix
from tl_nlp.training import steps_of


def drawn_logits(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_losses_of_one_label_are_as_published() -> None:
    head, logits, labels = HEADS["classify"](), drawn_logits(6, 3), torch.tensor([0, 1, 2, 1, 0, 1])
    batch = {"labels": labels, "n_rows": 6}
    p = logits.softmax(-1)[torch.arange(6), labels]

    def loss(**choices: Any) -> float:
        total, count = head.loss(logits, batch, Objective(**choices))
        assert count == 6
        return float(total)

    assert loss() == pytest.approx(float(-p.log().sum()))
    assert loss(focal_gamma=2.0) == pytest.approx(float(-((1 - p) ** 2 * p.log()).sum()))
    smooth = 0.9 * -p.log() - 0.1 * logits.log_softmax(-1).mean(-1)
    sure = torch.tensor([[40.0, 0.0]], requires_grad=True)
    head.loss(sure, {"labels": torch.tensor([0]), "n_rows": 1}, Objective(focal_gamma=0.5))[0].backward()
    assert sure.grad.isfinite().all()
    assert loss(label_smoothing=0.1) == pytest.approx(float(smooth.sum()))
    weights = torch.tensor([1.0, 2.0, 5.0])
    assert loss(weights=weights) == pytest.approx(float((weights[labels] * -p.log()).sum()))
    priors = torch.tensor([0.5, 0.3, 0.2]).log()
    adjusted = (logits + priors).log_softmax(-1)[torch.arange(6), labels]
    assert loss(log_priors=priors) == pytest.approx(float(-adjusted.sum()))


def test_the_losses_of_many_labels_are_as_published() -> None:
    head, logits = HEADS["multilabel"](), drawn_logits(4, 2)
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    batch = {"labels": labels, "n_rows": 4}
    p = torch.where(labels > 0, logits.sigmoid(), 1 - logits.sigmoid())
    assert float(head.loss(logits, batch, Objective(focal_gamma=1.0))[0]) == pytest.approx(
        float(-((1 - p) * p.log()).sum())
    )
    weighted = torch.where(labels > 0, torch.tensor([3.0, 1.0]), torch.ones(2)) * -p.log()
    assert float(head.loss(logits, batch, Objective(weights=torch.tensor([3.0, 1.0])))[0]) == pytest.approx(
        float(weighted.sum())
    )
    other = float(head.loss(logits, batch, Objective(label_smoothing=0.2))[0])
    assert other == pytest.approx(
        float(functional.binary_cross_entropy_with_logits(logits, labels * 0.8 + 0.1, reduction="sum"))
    )


def test_class_weights_and_priors_come_from_the_training_rows() -> None:
    one = {"labels": [0, 0, 0, 1]}
    balanced = Objective.of(Training(class_weights="balanced", logit_adjustment=2.0), ["a", "b"], one)
    assert balanced.weights.tolist() == pytest.approx([4 / 6, 4 / 2])
    assert balanced.log_priors.tolist() == pytest.approx([2 * math.log(0.75), 2 * math.log(0.25)])
    many = {"labels": [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]}
    assert Objective.of(Training(class_weights="balanced"), ["a", "b"], many).weights.tolist() == pytest.approx(
        [1 / 3, 2]
    )
    given = Objective.of(Training(class_weights={"b": 3.0}), ["a", "b"], one)
    assert given.weights.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("name", HEADS)
def test_a_divergence_is_nothing_between_equals_and_the_same_both_ways(name: str) -> None:
    head, shape = HEADS[name](), (3, 4, 5) if name == "generate" else (3, 4)
    one, other = drawn_logits(2, *shape)
    labels = {"classify": torch.zeros(3, dtype=torch.long), "generate": torch.zeros(3, 4, dtype=torch.long)}.get(
        name, torch.zeros(3, 4)
    )
    batch = {"labels": labels, "n_rows": 3}
    assert float(head.divergence(one, one, batch)) == 0
    there, back = head.divergence(one, other, batch), head.divergence(other, one, batch)
    assert float(there) == pytest.approx(float(back)) and float(there) > 0
    if name == "classify":
        p, q = one.log_softmax(-1), other.log_softmax(-1)
        both = functional.kl_div(q, p, reduction="sum", log_target=True) + functional.kl_div(
            p, q, reduction="sum", log_target=True
        )
        assert float(there) == pytest.approx(float(both) / 2, rel=1e-5)


def distance(run: Run, checkpoint: Path) -> float:
    before, after = load_file(checkpoint / "model.safetensors"), artifact(run)
    return sum(
        float((after[f"bert.{name}"] - tensor).square().sum())
        for name, tensor in before.items()
        if "pooler" not in name
    )


def made(recipe: Recipe) -> Steps:
    steps, _ = steps_of(prepare(recipe), Accelerator())
    steps.unfreeze(0)
    return steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_fast_dropout_is_dropout(p: float, dtype: torch.dtype) -> None:
    states = torch.ones(501, 203, dtype=dtype, requires_grad=True)
    layer = torch.nn.Dropout(p)
    torchs = functional.dropout
    torch.manual_seed(0)
    with fast_dropout(states.device):
        dropped = layer(states)
        other = layer(states)
        torch.manual_seed(0)
        assert torch.equal(layer(states), dropped)
        assert torch.equal(functional.dropout(states, p, training=False), states)
        assert functional.dropout(torch.ones(8), 1.0).sum() == 0
        inplace = torch.ones(4, 1001)
        assert functional.dropout(inplace, p, inplace=True) is inplace and not inplace.all()
    assert functional.dropout is torchs
    assert not torch.equal(dropped, other)
    assert dropped.dtype == dtype
    kept = dropped != 0
    assert torch.equal(dropped[kept], torch.full_like(dropped[kept], 1 / (1 - p)))
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=0.005)  # five standard errors
    assert kept.float().mean(0).std().item() == pytest.approx(math.sqrt(p * (1 - p) / 501), rel=0.2)
    dropped.sum().backward()
    assert torch.equal(states.grad, dropped.detach())


def test_mixout_mixes_weights_and_gradients(tiny_bert: Path, reviews: Path) -> None:
    steps = made(tiny_recipe(tiny_bert, reviews).override("training.mixout=0.25"))
    name = "bert.encoder.layer.0.output.dense.weight"
    weight, start = steps.weights.by_name[name], steps.anchor.start[name]
    with torch.no_grad():
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    own = weight.detach().clone()
    with steps.anchor.mixing(seed=5):
        mixed = weight.detach().clone()
        (weight * 2).sum().backward()
    assert torch.equal(weight.detach(), own)
    put_back = mixed == start
    assert float(put_back.float().mean()) == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(mixed[~put_back], (start + (own - start) / 0.75)[~put_back])
    torch.testing.assert_close(weight.grad, torch.where(put_back, 0.0, 2 / 0.75))
    assert "bert.embeddings.word_embeddings.weight" not in steps.anchor.start


def test_mixup_shares_logits_and_labels(tiny_bert: Path, reviews: Path) -> None:
    steps = made(tiny_recipe(tiny_bert, reviews).override("training.augmentation.mixup=0.4"))
    logits, labels = drawn_logits(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
    total, count = steps._of_logits(logits, {"labels": labels, "n_rows": 6}, step=3)
    draw = np.random.default_rng(_mix(0, 3, "mixup"))
    share, partner = draw.beta(0.4, 0.4), draw.permutation(6)
    one_hot = functional.one_hot(labels, 2).float()
    targets = share * one_hot + (1 - share) * one_hot[partner]
    mixed = share * logits + (1 - share) * logits[partner]
    assert float(count) == pytest.approx(6)
    assert float(total) == pytest.approx(float(-(targets * mixed.log_softmax(-1)).sum()), rel=1e-5)
    assert 0 < share < 1 and list(partner) != list(range(6))


def test_r_drop_adds_half_of_alpha_times_the_divergence(tiny_bert: Path, reviews: Path) -> None:
    """Equation 4 of the paper, halved: the mean of two likelihoods and a quarter of alpha times both divergences."""
    steps = made(tiny_recipe(tiny_bert, reviews).override("training.r_drop=3", "training.dropout=0.2"))
    batch = collate(steps.examples(0)[[0, 1, 2, 3]], 0)
    torch.manual_seed(7)
    total, _ = steps.loss(0, [0, 1, 2, 3])
    torch.manual_seed(7)
    one, other = (steps.head.logits(steps.model, batch) for _ in range(2))
    assert not torch.equal(one, other)
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    likelihoods = sum(functional.cross_entropy(each, batch["labels"], reduction="sum") for each in (one, other))
    divergences = ((p.exp() * (p - q)) + (q.exp() * (q - p))).sum()
    assert float(total.detach()) == pytest.approx(float((likelihoods / 2 + 3 / 4 * divergences).detach()), rel=1e-5)


def test_one_cycles_momentum_reaches_the_optimizer(tiny_bert: Path, reviews: Path) -> None:
    steps = made(tiny_recipe(tiny_bert, reviews).override("training.schedule=one_cycle", "training.warmup=0.5"))
    for step in range(4):
        steps.take(step)
        assert {group["betas"][0] for group in steps.optimizer.param_groups} == {steps.plan.momentum(step)}


def test_scales_of_ia3_do_not_decay(tiny_bert: Path, reviews: Path) -> None:
    steps = made(tiny_recipe(tiny_bert, reviews, method="ia3"))
    decays = {id(weight): group["weight_decay"] for group in steps.optimizer.param_groups for weight in group["params"]}
    assert {decays[id(weight)] for name, weight in steps.weights.by_name.items() if "ia3" in name} == {0.0}
    assert {decays[id(weight)] for name, weight in steps.weights.by_name.items() if "classifier" in name} == {0.0, 0.01}


def test_l2_sp_holds_the_weights_near_the_pretrained_ones(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.epochs=3")
    free, held = (train(recipe.override(f"training.l2_sp={pull}")) for pull in (1e-6, 10))
    assert distance(held, tiny_bert) < 0.5 * distance(free, tiny_bert)


def test_an_ema_is_the_mean_it_says(reviews: Path, tiny_bert: Path) -> None:
    """It begins with the weights after the first step; after the second it is d v1 + (1 - d) v2."""
    recipe = tiny_recipe(tiny_bert, reviews).override("training.schedule=constant", "training.warmup=0")
    one, two = (artifact(train(recipe.override(f"training.epochs={n / 6}"))) for n in (1, 2))
    mean = artifact(train(recipe.override(f"training.epochs={2 / 6}", "training.ema=0.75")))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.75 * one[name] + 0.25 * two[name], rtol=1e-4, atol=1e-6)


def test_the_last_evaluations_are_averaged(reviews: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override(
        "training.schedule=constant", "training.warmup=0", "training.eval_every=0.16"
    )
    # a validation that gets better with every evaluation, so that the last one is kept
    scores = iter(range(1000))

    def score(*_: Any) -> dict[str, Measured]:
        value = float(next(scores))
        return {"accuracy": Measured(1, lambda weights: np.full(len(weights), value))}

    monkeypatch.setattr(type(recipe.task), "score", score)
    steps = [artifact(train(recipe.override(f"training.epochs={n / 6}"))) for n in (2, 3, 4)]
    mean = artifact(train(recipe.override(f"training.epochs={4 / 6}", "training.average_last=3")))
    for name, tensor in mean.items():
        expected = torch.stack([each[name] for each in steps]).mean(0)
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6)


def test_reinitialised_blocks_are_new_and_the_others_are_not(tiny_bert: Path, reviews: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override('task.labels=["negative", "positive"]')
    plain, anew = (
        dict(load_model(recipe.override(f"training.reinit_blocks={n}"), tiny_bert).named_parameters()) for n in (0, 1)
    )
    for name, weight in plain.items():
        is_drawn = weight.ndim > 1 and "layer.1." in name
        if "classifier" not in name and "pooler" not in name:
            assert torch.equal(weight, anew[name]) != is_drawn, name
    assert 0.01 < float(anew["bert.encoder.layer.1.output.dense.weight"].detach().std()) < 0.03  # BERT's 0.02


def augmented(
    checkpoint: Path, rows: Path, epoch: int = 0, seed: int = 0, near: Any = None, **choices: float
) -> Augmented:
    recipe = tiny_recipe(checkpoint, rows)
    read = recipe.data.load()
    task, tokenizer = recipe.task.resolve(read), load_tokenizer(checkpoint)
    encoded = _encode(read["train"], task, tokenizer, "train")
    return Augmented(read["train"], encoded, task, tokenizer, Augmentation(**choices), seed, epoch, near or {})


def words(rows: Augmented, indices: list[int]) -> list[list[str]]:
    ids = rows[indices]["input_ids"]
    return [rows.tokenizer.decode(windows[0], skip_special_tokens=True).split() for windows in ids]


def test_augmentation_depends_on_seed_epoch_and_row_alone(tiny_bert: Path, reviews: Path) -> None:
    make = {"word_dropout": 0.3, "word_swap": 0.3}
    rows = augmented(tiny_bert, reviews, **make)
    together, alone = words(rows, [3, 5, 9]), [words(rows, [index])[0] for index in (3, 5, 9)]
    assert together == alone == words(augmented(tiny_bert, reviews, **make), [3, 5, 9])
    assert together != words(augmented(tiny_bert, reviews, epoch=1, **make), [3, 5, 9])
    assert together != words(augmented(tiny_bert, reviews, seed=1, **make), [3, 5, 9])
    assert rows[[3, 5]]["labels"] == rows.encoded[[3, 5]]["labels"]


def test_words_are_dropped_swapped_and_replaced_in_their_share(tiny_bert: Path, reviews: Path) -> None:
    everything = list(range(80))
    plain = words(augmented(tiny_bert, reviews), everything)
    n_words = sum(map(len, plain))
    dropped = words(augmented(tiny_bert, reviews, word_dropout=0.25), everything)
    assert sum(map(len, dropped)) == pytest.approx(0.75 * n_words, rel=0.1)
    assert all(set(short) <= set(long) and short for short, long in zip(dropped, plain, strict=True))
    swapped = words(augmented(tiny_bert, reviews, word_swap=0.5), everything)
    assert swapped != plain and [sorted(each) for each in swapped] == [sorted(each) for each in plain]
    near = {"the": ["a"], "film": ["movie"]}
    tried = augmented(tiny_bert, reviews, near=near, word_replacement=0.5)
    changed = [tried._changed(f"The ({word})," * 1, np.random.default_rng(n)) for n in range(40) for word in ("film",)]
    assert {"The (film),", "A (film),", "The (movie),", "A (movie),"} == set(changed)


def test_hidden_tokens_are_in_no_attention(tiny_bert: Path, reviews: Path) -> None:
    rows = augmented(tiny_bert, reviews, token_cutoff=0.4)
    columns = rows[list(range(60))]
    special = set(rows.tokenizer.all_special_ids)
    hidden, ids = (
        np.concatenate([w for windows in columns[name] for w in windows]) for name in ("hidden", "input_ids")
    )
    assert not hidden[np.isin(ids, list(special))].any()
    assert hidden[~np.isin(ids, list(special))].mean() == pytest.approx(0.4, abs=0.05)
    batch = collate(columns, pad_id=0)
    assert int(batch["attention_mask"].sum()) == len(ids) - int(hidden.sum())


def test_neighbours_are_words_of_like_meaning() -> None:
    folder = locate(MINILM)
    recipe = tiny_recipe(Path("x"), Path("y")).model_copy(update={"checkpoint": MINILM})
    model = load_model(recipe.override('task.labels=["a", "b"]'), folder)
    found = neighbours(model, load_tokenizer(folder), ["An excellent film, truly terrible actors of the movies."])
    assert "films" in found["film"] or "movie" in found["film"]
    assert all(word not in near and len(near) == 5 for word, near in found.items())
    assert "an" not in found and "zebra" not in found


def test_words_that_cannot_change_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{"text": "很好看无聊"[n % 5] * (1 + n), "target": str(n % 2)} for n in range(40)]
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows))
    with pytest.raises(RecipeError, match="told by the spaces between them, and no text here has two"):
        train(recipe.override("training.augmentation.word_dropout=0.1"))
    spaced = [{**row, "text": " ".join(row["text"])} for row in rows]
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "spaced.jsonl", spaced))
    with pytest.raises(RecipeError, match="word_replacement: no word of the texts is one token of this checkpoint"):
        train(recipe.override("training.augmentation.word_replacement=0.1"))


def test_texts_that_change_are_not_cached_as_features(tiny_bert: Path, reviews: Path, computed: list[int]) -> None:
    recipe = tiny_recipe(tiny_bert, reviews, method="head")
    train(recipe)
    assert computed
    computed.clear()
    train(recipe.override("training.augmentation.word_dropout=0.2"))
    assert not computed


def test_the_largest_pass_follows_the_free_memory(
    tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.device_batch_size=auto")
    plenty = train(recipe)
    assert plenty.environment()["model"]["device_batch_size"] == 16  # all of a step
    sizes = []
    for free in (1_200_000, 2_000_000, 4_000_000):
        monkeypatch.setattr("tl_nlp.memory.free_bytes", lambda device, free=free: free)
        run = train(recipe)
        sizes.append(run.environment()["model"]["device_batch_size"])
        for name, tensor in artifact(run).items():
            torch.testing.assert_close(tensor, artifact(plenty)[name], rtol=1e-3, atol=1e-4)
    assert sizes == sorted(sizes) and 1 <= sizes[0] < sizes[1] < sizes[2]


def test_the_size_is_printed_and_kept(tiny_bert: Path, reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = train(tiny_recipe(tiny_bert, reviews, method="lora")).environment()["model"]
    assert size["dtypes"] == {"float32": size["weights"]} and size["learning"] == 8386
    printed = capsys.readouterr().err
    assert f"8,386 of {size['weights']:,} weights learn" in printed and "MB of gradients and moments" in printed
    pytest.importorskip("bitsandbytes")
    small = train(tiny_recipe(tiny_bert, reviews, method="lora").override("checkpoint.load_in=nf4")).environment()[
        "model"
    ]
    assert small["weights"] == size["weights"]  # 4-bit numbers are packed, and counted one by one
    assert set(small["dtypes"]) == {"nf4", "float32"} and small["weights_mb"] < size["weights_mb"]


def test_rows_of_rare_labels_count_more(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [row for n, row in enumerate(review_rows(200)) if row["target"] == "positive" or n % 8 == 0]
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows)).override("training.epochs=2")
    logits = {}
    for name, choices in {
        "plain": [],
        "balanced": ["training.class_weights=balanced"],
        "margin": ["training.logit_adjustment=1"],
    }.items():
        from tl_nlp import Predictor

        predictions = Predictor.load(train(recipe.override(*choices)))([row["text"] for row in rows])
        logits[name] = np.mean([prediction.probabilities["negative"] for prediction in predictions])
    assert logits["plain"] < logits["balanced"] and logits["plain"] < logits["margin"]
