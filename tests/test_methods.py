"""Methods: what learns when, at which rate, and what is refused; and that a cut-off training goes on exactly."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import artifact, review_rows, tiny_recipe, write_jsonl
from safetensors.torch import load_file

from tl_nlp import Run, train
from tl_nlp.components import find_kind, kinds
from tl_nlp.errors import Interrupted, RecipeError
from tl_nlp.families import blocks, depths
from tl_nlp.recipe import Method
from tl_nlp.schedule import Plan

STEPS = 6  # of an epoch of the 84 training rows of `reviews` in batches of 16


def checkpoint_weights(run: Run) -> dict[str, torch.Tensor]:
    """All weights that ever learn, as the last checkpoint has them."""
    return load_file(run.checkpoint_dir(run.checkpoint_steps()[-1]) / "weights.safetensors")


def changed_blocks(run: Run, checkpoint: Path) -> set[str]:
    """Which parts of the tiny BERT are not as pretrained: embeddings, its blocks 0 and 1."""
    before = load_file(checkpoint / "model.safetensors")
    after = artifact(run)
    names = [name for name, tensor in before.items() if not torch.equal(after[f"bert.{name}"], tensor)]
    parts = {"embeddings": "embeddings.", "block 0": "encoder.layer.0.", "block 1": "encoder.layer.1."}
    return {part for part, start in parts.items() if any(name.startswith(start) for name in names)}


EXPECTED = {
    "full": {"embeddings", "block 0", "block 1"},
    "head": set(),
    "bitfit": {"embeddings", "block 0", "block 1"},  # of each only norms and biases
    "gradual": {"embeddings", "block 0", "block 1"},
    "top_layers": {"block 1"},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_is_frozen_is_bit_equal(kind: str, reviews: Path, tiny_bert: Path) -> None:
    more = {"top_layers": ["method.n_blocks=1"], "gradual": ["method.head_epochs=0.2", "method.every=0.2"]}.get(
        kind, []
    )
    run = train(tiny_recipe(tiny_bert, reviews).override(f"method={kind}", *more, "training.epochs=2"))
    assert changed_blocks(run, tiny_bert) == EXPECTED[kind]
    if kind == "bitfit":
        before = load_file(tiny_bert / "model.safetensors")
        for name, tensor in before.items():
            if tensor.ndim > 1 and "pooler" not in name:
                assert torch.equal(artifact(run)[f"bert.{name}"], tensor)


@pytest.mark.parametrize("kind", ["lora", "ia3", "adapter", "prefix", "prompt"])
def test_an_adapter_leaves_the_checkpoint_bit_equal(
    kind: str, reviews: Path, tiny_bert: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_nlp import training

    folder, task = (tiny_t5, "summarization") if kind in ("prefix", "prompt") else (tiny_bert, "classification")
    before = load_file(folder / "model.safetensors")
    seen: dict[str, torch.Tensor] = {}

    def look(model: Any, *others: Any) -> None:
        weights = {
            name.replace(".base_layer", "").split("base_model.model.")[-1]: w for name, w in model.named_parameters()
        }
        seen.update({name.removeprefix("base_model."): weight.detach() for name, weight in weights.items()})
        save(model, *others)

    save = training.save_artifact
    monkeypatch.setattr(training, "save_artifact", look)
    train(tiny_recipe(folder, reviews, task, method=kind))
    prefix = "" if task == "summarization" else "bert."
    frozen = [name for name in before if "pooler" not in name and f"{prefix}{name}" in seen]
    assert len(frozen) > 20
    for name in frozen:
        assert torch.equal(seen[f"{prefix}{name}"], before[name]), name


def test_gradual_unfreezing_follows_its_schedule_to_the_step(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews, method={"kind": "gradual", "head_epochs": 0.5, "every": 1 / 3})
    recipe = recipe.override("training.epochs=2", "training.schedule=constant", "training.warmup=0")
    learning = [line["values"]["learning"] for line in train(recipe).history() if line["split"] == "train"]
    sizes = {"head": 0, "block 1": 0, "block 0": 0, "embeddings": 0}
    weights = artifact(train(tiny_recipe(tiny_bert, reviews)))
    places = {"encoder.layer.1.": "block 1", "encoder.layer.0.": "block 0", "embeddings.": "embeddings"}
    for name, weight in weights.items():
        sizes[next((place for start, place in places.items() if start in name), "head")] += weight.numel()
    steps = {"head": 0, "block 1": 3, "block 0": 5, "embeddings": 7}  # half an epoch of 6 steps, then every third
    expected = [sum(sizes[part] for part, start in steps.items() if step >= start) for step in range(12)]
    assert learning == expected
    thawed = {4: {"block 1"}, 5: {"block 1"}, 6: {"block 1", "block 0"}, 7: {"block 1", "block 0"}}
    for n_steps, parts in thawed.items():
        run = train(recipe.override(f"training.epochs={n_steps / STEPS}"))
        assert run.checkpoint_steps()[-1] == n_steps
        assert changed_blocks(run, tiny_bert) == parts


def test_two_stages_have_rates_of_their_own(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override(
        "method.head_epochs=1", "training.epochs=2", "training.lr=1e-4", "training.warmup=0.5"
    )
    lines = [line["values"] for line in train(recipe).history() if line["split"] == "train"]
    assert [(line["lr"], line["head_lr"]) for line in lines[:STEPS]] == [(0.0, 1e-3)] * STEPS
    assert [line["lr"] for line in lines[STEPS:]] == pytest.approx([1e-4 / 3, 2e-4 / 3, 1e-4, 1e-4, 2e-4 / 3, 1e-4 / 3])
    first = train(recipe.override("training.first_lr=1e-2", "training.epochs=1.2"))
    assert first.history()[0]["values"]["head_lr"] == 1e-2
    assert first.history()[-1]["step"] == STEPS + 1
    with pytest.raises(RecipeError, match="the head would learn alone in 6 of 6 steps"):
        train(recipe.override("training.epochs=1.05"))


def test_layer_decay_gives_each_block_its_share(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override(
        "training.layer_decay=0.1", "training.epochs=0.01", "training.warmup=0", "training.weight_decay=0"
    )
    before, after = load_file(tiny_bert / "model.safetensors"), artifact(train(recipe))
    # AdamW's first step moves every number by the rate, whatever its gradient
    moved = {
        place: float((after[f"bert.{name}"] - before[name]).abs().max())
        for place, name in {
            0: "embeddings.LayerNorm.weight",
            1: "encoder.layer.0.output.dense.weight",
            2: "encoder.layer.1.output.dense.weight",
        }.items()
    }
    assert moved[2] == pytest.approx(1e-3, rel=1e-2)
    assert moved[1] == pytest.approx(1e-4, rel=1e-2)
    assert moved[0] == pytest.approx(1e-5, rel=1e-2)


def test_one_cycle_rises_falls_and_takes_the_momentum_the_other_way() -> None:
    recipe = tiny_recipe(Path("nowhere"), Path("rows.csv")).override(
        "training.schedule=one_cycle", "training.warmup=0.3", "training.batch_size=1"
    )
    plan = Plan.of(recipe, 100)
    factors = [plan.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.04)
    assert max(factors) == factors[30] == 1.0
    assert factors[99] < 0.01
    assert factors == sorted(factors[:31]) + sorted(factors[31:], reverse=True)
    momenta = [plan.momentum(step) for step in range(100)]
    assert momenta[0] == pytest.approx(0.95) and min(momenta) == momenta[30] == pytest.approx(0.85)
    assert momenta[99] > 0.9499


@pytest.mark.parametrize(
    "choices",
    [
        ["training.schedule=linear"],
        ["training.schedule=constant"],
        ["training.schedule=one_cycle"],
        ["training.schedule=cosine", "training.head_lr=1e-2", "training.layer_decay=0.5"],
        ["method.head_epochs=1"],
        ["method=gradual"],
        ["method=head"],
        ["method=lora", "method.variant=pissa", "method.head_epochs=0.5"],
        ["method=adapter", "training.ema=0.9"],
        ["training.average_last=2", "training.eval_every=0.5"],
        ["training.l2_sp=0.1", "training.mixout=0.3"],
        ["training.reinit_blocks=1", "training.patience=3", "training.eval_every=0.5"],
        ["training.r_drop=1", "training.augmentation.mixup=0.4", "training.class_weights=balanced"],
        ["training.augmentation.word_dropout=0.2", "training.augmentation.word_replacement=0.2"],
        ["training.augmentation.token_cutoff=0.2", "training.gradient_checkpointing=true"],
    ],
    ids=lambda choices: " ".join(choice.replace("training.", "") for choice in choices),
)
@pytest.mark.parametrize("at", [5, 8])
def test_a_training_cut_off_in_the_middle_goes_on_exactly(
    choices: list[str], at: int, reviews: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.epochs=2", "training.dropout=0.1", *choices)
    whole = train(recipe)
    log = Run.log

    def stop(run: Run, step: int, *values: Any) -> None:
        log(run, step, *values)
        if step == at:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Run, "log", stop)
    with pytest.raises(Interrupted, match=f"at step {at} of 12"):
        train(recipe)
    monkeypatch.setattr(Run, "log", log)
    run = Run.open(max(whole.folder.parent.iterdir(), key=lambda folder: folder.stat().st_ctime))
    assert run.folder != whole.folder
    train(run)
    assert all(torch.equal(artifact(run)[name], tensor) for name, tensor in artifact(whole).items())
    for one, other in zip(run.history(), whole.history(), strict=True):
        assert one == other


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("method=lora method.variant=pissa checkpoint.load_in=int8", "load_in: method lora works on float32, and int8"),
        ("method=bitfit checkpoint.load_in=nf4", "methods that fit: adapter, head, ia3, lora"),
        ("method=prefix", "method: prefix does not go with task classification; methods that fit: adapter, bitfit"),
        ("task=summarization method=head", "methods that fit: adapter, bitfit, full, gradual, ia3, lora, prefix"),
        ("task=summarization method.head_epochs=0.5", "method.head_epochs: task summarization writes through"),
        ("task=summarization training.head_lr=1e-3", "training.head_lr: task summarization writes through"),
        ("method=head method.head_epochs=0.5", "method.head_epochs: the head learns alone at all times"),
        (
            "method.head_epochs=1",
            "the head would learn alone for 1 of training.epochs=1; method=head",
        ),
        ("training.first_lr=1e-3", "training.first_lr: is the rate of a first stage; method.head_epochs says"),
        (
            "method=lora training.l2_sp=1",
            "l2_sp: acts on pretrained matrices that learn, and under method lora",
        ),
        ("method=adapter training.mixout=0.1", "it goes with full, gradual, top_layers"),
        ("method=bitfit training.reinit_blocks=1", "training.reinit_blocks: acts on pretrained matrices"),
        ("method=head training.layer_decay=0.9", "training.layer_decay: method head moves no block"),
        ("method=head training.gradient_checkpointing=true", "training.gradient_checkpointing: nothing is kept"),
        ("training.r_drop=1", "training.r_drop: compares dropouts, and training.dropout=0"),
        (
            "training.ema=0.9 training.average_last=2 training.epochs=2",
            "training.average_last: training.ema is an average already",
        ),
        ("training.augmentation.mixup=1 training.device_batch_size=4", "augmentation.mixup: mixes the rows of a step"),
        (
            "task=grading training.focal_gamma=2",
            "is for classification, multilabel and not for task grading",
        ),
        (
            "task=grading task.pooling=mean task.reading=apart training.dropout=0.1",
            "training.dropout: would make what task.reading=apart compares less alike in training",
        ),
        (
            "task=grading task.pooling=mean task.reading=apart method=lora method.dropout=0.1",
            "method.dropout: would make what",
        ),
        ("task=highlights training.augmentation.word_swap=0.1", "augmentation.word_swap: is for classification"),
        ("training.ema=1", "training.ema: '1' does not fit"),
        ("training.average_last=3", "training.average_last: there are fewer evaluations: training.epochs=1"),
        ("training.patience=1", "training.patience: so many evaluations without a better one cannot be"),
        (
            "training.reinit_blocks=1 training.mixout=0.1",
            "training.reinit_blocks: what is drawn anew has no pretrained",
        ),
        ("task=summarization method=prefix training.gradient_checkpointing=true", "does not go with method prefix"),
        ("training.class_weights={}", "training.class_weights"),
        ("training.augmentation.word_dropout=2", "training.augmentation.word_dropout: '2' does not fit"),
        ("training.device_batch_size=most", "training.device_batch_size"),
        ("method=lora method.variant=qlora", "method.variant: 'qlora' does not fit: input should be 'lora', 'rslora'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(choices: str, message: str) -> None:
    recipe = tiny_recipe(Path("nowhere"), Path("nosuch.csv"))
    with pytest.raises(RecipeError) as caught:
        recipe.override(*choices.split())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["method=top_layers", "method.n_blocks=9"], "method.n_blocks: the checkpoint has 2 blocks, not 9"),
        (
            ["method=top_layers", "method.n_blocks=1", "training.reinit_blocks=2"],
            "training.reinit_blocks: blocks drawn anew must learn, and under method top_layers not all 2 do",
        ),
        (["training.reinit_blocks=3"], "training.reinit_blocks: the checkpoint has 2 blocks, not 3"),
        (
            ["method=lora", 'method.target_modules=["nosuch"]'],
            "'nosuch' is no linear layer in this checkpoint's blocks; there are: dense, key, query, value",
        ),
        (['training.class_weights={"nosuch": 2}'], "class_weights: 'nosuch' is none of the labels negative, positive"),
    ],
)
def test_what_does_not_go_with_the_checkpoint_is_refused_before_a_run_is_made(
    choices: list[str], message: str, reviews: Path, tiny_bert: Path, own_runs: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        train(tiny_recipe(tiny_bert, reviews).override(*choices))
    assert message in str(caught.value)
    assert not own_runs.exists()


@pytest.mark.parametrize("kind", ["lora", "ia3", "adapter"])
def test_an_unknown_family_is_refused(
    kind: str, reviews: Path, tiny_bert: Path, tmp_path: Path, own_runs: Path
) -> None:
    from transformers import AutoTokenizer, RoFormerConfig, RoFormerModel

    folder = tmp_path / "roformer"
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    config = RoFormerConfig(
        vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=130,
    )  # fmt: skip
    RoFormerModel(config).save_pretrained(folder)
    recipe = tiny_recipe(folder, reviews, method=kind)
    with pytest.raises(
        RecipeError, match=rf"{kind} knows no place .* family 'roformer'; there are: albert, bart, bert"
    ):
        train(recipe)
    assert not own_runs.exists()
    assert train(recipe.override("method=lora", "method.target_modules=all")).is_finished


def test_a_family_of_unknown_blocks_is_refused_what_acts_on_them(
    reviews: Path, tiny_bert: Path, tmp_path: Path, own_runs: Path
) -> None:
    from transformers import AutoTokenizer, FlaubertConfig, FlaubertModel

    folder = tmp_path / "flaubert"
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    FlaubertModel(FlaubertConfig(vocab_size=200, emb_dim=64, n_layers=2, n_heads=2)).save_pretrained(folder)
    recipe = tiny_recipe(folder, reviews)
    for choices, key in {
        "method=gradual": "method: the blocks of the family 'flaubert' are not known by name",
        "training.layer_decay=0.9": "training.layer_decay: the blocks of the family",
        "training.mixout=0.1": "training.mixout: the blocks of the family",
        "method=top_layers": "method.n_blocks: the checkpoint has 0 blocks",
        "method=lora method.target_modules=all": "method.target_modules: 'all' is no linear layer in this checkpoint's",
    }.items():
        with pytest.raises(RecipeError) as caught:
            train(recipe.override(*choices.split()))
        assert key in str(caught.value)
    assert not own_runs.exists()


def test_a_layer_decay_over_one_block_is_refused(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("method=top_layers", "method.n_blocks=1")
    with pytest.raises(RecipeError, match="layer_decay: all that learns below the head is in one block"):
        train(recipe.override("training.layer_decay=0.5"))


def test_patience_waits_for_the_second_stage(reviews: Path, tiny_bert: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override(
        "training.epochs=6", "method.head_epochs=3", "training.first_lr=1e-9", "training.lr=1e-9", "training.patience=2"
    )
    validations = [line["epoch"] for line in train(recipe).history() if line["split"] == "validation"]
    assert validations == [1, 2, 3, 4, 5]


def test_mixup_of_rows_that_do_not_fit_in_one_pass_is_refused(tiny_bert: Path, tmp_path: Path, own_runs: Path) -> None:
    rows = [{**row, "text": " ".join([row["text"]] * 6)} for row in review_rows(60)]  # several windows each
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "rows.jsonl", rows))
    recipe = recipe.override("training.augmentation.mixup=0.5", "task.max_length=16")
    with pytest.raises(
        RecipeError, match=r"mixes the rows of a step, which may have \d+ windows, and a pass has 16"
    ) as e:
        train(recipe)
    assert not own_runs.exists()
    (needed,) = re.findall(r"training\.device_batch_size=\d+", str(e.value))
    assert train(recipe.override(needed)).is_finished


def test_depths_count_from_the_embeddings_to_the_head() -> None:
    names = ["bert.embeddings.x", "bert.encoder.layer.0.a", "bert.encoder.layer.11.b", "bert.encoder.layer.2.c"]
    assert blocks(names) == ["bert.encoder.layer.0", "bert.encoder.layer.2", "bert.encoder.layer.11"]
    found = depths([*names, "bert.pooler.dense.weight", "classifier.weight"], ["bert.pooler", "classifier"])
    assert list(found.values()) == [0, 1, 3, 2, 4, 4]
    t5 = [
        "shared.w",
        "encoder.block.0.q",
        "encoder.final_layer_norm.w",
        "decoder.block.0.q",
        "decoder.final_layer_norm.w",
    ]
    assert list(depths(t5, []).values()) == [0, 1, 1, 2, 2]


def test_every_method_has_a_docstring_and_defaults() -> None:
    for kind in kinds("methods"):
        method = find_kind("methods", kind)
        assert method.__doc__ != Method.__doc__
        assert method().kind == kind
