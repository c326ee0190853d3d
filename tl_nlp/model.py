"""Models loaded: a checkpoint's weights with a head for the task, in the number format of the recipe."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tl_nlp import document
from tl_nlp.attention import FUSED
from tl_nlp.errors import CheckpointError, HardwareError, RecipeError
from tl_nlp.families import blocks, head_modules, in_head, within_block, without_peft
from tl_nlp.heads import head_of
from tl_nlp.pretrained import first_line, load_config, positions
from tl_nlp.recipe import Recipe
from tl_nlp.untrusted import weights_bytes
from tl_nlp.warm_start import share_blocks, warm_config, warm_model

# it tells of each product that it is done in float16, and of kernels that it does without
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def check(recipe: Recipe, folder: Path, tokenizer: Any) -> None:
    """Refuses what does not go with the checkpoint in `folder`, seen without its weights.

    Raises RecipeError with the key, HardwareError for a number format that this machine cannot compute with.
    """
    skeleton = _skeleton(recipe, folder)
    config, training, method, head = skeleton.config, recipe.training, recipe.method, head_modules(skeleton)
    limit = min(tokenizer.model_max_length, positions(config)) - method.n_positions
    if recipe.task.max_length > limit:
        raise RecipeError(
            f"{recipe.task.max_length} tokens do not fit the {limit:.0f} positions of this checkpoint; "
            "a longer text becomes several windows",
            "task.max_length",
        )
    prefix = getattr(recipe.task, "prefix", "")
    if prefix and tokenizer.unk_token_id in tokenizer(prefix)["input_ids"]:
        raise RecipeError(f"{prefix!r} has what this checkpoint has no token for", "task.prefix")
    method.check(skeleton, head)
    _number_format(recipe.checkpoint.load_in, skeleton)
    _check_blocks(recipe, skeleton, head)
    if training.compute.attention == "sdpa" and not skeleton._supports_sdpa:
        raise RecipeError(f"the family {config.model_type!r} has no fused attention", "training.compute.attention")
    if training.gradient_checkpointing and not skeleton.supports_gradient_checkpointing:
        raise RecipeError(f"the family {config.model_type!r} cannot do it", "training.gradient_checkpointing")
    drops = [getattr(part, name) for part, name in _dropouts(config)]
    drops += [getattr(part, "dropout", 0.0) for part in (method, recipe.task)]
    if training.r_drop and not any(drops):
        raise RecipeError(
            "compares two passes of unlike dropout, and the checkpoint's dropout is 0; training.dropout=0.1",
            "training.r_drop",
        )


def _check_blocks(recipe: Recipe, skeleton: Any, head: list[str]) -> None:
    """Refuses what acts on blocks that are not there, are not known by name, or never learn."""
    training, method = recipe.training, recipe.method
    names = [name for name, _ in skeleton.named_parameters()]
    there = blocks(names)
    if not there:
        unknown = f"the blocks of the family {skeleton.config.model_type!r} are not known by name"
        if method.kind == "gradual":
            raise RecipeError(f"{unknown}; method=full moves all of it", "method")
        for field, is_set in {"layer_decay": training.layer_decay < 1, "mixout": training.mixout > 0}.items():
            if is_set:
                raise RecipeError(unknown, f"training.{field}")
    if training.reinit_blocks > len(there):
        raise RecipeError(
            f"the checkpoint has {len(there)} blocks, not {training.reinit_blocks}", "training.reinit_blocks"
        )
    drawn = there[len(there) - training.reinit_blocks :]
    learning = method.learning(names, head, (training.epochs - method.head_epochs) * (1 - 1e-6))
    if any(within[0] in drawn for name in names if name not in learning and (within := within_block(name))):
        raise RecipeError(
            f"blocks drawn anew must learn, and under method {method.kind} not all {training.reinit_blocks} do",
            "training.reinit_blocks",
        )


def _skeleton(recipe: Recipe, folder: Path, *, trained: bool = False) -> Any:
    """The model of a recipe on the meta device: its classes, names and shapes; `trained` where `folder` has what the
    recipe made of its checkpoint."""
    import torch
    import transformers

    auto_class = getattr(transformers, head_of(recipe.task).auto_class)
    config = load_config(folder)
    if recipe.checkpoint.blocks is not None and not trained:
        _keep_blocks(config, recipe.checkpoint.blocks)
    if recipe.checkpoint.warm_start and not trained:
        config = warm_config(config, folder)
    if type(config) not in auto_class._model_mapping:
        fits = "a BERT-style checkpoint"
        if recipe.task.head == "generate":
            fits = "a T5- or BART-style one, or a BERT-style one with checkpoint.warm_start=true"
        raise RecipeError(
            f"a checkpoint of the family {config.model_type!r} cannot do the task {recipe.task.kind}, "
            f"which needs {fits}",
            "checkpoint",
        )
    if recipe.checkpoint.load_in == "float16" and "t5" in config.model_type:
        raise RecipeError(
            "T5 overflows to NaN in float16; bfloat16 has its range: checkpoint.load_in=bfloat16", "checkpoint.load_in"
        )
    outputs = recipe.task.outputs()
    if outputs:
        config.num_labels = len(outputs)
        config.id2label = dict(enumerate(outputs))
        config.label2id = {name: index for index, name in enumerate(outputs)}
    if recipe.training.dropout is not None:
        for part, name in _dropouts(config):
            setattr(part, name, recipe.training.dropout)
    with torch.device("meta"):
        skeleton = auto_class.from_config(config, attn_implementation="eager")
    if recipe.checkpoint.share_blocks and not trained:
        share_blocks(skeleton)
    head_of(recipe.task).install(skeleton)
    return skeleton


def _keep_blocks(config: Any, n_blocks: int) -> None:
    there = getattr(config, "num_hidden_layers", 0)
    if config.is_encoder_decoder:
        raise RecipeError("is for encoders, and this checkpoint writes", "checkpoint.blocks")
    if n_blocks > there:
        raise RecipeError(f"the checkpoint has {there} blocks, not {n_blocks}", "checkpoint.blocks")
    config.num_hidden_layers = n_blocks
    if getattr(config, "layer_types", None):  # the kind of attention of each block
        config.layer_types = config.layer_types[:n_blocks]


def _dropouts(config: Any) -> list[tuple[Any, str]]:
    """Each rate of dropout by the configuration it is in, which may be a part's, and its name."""
    parts = [getattr(config, name) for name in config.sub_configs]
    return [
        (part, name)
        for part in (config, *parts)
        for name, value in part.to_dict().items()
        if "dropout" in name and (value is None or (isinstance(value, int | float) and not isinstance(value, bool)))
    ]


