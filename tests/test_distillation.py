"""A student learns from a teacher: the published losses, nothing kept of what only they need, and what is refused."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import Answer, artifact, recipe_file, review_rows, tiny_recipe, write_jsonl
from interruptions import assert_same, stopped_at
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tl_nlp import Predictor, Recipe, Run, train
from tl_nlp.batches import collate
from tl_nlp.data.files import Files
from tl_nlp.errors import RunError
from tl_nlp.heads import HEADS
from tl_nlp.objective import Objective
from tl_nlp.preparation import prepare
from tl_nlp.publication import _without_paths
from tl_nlp.steps import Steps
from tl_nlp.training import steps_of


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("distillation")
    sizes = {"train": 240, "validation": 60, "test": 120}
    return Files(
        **{
            split: write_jsonl(folder / f"{split}.jsonl", review_rows(n_rows, seed))
            for seed, (split, n_rows) in enumerate(sizes.items())
        }
    )


@pytest.fixture(scope="module")
def teacher(files: Files, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny_recipe(tiny_bert, files).override("training.epochs=5"), root=tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def narrow_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one block, half as wide as `tiny_bert`, with its tokenizer."""
    from transformers import AutoConfig, BertModel

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("narrow-bert")
    shutil.copytree(tiny_bert, folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(tiny_bert)
    config.hidden_size, config.num_hidden_layers = 32, 1
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def student(files: Files, narrow_bert: Path, teacher: Run) -> Recipe:
    return tiny_recipe(narrow_bert, files).override(f"training.distillation.teacher={teacher.folder}")


def made(recipe: Recipe) -> Steps:
    steps, _ = steps_of(prepare(recipe), Accelerator())
    steps.unfreeze(0)
    return steps


def test_the_loss_is_as_published(student: Recipe, teacher: Run) -> None:
    """Of labels, of answers (Hinton et al. 2015) and of states (Jiao et al. 2020, equation 8)."""
    steps = made(
        student.override(*(f"training.distillation.{key}" for key in ("temperature=3", "weight=0.3", "hidden=2")))
    )
    rows = list(range(10))
    batch = collate(steps.examples(0)[rows], steps.pad_id)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        loss, count = steps.loss(0, rows)
        theirs = Predictor.load(teacher).model(**inputs, output_hidden_states=True)
        ours = steps.model(**inputs, output_hidden_states=True)
    labels = functional.cross_entropy(ours.logits, batch["labels"], reduction="sum")
    p, q = (theirs.logits / 3).softmax(-1), (ours.logits / 3).softmax(-1)
    soft = 9 * (p * (p.log() - q.log())).sum()
    own_map = steps.teacher.weights["hidden_states.weight"].detach()
    gaps = ours.hidden_states[1] @ own_map.T - theirs.hidden_states[2]  # the only block is held to the top one
    mask = batch["attention_mask"]
    states = ((gaps.square().mean(-1) * mask).sum(1) / mask.sum(1)).sum()
    assert count == 10
    assert float(loss) == pytest.approx(float(0.7 * labels + 0.3 * soft + 2 * states), rel=1e-4)


def test_the_loss_of_relations_is_as_published(student: Recipe, teacher: Run) -> None:
    """Wang et al. 2021, equations 5 to 8: each token's softmax over the tokens it is like, of queries, keys, values."""
    choices = ("training.distillation.weight=0", "training.distillation.relations=2")
    steps = made(student.override(*choices))
    batch = collate(steps.examples(0)[list(range(6))], steps.pad_id)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    models = steps.model, Predictor.load(teacher).model
    found = 0.0
    with torch.no_grad():
        loss, _ = steps.loss(0, list(range(6)))
        ours, theirs = (model.bert(**inputs, output_hidden_states=True).hidden_states[-2] for model in models)
        n_heads = models[1].config.num_attention_heads
        for name in ("query", "key", "value"):
            tables = []
            for model, states in zip(models, (ours, theirs), strict=True):
                part = getattr(model.bert.encoder.layer[-1].attention.self, name)(states)
                tables.append(part.view(*part.shape[:2], n_heads, -1))
            for row, length in enumerate(batch["lengths"].tolist()):
                for head in range(n_heads):
                    one, other = (table[row, :length, head] for table in tables)
                    p = (other @ other.T / other.shape[1] ** 0.5).softmax(-1)
                    q = (one @ one.T / one.shape[1] ** 0.5).softmax(-1)
                    found += float((p * (p.log() - q.log())).sum()) / (n_heads * length)
        labels = functional.cross_entropy(steps.model(**inputs).logits, batch["labels"], reduction="sum")
    assert found > 0
    assert float(loss) == pytest.approx(float(labels) + 2 * found, rel=1e-3)


def test_the_soft_losses_of_many_labels_and_of_grades_are_as_published() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs, labels = (torch.randn(4, 3, generator=draw) for _ in range(3))
    p, q = (theirs / 2).sigmoid(), (ours / 2).sigmoid()
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    head, batch = HEADS["multilabel"](), {"labels": (labels > 0).float(), "soft_targets": theirs}
    assert float(head.soft_loss(ours, batch, 2.0)) == pytest.approx(4 * float(divergence.sum()), rel=1e-5)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
    crossed = functional.binary_cross_entropy_with_logits(ours / 2, p, reduction="sum")
    assert float(head.soft_loss(ours, batch, 2.0)) == pytest.approx(4 * float(crossed - entropy), rel=1e-5)
    labels[0, 0] = math.nan
    known = ~labels.isnan()
    batch = {"labels": labels, "soft_targets": theirs}
    squared = float((ours - theirs)[known].square().sum())
    assert float(HEADS["regress"]().soft_loss(ours, batch, 2.0)) == pytest.approx(squared)
    for name in ("regress", "ordinal", "multilabel"):  # a student that answers as its teacher has nothing to learn
        head = HEADS[name](n_levels=4) if name == "ordinal" else HEADS[name]()
        n_outputs = 9 if name == "ordinal" else 3
        logits = torch.randn(4, n_outputs, generator=draw)
        same = {"labels": labels, "soft_targets": head.soft_targets(logits)}
        assert float(head.soft_loss(logits, same, 2.0)) == pytest.approx(0, abs=1e-5)
    gone = HEADS["regress"]().loss(ours, batch, Objective())[1]
    assert gone == known.sum()


def test_passes_and_gradient_checkpointing_change_nothing(student: Recipe) -> None:
    recipe = student.override("training.distillation.hidden=1", "training.distillation.relations=1")

    def gradients(recipe: Recipe, *passes: range) -> tuple[float, list[torch.Tensor]]:
        steps, total = made(recipe), 0.0
        for rows in passes:
            loss, _ = steps.loss(0, list(rows))
            loss.backward()
            total += loss.item()
        return total, [weight.grad for weight in steps.weights.by_name.values()]

    loss, found = gradients(recipe, range(12))
    assert len(found) == len([weight for weight in found if weight is not None])
    in_two = gradients(recipe, range(5), range(5, 12))
    saving = gradients(recipe.override("training.gradient_checkpointing=true"), range(12))
    for other, theirs in (in_two, saving):
        assert other == pytest.approx(loss, rel=1e-4)
        for one, another in zip(found, theirs, strict=True):
            torch.testing.assert_close(one, another, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["full", "head"])
def test_a_teachers_word_alone_needs_no_labels(
    method: str, files: Files, tiny_bert: Path, teacher: Run, tmp_path: Path
) -> None:
    """Labels that are drawn teach nothing, and with weight=1 they change no bit."""
    rows = [json.loads(line) for line in Path(files.train).read_text().splitlines()]
    draw = random.Random(0)
    drawn = write_jsonl(
        tmp_path / "drawn.jsonl", [{**row, "target": draw.choice(("negative", "positive"))} for row in rows]
    )
    told = [f"method={method}", "training.epochs=5", f"training.distillation.teacher={teacher.folder}"]
    if method == "head":
        told.append("training.lr=1e-2")
    recipe = tiny_recipe(tiny_bert, files).override(*told, "training.distillation.weight=1")
    of_labels, of_drawn = train(recipe), train(recipe.override(f"data.train={drawn}"))
    one, other = artifact(of_labels), artifact(of_drawn)
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    if method == "full":
        assert of_drawn.results()["splits"]["test"]["metrics"]["accuracy"]["value"] > 0.9


def test_states_come_nearer_and_their_map_stays_behind(student: Recipe) -> None:
    recipe = student.override(
        "training.distillation.weight=0", "training.distillation.hidden=5", "training.epochs=4", "training.lr=3e-3"
    )
    run = train(recipe)
    losses = [loss for _, loss in run.curves()[0]]
    assert losses[-1] < 0.7 * losses[0]
    assert not [name for name in artifact(run) if "hidden_states" in name]
    (kept,) = (run.checkpoint_dir(run.checkpoint_steps()[-1])).glob("weights*.safetensors")
    assert load_file(kept)["hidden_states.weight"].shape == (64, 32)
    assert run.environment()["model"]["learning"] == run.environment()["model"]["weights"]
    Predictor.load(run)(["the film is good"])


def test_widths_that_are_equal_need_no_map(files: Files, tiny_bert: Path, teacher: Run) -> None:
    told = [f"training.distillation.teacher={teacher.folder}", "training.distillation.hidden=1"]
    recipe = tiny_recipe(tiny_bert, files).override("checkpoint.blocks=1", *told)
    assert made(recipe).teacher.weights == {}


GRADES = 'data.values={"negative": "1", "positive": "3"}'


@pytest.mark.parametrize(
    ("task", "choices"),
    [
        ("classification", ["method=lora"]),
        ("classification", ["method.head_epochs=0.5", "task.pooling=mean"]),
        ("grading", [GRADES, "task.loss=ordinal"]),
        ("multilabel", ["training.distillation.weight=1"]),
    ],
)
def test_a_student_of_every_kind_can_be_a_teacher(
    task: str, choices: list[str], reviews: Path, tiny_bert: Path
) -> None:
    recipe = tiny_recipe(tiny_bert, reviews, task)
    plain = [one for one in choices if "distillation" not in one]
    teacher = train(recipe.override(*plain))
    told = [f"training.distillation.teacher={teacher.folder}", "training.distillation.hidden=1"]
    student = train(recipe.override("checkpoint.blocks=1", *choices, *told))
    Predictor.load(student)(["the film is good"])
    assert not [name for name in artifact(student) if "hidden_states" in name]


def test_a_teacher_answers_texts_as_they_were(student: Recipe) -> None:
    plain = made(student).examples(0)[[0, 1, 2]]
    changed = made(student.override("training.augmentation.word_dropout=0.5", "training.augmentation.mixup=1"))
    found = changed.examples(0)[[0, 1, 2]]
    assert found["input_ids"] != plain["input_ids"]
    assert found["soft_targets"] == plain["soft_targets"]
    changed.loss(0, [0, 1, 2])[0].backward()


def test_a_student_that_was_stopped_goes_on_to_the_same_bytes(student: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = student.override(
        "training.distillation.hidden=1", "training.dropout=0.1", "training.augmentation.word_dropout=0.2",
        "training.epochs=2", "training.device_batch_size=8", "training.ema=0.9",
    )  # fmt: skip
    run = stopped_at(recipe, 17, monkeypatch)
    assert not run.is_finished
    assert_same(train(run), train(recipe))


def test_another_teacher_is_refused(
    student: Recipe, teacher: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Run(tmp_path / "teacher")
    shutil.copytree(teacher.folder, copy.folder)
    run = stopped_at(student.override(f"training.distillation.teacher={copy.folder}"), 9, monkeypatch)
    (file,) = copy.model_dir.glob("*.safetensors")
    assert set(run.environment()["teacher"]) == {file.name}
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match=rf"the weights of {copy.folder} are not those .* began with"):
        train(run)


def test_what_does_not_go_together_is_refused(
    student: Recipe, files: Files, teacher: Run, tiny_bert: Path, tiny_t5: Path, tmp_path: Path,
    command: Callable[..., Answer],
) -> None:  # fmt: skip
    def refused(recipe: Recipe, *overrides: str) -> str:
        answer = command("train", recipe_file(recipe, tmp_path), *overrides)
        assert answer.status == 2, answer.err
        return answer.err.splitlines()[-1]

    key = "training.distillation"
    assert "no run 'nowhere': there is no such directory" in refused(student, f"{key}.teacher=nowhere")
    assert f"{key}.teacher: is required" in refused(tiny_recipe(tiny_bert, files), f"{key}.weight=1")
    other = tmp_path / "others"
    other.mkdir()
    named = refused(student, 'data.values={"negative": "bad", "positive": "good"}', 'task.labels=["bad", "good"]')
    assert "answers in labels negative, positive, and the student in labels bad, good" in named
    shutil.copytree(teacher.artifact, other / "model")
    tokenizer = json.loads((other / "model" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    (other / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    told = refused(student, f"{key}.hidden=1", f"{key}.teacher={other / 'model'}")
    assert "has another tokenizer than the student's checkpoint" in told
    assert "task.max_length=64 gives both the same windows" in refused(student, f"{key}.hidden=1", "task.max_length=96")
    writes = tiny_recipe(tiny_t5, files, "summarization")
    assert "and not for task summarization" in refused(writes, f"{key}.teacher={teacher.folder}")
    assert "does the task classification, and the student grading" in refused(
        student, "task=grading", "task.max_length=64", GRADES
    )
    assert "leaves the teacher nothing to say" in refused(student, f"{key}.weight=0")
    assert f"{key}.temperature: softens" in refused(
        student, f"{key}.weight=0", f"{key}.hidden=1", f"{key}.temperature=4"
    )
    assert "looks at no label" in refused(student, f"{key}.weight=1", "training.label_smoothing=0.1")
    assert "moves none of them" in refused(student, f"{key}.hidden=1", "method=head")
    assert "moves none of them" in refused(student, f"{key}.relations=1", "method=head")
    shutil.copytree(teacher.artifact, other / "export")
    (other / "export" / "certificate.json").write_text("{}")
    assert "is an export" in refused(student, f"{key}.teacher={other / 'export'}")
    assert "rows of test, which would not be new" in refused(student, f"data.test={files.train}", "data.overlap=keep")


def test_a_published_recipe_names_its_teacher_without_a_path(student: Recipe, teacher: Run) -> None:
    assert _without_paths(student).training.distillation.teacher == teacher.folder.name
