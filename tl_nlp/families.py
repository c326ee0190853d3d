"""What is where in a model, by the names of its weights: head, blocks, embeddings, and each family's projections."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_BLOCK = r"(?:layer|layers|block|albert_layers)\.\d+"
_IN_BLOCK = re.compile(rf"((?:.*?\.)??{_BLOCK})\.(.+)")  # the outermost: T5's blocks have layers


@dataclass(frozen=True)
class Family:
    """Where the linear layers of an architecture are, as paths within one block."""

    query_value: tuple[str, ...]
    key_value: tuple[str, ...]
    attention_out: tuple[str, ...]  # what goes from attention into the residual stream
    feedforward_out: tuple[str, ...]  # what goes from the feed-forward layer into it


_BERT = Family(
    ("attention.self.query", "attention.self.value"),
    ("attention.self.key", "attention.self.value"),
    ("attention.output.dense",),
    ("output.dense",),
)
_BART = Family(
    ("self_attn.q_proj", "self_attn.v_proj", "encoder_attn.q_proj", "encoder_attn.v_proj"),
    ("self_attn.k_proj", "self_attn.v_proj", "encoder_attn.k_proj", "encoder_attn.v_proj"),
    ("self_attn.out_proj", "encoder_attn.out_proj"),
    ("fc2",),
)
_T5 = Family(
    ("layer.0.SelfAttention.q", "layer.0.SelfAttention.v", "layer.1.EncDecAttention.q", "layer.1.EncDecAttention.v"),
    ("layer.0.SelfAttention.k", "layer.0.SelfAttention.v", "layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"),
    ("layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"),
    ("layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"),
)
FAMILIES = {
    "albert": Family(
        ("attention.query", "attention.value"),
        ("attention.key", "attention.value"),
        ("attention.dense",),
        ("ffn_output",),
    ),
    "bart": _BART,
    "bert": _BERT,
    "camembert": _BERT,
    "deberta": Family(
        ("attention.self.in_proj",), ("attention.self.in_proj",), ("attention.output.dense",), ("output.dense",)
    ),
    "deberta-v2": Family(
        ("attention.self.query_proj", "attention.self.value_proj"),
        ("attention.self.key_proj", "attention.self.value_proj"),
        ("attention.output.dense",),
        ("output.dense",),
    ),
    "distilbert": Family(
        ("attention.q_lin", "attention.v_lin"),
        ("attention.k_lin", "attention.v_lin"),
        ("attention.out_lin",),
        ("ffn.lin2",),
    ),
    "electra": _BERT,
    "led": Family(
        (
            "self_attn.longformer_self_attn.query",
            "self_attn.longformer_self_attn.value",
            *_BART.query_value,
        ),
        (
            "self_attn.longformer_self_attn.key",
            "self_attn.longformer_self_attn.value",
            *_BART.key_value,
        ),
        ("self_attn.output", *_BART.attention_out),
        ("fc2",),
    ),
    "marian": _BART,
    "mbart": _BART,
    "modernbert": Family(("attn.Wqkv",), ("attn.Wqkv",), ("attn.Wo",), ("mlp.Wo",)),
    "mpnet": Family(
        ("attention.attn.q", "attention.attn.v"),
        ("attention.attn.k", "attention.attn.v"),
        ("attention.attn.o",),
        ("output.dense",),
    ),
    "mt5": _T5,
    "pegasus": _BART,
    "roberta": _BERT,
    "t5": _T5,
    "t5gemma": Family(
        ("self_attn.q_proj", "self_attn.v_proj", "cross_attn.q_proj", "cross_attn.v_proj"),
        ("self_attn.k_proj", "self_attn.v_proj", "cross_attn.k_proj", "cross_attn.v_proj"),
        ("self_attn.o_proj", "cross_attn.o_proj"),
        ("mlp.down_proj",),
    ),
    "umt5": _T5,
    "xlm-roberta": _BERT,
}
"""By `config.model_type`."""


def within_block(name: str) -> tuple[str, str] | None:
    """The block that the module or weight is in and its path there; None outside of blocks."""
    found = _IN_BLOCK.fullmatch(name)
    return (found[1], found[2]) if found else None


def unshared(model: Any) -> dict[str, Any]:
    """The weights by name, those of blocks that are used twice once for each: what is saved opens without us."""
    own = {name for name, _ in model.named_parameters()}
    return {
        name: weight.clone() if within_block(name) and name not in own else weight
        for name, weight in model.state_dict().items()
    }


def pattern(paths: tuple[str, ...]) -> str:
    """A regular expression for the full names of modules at these paths of any block."""
    return rf".*\.{_BLOCK}\.(?:{'|'.join(re.escape(path) for path in paths)})"


def blocks(names: list[str]) -> list[str]:
    """The blocks, the lowest first; those of a decoder are above those of its encoder."""
    found = {within[0] for name in names if (within := within_block(name))}
    return sorted(found, key=lambda block: (".decoder." in f".{block}", int(block.rpartition(".")[2])))


def projections(backbone: Any) -> list[Any]:
    """What makes queries, keys and values in the top block of an encoder; none where they are in one layer."""
    family = FAMILIES.get(backbone.config.model_type)
    if family is None:
        return []
    query, value = family.query_value[:2] if len(family.query_value) > 1 else ("", "")
    paths = (query, family.key_value[0], value)
    top = blocks([name for name, _ in backbone.named_parameters()])[-1]
    return [backbone.get_submodule(f"{top}.{path}") for path in paths] if query else []


def without_peft(model: Any) -> Any:
    """The transformers model, whether PEFT is around it or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: Any) -> Any:
    """The part of a model, adapted by PEFT or not, that its head stands on."""
    return without_peft(model).base_model


