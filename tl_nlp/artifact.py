"""What was trained: saved, loaded again, and merged to be the checkpoint of another recipe."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tl_nlp.adapters import PeftMethod
from tl_nlp.disk import room, writing
from tl_nlp.errors import CheckpointError
from tl_nlp.families import without_peft
from tl_nlp.heads import head_of
from tl_nlp.hub import is_id
from tl_nlp.methods.full import Full
from tl_nlp.model import load_base, quantization_options, unquantized
from tl_nlp.pretrained import checked, find, load_tokenizer
from tl_nlp.recipe import Checkpoint, Recipe
from tl_nlp.run import Run, read_recipe

_ROOM = 10**6  # bytes, for what goes with the weights


def locate(checkpoint: Checkpoint, *, with_weights: bool = True) -> Path:
    """The local directory of a checkpoint; a finished run's is its model, an adapter merged into the weights first.

    Without weights only what describes it is fetched, its config and tokenizer, and nothing is merged. Raises
    CheckpointError for one that is missing or not to be trusted, HubError for a Hub that cannot be reached.
    """
    run = Run.find(Path(checkpoint.name)) if Path(checkpoint.name).is_dir() else None
    if run is None:
        return find(checkpoint, with_weights)
    method = run.recipe().method
    if not method.is_adapter:
        return find(checkpoint.model_copy(update={"name": str(run.artifact)}), with_weights)
    if not method.is_mergeable:
        raise CheckpointError(
            f"{run.folder} was trained by method {method.kind}, which merges into no weights, so it cannot be a "
            "checkpoint; a run of lora, ia3 or any method that saves whole models can"
        )
    if not with_weights:
        return locate(run.recipe().checkpoint, with_weights=False)
    return find(checkpoint.model_copy(update={"name": str(_merged(run))}))


def _merged(run: Run) -> Path:
    merged = Path(tempfile.mkdtemp(prefix="tl_nlp-merged-"))
    atexit.register(shutil.rmtree, merged, ignore_errors=True)
    save_merged(run.artifact, merged)
    return merged


def save_artifact(model: Any, tokenizer: Any, recipe: Recipe, run: Run) -> None:
    """Writes model/: weights or adapter, tokenizer and recipe, a plain Hugging Face repository; complete or absent.

    Raises NoRoomError.
    """
    whole = [] if recipe.method.is_adapter else model.parameters()  # what an adapter takes is within _ROOM
    n_bytes = sum(weight.numel() * weight.element_size() for weight in whole)
    what = f"the trained model; tl-nlp train {run.folder} goes on once there is"
    with room(run.folder, n_bytes + _ROOM, what), writing(run.model_dir) as folder:
        _write(folder, model, tokenizer, recipe)


def save_merged(artifact: Path, folder: Path) -> Recipe:
    """Writes an adapter's artifact as one of whole weights, merged into the checkpoint in float32; returns its recipe.

    Raises CheckpointError where the method merges into nothing.
    """
    recipe = read_recipe(artifact)
    if not recipe.method.is_mergeable:
        raise CheckpointError(f"method {recipe.method.kind} merges into no weights; without --merge it goes as it is")
    whole = recipe.checkpoint.model_copy(update={"load_in": "float32"})
    model, tokenizer = load_whole(artifact)
    told = " ".join(filter(None, [recipe.note, f"Merged from a {recipe.method.kind} of the same checkpoint."]))
    merged = recipe.model_copy(
        update={"checkpoint": whole, "method": Full(head_epochs=recipe.method.head_epochs), "note": told}
    )
    _write(folder, model, tokenizer, merged)
    return merged


def load_whole(artifact: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of an artifact in float32 and eval mode, an adapter of PEFT merged into the checkpoint."""
    recipe = read_recipe(artifact)
    whole = recipe.checkpoint.model_copy(update={"load_in": "float32"})
    model, tokenizer = _loaded(recipe.model_copy(update={"checkpoint": whole}), artifact)
    return (model.merge_and_unload() if hasattr(model, "merge_and_unload") else model), tokenizer


