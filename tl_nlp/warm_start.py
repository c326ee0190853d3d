"""A model that writes, begun from a checkpoint that only reads: Rothe et al. 2020, https://arxiv.org/abs/1907.12461.

Encoder and decoder both start from the checkpoint's blocks and embeddings. What it has no weights for is what looks
from the decoder at the encoder, and what leads to a token: that is what counts as the model's head. The class is
transformers' own, so artifacts open without us.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tl_nlp.errors import RecipeError
from tl_nlp.families import within_block
from tl_nlp.pretrained import load_tokenizer


def warm_config(config: Any, folder: Path) -> Any:
    """The configuration of the model begun from the encoder in `folder`, whose own is `config`. Raises RecipeError."""
    from transformers import AutoModelForCausalLM, EncoderDecoderConfig

    if config.is_encoder_decoder:
        raise RecipeError("begins a decoder, and this checkpoint has one", "checkpoint.warm_start")
    if type(config) not in AutoModelForCausalLM._model_mapping or config.model_type not in FAMILIES:
        raise RecipeError(
            f"the family {config.model_type!r} has no decoder to begin; {', '.join(FAMILIES)} have",
            "checkpoint.warm_start",
        )
    tokenizer = load_tokenizer(folder)
    tokens = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "decoder_start_token_id": tokenizer.sep_token_id,  # as BART's
    }
    decoder = copy.deepcopy(config)
    decoder.is_decoder = decoder.add_cross_attention = True
    return EncoderDecoderConfig(
        encoder=config.to_dict(),
        decoder=decoder.to_dict(),
        vocab_size=config.vocab_size,
        tie_word_embeddings=False,  # of encoder and decoder; the decoder's own are as its family has them
        **tokens,
    )


def warm_model(folder: str, config: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model of a `warm_config` with the weights in `folder`, and what `from_pretrained` tells of its loading.

    What looks at the encoder and what leads to a token is drawn.
    """
    from transformers import AutoModel, AutoModelForCausalLM, EncoderDecoderModel

    encoder, info = AutoModel.from_pretrained(folder, config=config.encoder, **options)
    decoder, _ = AutoModelForCausalLM.from_pretrained(folder, config=config.decoder, **options)
    # the pooler is of the class and does nothing here
    info["missing_keys"] = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
    return EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder), info


def share_blocks(model: Any) -> None:
    """Encoder and decoder learn one set of blocks, what looks at the encoder aside: BERTShare, section 3."""
    for name, weight in list(model.encoder.named_parameters()):
        if within_block(name):
            module, _, leaf = name.rpartition(".")
            setattr(model.decoder.base_model.get_submodule(module), leaf, weight)


FAMILIES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
"""Those whose decoder has what looks at an encoder, by `config.model_type`."""
