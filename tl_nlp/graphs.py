"""A trained model as graphs for ONNX Runtime."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from tl_nlp.errors import RunError
from tl_nlp.onnx import DECODER, ENCODER, SIDES

# of those that have attention: of one with 23 onnxscript makes rotary embeddings that ONNX Runtime refuses (ModernBERT)
_OPSET = 24
_ATTENTION = "tl_nlp_onnx"


@contextmanager
def quietly() -> Iterator[None]:
    """What exporters tell of themselves is not ours to tell."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The operator that ONNX has for it, which ONNX Runtime computes in less time than the dozen that it stands for."""
    biases = [bias for bias in (attention_mask, position_bias) if bias is not None]
    asked, known, told = (part.transpose(1, 2).flatten(2) for part in (query, key, value))
    read, *_rest = torch.onnx.ops.attention(
        asked,
        known,
        told,
        attn_mask=reduce(add, biases) if biases else None,
        scale=scaling,
        softcap=softcap or 0.0,
        q_num_heads=query.shape[1],
        kv_num_heads=key.shape[1],
    )
    return read.unflatten(2, (query.shape[1], value.shape[3])), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def write_model(model: Any, tokenizer: Any, quantize: str | None, path: Path) -> None:
    """The model as a graph from `input_ids`, `attention_mask` and where there are any `token_type_ids`, of shape
    (windows, tokens), to `logits`, which where a `Document` reads them are the states."""
    # two of each, since torch.export takes a size of 1 for one that is always so, and one token that is not read
    names = [name for name in tokenizer(["a"]) if name in ("input_ids", "token_type_ids", "attention_mask")]
    inputs = {name: torch.ones((2, 8), dtype=torch.long) for name in {*names, "attention_mask"}}
    if "token_type_ids" in inputs:
        inputs["token_type_ids"][:, :4] = 0
    inputs["attention_mask"][1, 7] = 0
    model.set_attn_implementation(_ATTENTION if model._supports_sdpa else "eager")
    _save_graph(model, inputs, dict.fromkeys(inputs, (0, 1)), quantize, path)


def _save_graph(
    model: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    varying: dict[str, tuple[int, ...]],
    quantize: str | None,
    path: Path,
) -> None:
    """A module as a graph; `varying` are the dimensions of each input that may be of any size."""
    from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    from tl_nlp.narrowing import narrow

    anywhere, exporter = torch.export.Dim.DYNAMIC, OnnxExporter()
    config = OnnxConfig(
        dynamic_shapes={name: dict.fromkeys(sizes, anywhere) for name, sizes in varying.items()},
        ort_fusions=None,
        opset_version=_OPSET,
    )
    program = exporter.export(model, inputs, config).program
    narrow(program.graph)
    if quantize is not None:
        # seven bits of eight for weights: processors without VNNI add in 16 bits, where eight would overflow
        quantizer = OnnxRuntimeQuantizer(
            OnnxRuntimeDynamicConfig(
                op_types_to_quantize=["MatMul", "Gemm", "Gather"], per_channel=True, reduce_range=True
            )
        )
        program = quantizer.quantize(program, inputs, exporter.export_format)
    _save(program, path)