def _write(folder: Path, model: Any, tokenizer: Any, recipe: Recipe) -> None:
    recipe.method.save(model, folder)
    if (folder / "adapter_config.json").exists():
        _name_base(folder / "adapter_config.json", recipe.checkpoint.name)
    if recipe.task.head == "generate":  # an adapter has them beside it
        without_peft(model).generation_config.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").write_text(_readme(recipe, unquantized(model)), "utf-8")
    (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n", "utf-8")


def _name_base(path: Path, checkpoint: str) -> None:
    """An adapter names the Hub id it was made for, and no path of the machine that made it."""
    base = checkpoint if is_id(checkpoint) else None
    config = json.loads(path.read_text("utf-8")) | {"base_model_name_or_path": base}
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _readme(recipe: Recipe, skip: list[str]) -> str:
    """What the artifact is, and the lines that load it, to be run in its folder; `skip` was not quantized."""
    lines = _loading(recipe, skip)
    note = ""
    if temperature := getattr(recipe.task, "temperature", None) if recipe.task.head == "classify" else None:
        note = f" Its probabilities are the softmax of the logits divided by {temperature}."
    elif recipe.task.head == "multilabel":
        note = " A label is given from its threshold on, which recipe.json has."
    elif recipe.task.head_kind == "ordinal":
        note = " A grade is a share of its scale: the mean over its logits of the products of the sigmoids up to each."
    if "CHECKPOINT" in lines:
        name = recipe.checkpoint.name
        note += f" CHECKPOINT is the folder of {name if name.startswith('package:') else 'what it was trained on'}."
    elif _needs_package(recipe):
        note += " It needs tl_nlp, which finds the checkpoint itself."
    return (
        f"# {recipe.name}\n\n{recipe.task.kind} by method {recipe.method.kind}, made with tl_nlp.{note}\n\n"
        f"```python\n{lines}\n```\n"
    )


def _loading(recipe: Recipe, skip: list[str]) -> str:
    auto_class = head_of(recipe.task).auto_class
    tokenizer = 'tokenizer = AutoTokenizer.from_pretrained(".")'
    if _needs_package(recipe):
        return 'from tl_nlp import Predictor\n\npredictor = Predictor.load(".")'
    if recipe.method.opens_with == "transformers":
        model = f'model = {auto_class}.from_pretrained(".")'
        return f"from transformers import {auto_class}, AutoTokenizer\n\n{model}\n{tokenizer}"
    base = recipe.checkpoint.name if is_id(recipe.checkpoint.name) else "CHECKPOINT"
    model = f"model = {auto_class}.from_pretrained({', '.join([repr(base), *_base_options(recipe, skip)])})"
    more = ", BitsAndBytesConfig" if "BitsAndBytesConfig" in model else ""
    return (
        f"from peft import PeftModel\nfrom transformers import {auto_class}, AutoTokenizer{more}\n\n{model}\n"
        f'model = PeftModel.from_pretrained(model, ".")\n{tokenizer}'
    )


def _needs_package(recipe: Recipe) -> bool:
    return recipe.method.opens_with == "tl_nlp" or head_of(recipe.task).is_own


def _base_options(recipe: Recipe, skip: list[str]) -> list[str]:
    """What `from_pretrained` must be told to load the checkpoint as the adapter knew it."""
    options = [f"num_labels={len(recipe.task.outputs())}"] if recipe.task.outputs() else []
    if recipe.checkpoint.revision and is_id(recipe.checkpoint.name):
        options.append(f"revision={recipe.checkpoint.revision!r}")
    if recipe.checkpoint.blocks is not None:
        options.append(f"num_hidden_layers={recipe.checkpoint.blocks}")
    load_in = recipe.checkpoint.load_in
    if load_in in ("int8", "nf4"):
        bits = quantization_options(load_in, skip)
        words = ", ".join(f"{name}={value!r}" for name, value in bits.items())
        options.append(f"quantization_config=BitsAndBytesConfig({words})")
    elif load_in != "float32":
        options.append(f"dtype={load_in!r}")
    return options


def load_trained(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of an artifact, in eval mode."""
    return _loaded(read_recipe(folder), folder)


def shared_base(recipe: Recipe) -> str | None:
    """Equal for recipes whose adapters can be on one model in memory: of one checkpoint, with heads of one shape, in
    one precision. None where a model is needed for the adapter alone."""
    method, head = recipe.method, head_of(recipe.task)
    if not isinstance(method, PeftMethod) or method.moves != "blocks" or head.is_own:
        return None
    shape = {"head": recipe.task.head_kind, **recipe.task.head_settings(), "n_outputs": len(recipe.task.outputs())}
    return json.dumps([recipe.checkpoint.model_dump(mode="json"), shape, recipe.training.precision])


def load_beside(model: Any, folder: Path, name: str) -> Any:
    """Adds an adapter's artifact to a model of its `shared_base`, under a name; returns its tokenizer."""
    method = read_recipe(folder).method
    assert isinstance(method, PeftMethod)
    method.load_beside(model, folder, name)
    return load_tokenizer(folder)


def _loaded(recipe: Recipe, folder: Path) -> tuple[Any, Any]:
    if recipe.method.is_adapter:
        model = recipe.method.load(load_base(recipe, locate(recipe.checkpoint)), folder)
    else:
        model = load_base(recipe, checked(folder), trained=True)
    tokenizer = load_tokenizer(folder)
    n_tokens = without_peft(model).get_input_embeddings().weight.shape[0]
    if (highest := max(tokenizer.get_vocab().values(), default=0)) >= n_tokens:
        raise CheckpointError(
            f"the tokenizer in {folder} has a token {highest}, and its model has {n_tokens:,} of them"
        )
    return model.eval(), tokenizer
