"""Every public field of `Training`, of its parts and of every method acts: each has a case that sees it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import artifact, review_rows, tiny_recipe, write_jsonl
from safetensors.torch import load_file

from tl_nlp import Run, checkpoints, train
from tl_nlp.components import find_kind, kinds
from tl_nlp.errors import RecipeError, RunError
from tl_nlp.recipe import Augmentation, Compute, Distillation, Training


class Case(NamedTuple):
    """A field's change, on a recipe with `setup`; what is looked at must differ from the recipe without it."""

    change: str
    setup: tuple[str, ...] = ()
    seen: str = "weights"
    task: str = "classification"


def _training(field: str, value: Any, *setup: str, seen: str = "weights") -> tuple[str, Case]:
    return f"training.{field}", Case(f"training.{field}={value}", setup, seen)


def _method(kind: str, field: str, value: Any, *setup: str, task: str = "classification") -> tuple[str, Case]:
    gradual_t5 = ("method.head_epochs=0",) if (kind, task) == ("gradual", "summarization") else ()
    return f"{kind}.{field}", Case(f"method.{field}={value}", (f"method={kind}", *gradual_t5, *setup), "weights", task)


COMPILE = "training.compute.compile"  # takes half a minute
DROPOUT = "training.dropout=0.1"
TAUGHT = "training.distillation.teacher=TEACHER"
GRADES = 'data.values={"negative": "1", "positive": "3"}'
CASES = dict(
    [
        _training("seeds", 2, seen="studies"),
        _training("scratch", "true", seen="baselines"),
        _training("epochs", 2),
        _training("batch_size", 8),
        _training("device_batch_size", 4, seen="passes through a block"),
        _training("lr", 3e-4),
        _training("head_lr", 1e-2),
        _training("first_lr", 1e-2, "method.head_epochs=0.5"),
        _training("layer_decay", 0.5),
        _training("schedule", "cosine"),
        _training("warmup", 0.5),
        _training("weight_decay", 0.5),
        _training("l2_sp", 1.0),
        _training("mixout", 0.5),
        _training("reinit_blocks", 1),
        _training("dropout", 0.3),
        _training("r_drop", 1.0, DROPOUT),
        _training("label_smoothing", 0.1),
        _training("class_weights", "balanced"),
        _training("focal_gamma", 2.0),
        _training("logit_adjustment", 1.0),
        _training("ema", 0.5),
        _training("average_last", 2, "training.epochs=2", seen="averages"),
        _training("augmentation.word_dropout", 0.3),
        _training("augmentation.word_swap", 0.3),
        _training("augmentation.word_replacement", 0.3),
        _training("augmentation.token_cutoff", 0.3),
        _training("augmentation.mixup", 0.5),
        _training("compute.attention", "sdpa"),
        _training("compute.dropout", "torch", DROPOUT),
        _training("compute.optimizer", "foreach"),
        _training("compute.compile", "always", seen="compiled"),
        _training("compute.pass_scores", 2000, seen="passes through a block"),
        _training("compute.threads", 3, seen="device"),
        ("training.distillation.teacher", Case(TAUGHT)),
        _training("distillation.temperature", 8, TAUGHT),
        _training("distillation.weight", 0.9, TAUGHT),
        _training("distillation.hidden", 1, TAUGHT),
        _training("distillation.relations", 1, TAUGHT),
        ("training.ranking", Case("training.ranking=1", (GRADES,), "weights", "grading")),
        _training("max_grad_norm", 0.01),
        _training("precision", "bfloat16"),
        _training("gradient_checkpointing", "true", seen="passes through a block"),
        _training("eval_every", 0.5, seen="validations"),
        _training("save_every", 0.25, seen="checkpoints"),
        _training("patience", 1, "training.epochs=4", "training.lr=1e-12", seen="validations"),
        _training(
            "skip_bad_steps", 1000, 'training.class_weights={"negative": 3e38}', "training.batch_size=2", seen="end"
        ),
        _training("seed", 1),
        _method("full", "embeddings", "false"),
        _method("top_layers", "n_blocks", 1),
        _method("gradual", "every", 0.5, "training.batch_size=4"),
        _method("lora", "rank", 2),
        _method("lora", "alpha", 1),
        _method("lora", "dropout", 0.5),
        _method("lora", "target_modules", "all"),
        _method("lora", "variant", "rslora"),
        _method("adapter", "size", 8),
        _method("adapter", "placement", "houlsby"),
        _method("prefix", "n_tokens", 4, task="summarization"),
        _method("prompt", "n_tokens", 4, task="summarization"),
        *(
            _method(kind, "head_epochs", 0.25 if kind == "gradual" else 0.5)
            for kind in ("full", "top_layers", "gradual", "bitfit", "lora", "ia3", "adapter")
        ),
    ]
)
PARTS = {"augmentation": Augmentation, "compute": Compute, "distillation": Distillation}
REFUSED = {"head.head_epochs", "prefix.head_epochs", "prompt.head_epochs"}
"""Where a field would do nothing, so that a recipe with it is refused."""