def write_writer(model: Any, quantize: str | None, folder: Path) -> None:
    """The encoder as a graph from `input_ids` and `attention_mask` to what each block of the decoder looks at,
    `seen_N_keys` and `seen_N_values`; the decoder as one from a token of each text, those, and what the block has kept
    of the tokens before, `own_N_keys` and so on, to `logits`, shaped (texts, vocabulary), and `new_own_N_keys`."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    model.set_attn_implementation(_ATTENTION if model._supports_sdpa else "eager")
    encoder, start = model.get_encoder(), model.generation_config.decoder_start_token_id

    def decoded(states: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        return model(
            encoder_outputs=BaseModelOutput(states), attention_mask=mask, decoder_input_ids=tokens,
            past_key_values=cache, use_cache=True,
        ).logits[:, -1]  # fmt: skip

    def named(kind: str, cache: Any) -> dict[str, torch.Tensor]:
        return {
            f"{kind}_{n}_{part}": getattr(layer, part)
            for n, layer in enumerate(cache.layers)
            for part in ("keys", "values")
        }

    def filled(kind: str, tensors: dict[str, torch.Tensor]) -> Any:
        cache = DynamicCache()
        for n in range(sum(name.startswith(f"{kind}_") for name in tensors) // 2):
            cache.update(tensors[f"{kind}_{n}_keys"], tensors[f"{kind}_{n}_values"], n)
        return cache

    class Encoding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            states = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            decoded(states, attention_mask, torch.full_like(input_ids[:, :1], start), cache)
            return named("seen", cache.cross_attention_cache)

    class Decoding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, decoder_input_ids: torch.Tensor, attention_mask: torch.Tensor, **tensors: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            cache = EncoderDecoderCache(filled("own", tensors), filled("seen", tensors))
            states = attention_mask[..., None].expand(-1, -1, width).to(tensors["seen_0_keys"].dtype)  # of no effect
            logits = decoded(states, attention_mask, decoder_input_ids, cache)
            return {"logits": logits, **named("new_own", cache.self_attention_cache)}

    ids, mask = torch.ones((2, 8), dtype=torch.long), torch.ones((2, 8), dtype=torch.long)
    mask[1, 7] = 0
    with torch.no_grad():
        width = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.shape[-1]
        seen = Encoding()(ids, mask)
    own = {name.replace("seen_", "own_"): values[:, :, :3].clone() for name, values in seen.items()}
    inputs = {"decoder_input_ids": ids[:, :1], "attention_mask": mask, **seen, **own}
    varying = {name: (0,) if name == "decoder_input_ids" else (0, 2) for name in inputs}
    both = {"input_ids": ids, "attention_mask": mask}
    _save_graph(Encoding().eval(), both, dict.fromkeys(both, (0, 1)), quantize, folder / ENCODER)
    _save_graph(Decoding().eval(), inputs, {**varying, "attention_mask": (0, 1)}, quantize, folder / DECODER)


def write_document(document: Any, n_hidden: int, path: Path) -> None:
    """What a document makes of what is laid out by example, as a graph: see `onnx.Exported`."""

    class Reading(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.document = document

        def forward(self, laid: list[torch.Tensor], surface: Any, group: Any) -> torch.Tensor:
            return self.document.logits(laid, surface, group)

    anywhere = torch.export.Dim.DYNAMIC
    if document.comparison is None:
        laid = [torch.ones(2, 3, n_hidden), torch.ones(2, 3)]
        names = ["windows", "lengths"]
    else:
        shapes_of = [(2, 3 + place) for place, _ in enumerate(SIDES)]  # equal sizes would be taken for always so
        laid = [part for s in shapes_of for part in (torch.ones(*s, n_hidden), torch.ones(s, dtype=torch.bool))]
        names = [part for name in SIDES for part in (name, f"{name}_there")]
    surface = torch.ones(2, document.n_surface) if document.n_surface else None
    group = torch.zeros(2, dtype=torch.long) if document.own is not None else None
    shapes = [{0: anywhere, 1: anywhere} for _ in laid]
    names += ["surface"] * (surface is not None) + ["group"] * (group is not None)
    program = torch.onnx.export(
        Reading().eval(),
        (laid, surface, group),
        dynamic_shapes=(shapes, None if surface is None else {0: anywhere}, None if group is None else {0: anywhere}),
        input_names=names,
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None, "it is so where a path is given"
    _save(program.model, path)


def _save(graph: Any, path: Path) -> None:
    """One file, in which is nothing of this machine. Raises RunError for one of 2 GB and more, which cannot be."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(graph)
    try:
        onnx_ir.save(graph, path)
    except ValueError as error:
        raise RunError(f"the model does not fit into one file of ONNX: {error}") from None