def writes(model: Any) -> bool:
    """Whether it has an encoder, and a decoder that writes: BART's and T5's classifiers have one that does not."""
    plain = without_peft(model)
    return plain.config.is_encoder_decoder and plain.can_generate()


def encoder_of(model: Any) -> Any:
    """The part of a model, adapted by PEFT or not, that reads texts."""
    plain = without_peft(model)
    return plain.get_encoder() if plain.config.is_encoder_decoder else plain.base_model


def head_modules(model: Any) -> list[str]:
    """The modules that are the head of a transformers model: all with weights outside the backbone, and the backbone's
    pooler, which many checkpoints lack. In a writer that was begun from an encoder (`warm_start`) those that are new:
    what looks at the encoder, and what leads to a token; [] for another model that writes, which does so through its
    embeddings."""
    model = without_peft(model)
    if model.config.model_type == "encoder-decoder":
        across = [name for name, _ in model.named_modules() if name.endswith(".crossattention")]
        inner = model.decoder.base_model_prefix
        return across + [f"decoder.{name}" for name, _ in model.decoder.named_children() if name != inner]
    if model.can_generate():
        return []
    backbone = model.base_model_prefix
    outside = [
        name for name, module in model.named_children() if name != backbone and any(True for _ in module.parameters())
    ]
    pooler = [f"{backbone}.pooler"] if getattr(model.base_model, "pooler", None) is not None else []
    return pooler + outside


def in_head(name: str, head: list[str]) -> bool:
    """Whether the weight is one of the head's modules (and not the copy that PEFT keeps of an untrained head)."""
    return any(f".{module}." in f".{name}" for module in head) and ".original_module." not in name


def is_embedding(name: str) -> bool:
    """Whether the weight is of what comes before the blocks: tables of tokens and positions, and their norm. Not those
    of the decoder in a writer that was begun from an encoder, which also lead to its tokens."""
    if name.startswith("decoder.") and ".embeddings." in name:
        return False
    parts = name.split(".")
    return any("embed" in part or part in ("shared", "relative_attention_bias") for part in parts) and (
        within_block(name) is None
    )


def is_norm(name: str) -> bool:
    """Whether the weight is a scale or shift of a normalization."""
    return "norm" in name.lower()


def depths(names: list[str], head: list[str]) -> dict[str, int]:
    """The depth of each weight: 0 for embeddings, 1 for the lowest block, one more than the top block for the head.

    What stands above the blocks (a last norm) counts to the block below it.
    """
    ordered = blocks(names)
    depth_of = {block: depth for depth, block in enumerate(ordered, 1)}
    top_of_encoder = sum(".decoder." not in f".{block}" for block in ordered)

    def depth(name: str) -> int:
        if in_head(name, head):
            return len(ordered) + 1
        if within := within_block(name):
            return depth_of[within[0]]
        if is_embedding(name):
            return 0
        return top_of_encoder if ".encoder." in f".{name}" else len(ordered)

    return {name: depth(name) for name in names}