def load_model(recipe: Recipe, folder: Path) -> Any:
    """The checkpoint in `folder` with a head for the task and what the method adds, ready to train on the CPU.

    The weights the checkpoint lacks (the head's) and those of `training.reinit_blocks` are drawn from `training.seed`.
    """
    import torch

    torch.manual_seed(recipe.training.seed)
    model = load_base(recipe, folder)
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)
    if recipe.training.reinit_blocks:
        for block in blocks([name for name, _ in model.named_parameters()])[-recipe.training.reinit_blocks :]:
            model.get_submodule(block).apply(_drawn_anew(model))
    model = recipe.method.apply(model, head_modules(model))
    if recipe.training.gradient_checkpointing:
        plain = without_peft(model)
        plain.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


_PACKS = "support_avx512bf16_for_cpu"
"""Where it is true bitsandbytes lays 4-bit weights out anew in an evaluation, and then no gradient passes them."""


def _drawn_anew(model: Any) -> Callable[[Any], None]:
    def draw(module: Any) -> None:
        for weight in module.parameters(recurse=False):
            weight._is_hf_initialized = False  # else transformers leaves what it has loaded
        module._is_hf_initialized = False
        model._init_weights(module)

    return draw


def load_base(recipe: Recipe, folder: Path, *, trained: bool = False) -> Any:
    """The model in `folder` with a head for the task, drawn at random where it has none and is not `trained` yet.

    Raises CheckpointError, and what `check` raises.
    """
    import torch

    skeleton, of_task = _skeleton(recipe, folder, trained=trained), head_of(recipe.task)
    head = head_modules(skeleton)
    if not recipe.checkpoint.random or trained:
        _refuse_weights(skeleton, folder)
    if recipe.checkpoint.random and not trained:
        model = type(skeleton)._from_config(skeleton.config, attn_implementation=_attention(recipe, skeleton))
        if recipe.checkpoint.share_blocks:
            share_blocks(model)
        of_task.install(model)
        return model
    load = warm_model if recipe.checkpoint.warm_start and not trained else type(skeleton).from_pretrained
    try:
        model, info = load(
            str(folder),
            config=skeleton.config,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=not trained,
            output_loading_info=True,
            attn_implementation=_attention(recipe, skeleton),
            **_number_format(recipe.checkpoint.load_in, skeleton),
        )
    except Exception as error:  # a stranger's file can raise anything
        raise CheckpointError(f"the weights in {folder} cannot be loaded: {first_line(error)}") from None
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    replaced = head[-1:] if of_task.is_own else []  # what is in its place is read below
    lost = [key for key in fresh if not in_head(key, replaced if trained else head)]
    if lost:
        raise CheckpointError(
            f"{folder} lacks {len(lost)} weights that a {type(model).__name__} has, {lost[0]} among "
            "them, so it is damaged or of another shape"
        )
    if recipe.checkpoint.share_blocks and not trained:
        share_blocks(model)
    of_task.install(model)
    if trained and of_task.is_own:
        document.read(model, folder)
    for name in head:  # what is trained is float32
        model.get_submodule(name).to(torch.float32)
        model.get_submodule(name).register_forward_pre_hook(_as_float32)
    return model