def fields() -> list[str]:
    found = [f"training.{name}" for name in Training.model_fields if name not in PARTS]
    found += [f"training.{part}.{name}" for part, value in PARTS.items() for name in value.model_fields]
    return found + [f"{kind}.{name}" for kind in kinds("methods") for name in find_kind("methods", kind).model_fields]


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row for number, row in enumerate(review_rows(90)) if row["target"] == "positive" or number % 3 == 0]
    for row in rows:
        row["text"] += " good film ."
    return write_jsonl(tmp_path_factory.mktemp("fields") / "rows.jsonl", rows)


@pytest.fixture(scope="module")
def teacher(unbalanced: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    recipe = tiny_recipe(tiny_bert, unbalanced).override("training.seed=2")
    return str(train(recipe, root=tmp_path_factory.mktemp("teacher")).folder)


@pytest.fixture(scope="module")
def plain() -> dict[tuple[Any, ...], dict[str, Any]]:
    """What was seen of the recipes without a field's change; many fields share one."""
    return {}


def looked_at(run: Run, counts: dict[str, int]) -> dict[str, Any]:
    validations = [line["step"] for line in run.history() if line["split"] == "validation"]
    averages = [run.checkpoint_dir(step) / "averages.safetensors" for step in run.checkpoint_steps()[-1:]]
    return {
        "weights": {name: tensor.tolist() for name, tensor in artifact(run).items()},
        "validations": validations,
        "averages": [sorted(load_file(path)) for path in averages],
        "studies": run.results().get("seeds"),
        "baselines": sorted(run.results()["baselines"]),
        "device": run.environment()["device_name"],
        "compiled": run.environment().get("compiled"),
        **counts,
    }


def train_and_look(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from transformers.models.bert.modeling_bert import BertAttention

    counts = {"checkpoints": 0, "passes through a block": 0}
    write, forward = checkpoints.write, BertAttention.forward

    def written(*values: Any, **more: Any) -> Any:
        counts["checkpoints"] += 1
        return write(*values, **more)

    def passed(layer: Any, *values: Any, **more: Any) -> Any:
        # in training alone: how often features are computed depends on what is kept of them from another training
        counts["passes through a block"] += layer.training
        return forward(layer, *values, **more)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write", written)
        patch.setattr(BertAttention, "forward", passed)
        try:
            return {**looked_at(train(recipe), counts), "end": "finished"}
        except RunError as error:
            return {"end": str(error)}


@pytest.mark.parametrize(
    "field", [pytest.param(one, marks=pytest.mark.slow if one == COMPILE else ()) for one in fields()]
)
def test_a_field_acts(
    field: str,
    unbalanced: Path,
    tiny_bert: Path,
    tiny_t5: Path,
    plain: dict[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if field in REFUSED:
        kind, name = field.split(".")
        task = "summarization" if kind != "head" else "classification"
        with pytest.raises(RecipeError, match=rf"method\.{name}: "):
            tiny_recipe(tiny_bert, unbalanced, task).override(f"method={kind}", f"method.{name}=0.5")
        return
    assert field in CASES, f"{field} has no case here: add one that sees what it changes"
    case = CASES[field]
    checkpoint = tiny_t5 if case.task == "summarization" else tiny_bert
    setup, change = case.setup, case.change
    if "distillation" in field:
        folder = request.getfixturevalue("teacher")
        setup, change = tuple(one.replace("TEACHER", folder) for one in setup), change.replace("TEACHER", folder)
    recipe = tiny_recipe(checkpoint, unbalanced, case.task).override(*setup)
    key = (case.task, case.setup)
    if key not in plain:
        plain[key] = train_and_look(recipe, monkeypatch)
    changed = train_and_look(recipe.override(change), monkeypatch)
    assert json.dumps(changed[case.seen]) != json.dumps(plain[key][case.seen])


def test_no_case_is_left_over() -> None:
    assert CASES.keys() | REFUSED == set(fields())