def _refuse_weights(skeleton: Any, folder: Path) -> None:
    """Refuses files of weights that are damaged, hold what is no number, or are far too small for their config.json,
    before memory is taken for what that asks for."""
    n_bytes = weights_bytes(sorted(folder.glob("*.safetensors")))
    n_weights = sum(weight.numel() for weight in skeleton.parameters())
    if n_weights > _MOST_IN_A_BYTE * n_bytes + _MADE_HERE:
        raise CheckpointError(
            f"{folder / 'config.json'} tells of {n_weights:,} weights, and the files beside it hold {n_bytes:,} bytes"
        )


_MOST_IN_A_BYTE = 2  # of nf4
_MADE_HERE = 10**8  # weights of a head, or of what looks from a decoder at an encoder


def _attention(recipe: Recipe, skeleton: Any) -> str:
    """The fused kernel, whose backward pass is the slower one on a CPU, or the plain one."""
    import torch

    chosen = recipe.training.compute.attention
    if chosen == "auto":
        chosen = "sdpa" if torch.cuda.is_available() and skeleton._supports_sdpa else "eager"
    return FUSED if chosen == "sdpa" else chosen


def _as_float32(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hidden states of a backbone in half precision, for a head in full precision."""
    return tuple(
        value.float() if hasattr(value, "is_floating_point") and value.is_floating_point() else value
        for value in inputs
    )


def _number_format(load_in: str, skeleton: Any) -> dict[str, Any]:
    """The arguments of `from_pretrained` that load frozen weights so, the head left in full precision."""
    import torch

    config, skip = skeleton.config, unquantized(skeleton)
    own = getattr(config, "quantization_config", None)
    if load_in not in ("int8", "nf4"):
        if own is not None:
            raise CheckpointError(
                f"the checkpoint is quantized, so it cannot load in {load_in}; checkpoint.load_in=int8 or nf4 fits"
            )
        return {"dtype": getattr(torch, load_in)}
    on_gpu = torch.cuda.is_available()
    if load_in == "nf4" and not on_gpu:
        widths = {part.in_features for name, part in skeleton.named_modules() if _is_quantized(name, part, skip)}
        if odd := [width for width in sorted(widths) if width % 64]:
            raise HardwareError(f"nf4 on a CPU needs widths in multiples of 64, and this checkpoint has {odd[0]}")
    options: dict[str, Any] = {"dtype": torch.float32}
    if on_gpu:
        options["device_map"] = {"": torch.cuda.current_device()}
    if own is None:
        return {**options, "quantization_config": _quantization(load_in, skip)}
    own["llm_int8_skip_modules"] = sorted({*(own.get("llm_int8_skip_modules") or []), *skip})
    return options


def _is_quantized(name: str, part: Any, skip: list[str]) -> bool:
    return hasattr(part, "in_features") and not in_head(f"{name}.weight", skip)


def _quantization(load_in: str, skip: list[str]) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise HardwareError(f"checkpoint.load_in={load_in} needs bitsandbytes: pip install 'tl-nlp[gpu]'") from None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**quantization_options(load_in, skip))


def quantization_options(load_in: str, skip: list[str]) -> dict[str, Any]:
    """The keyword arguments of `BitsAndBytesConfig` for int8 or nf4; the modules in `skip` stay in full precision."""
    bits: dict[str, Any] = {"load_in_8bit": True}
    if load_in == "nf4":
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
    return {**bits, "llm_int8_skip_modules": skip}


def unquantized(model: Any) -> list[str]:
    """The modules that stay in full precision: the head, or what writes in its place."""
    return head_modules(model) or ["lm_head"]


def halved(model: Any) -> Any:
    """The model with the weights of its products in bfloat16, for inference under autocast: the same answers to the
    last bit, since they would be cast there, for each pass anew."""
    import torch

    for part in model.modules():
        if type(part) is torch.nn.Linear and part.weight.dtype == torch.float32:
            for name, weight in list(part.named_parameters(recurse=False)):  # one that is tied stays as it is elsewhere
                setattr(part, name, torch.nn.Parameter(weight.detach().bfloat16(), requires_grad=False))
    return model


def placed(model: Any, device: Any) -> Any:
    """The model on the device; one that was loaded there, as quantized ones are, stays as it is."""
    return model if getattr(model, "hf_device_map", None) else model.to(device)
