"""A model of torch that writes: `generate` of transformers, with the search of `generation` in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from tl_nlp.attention import BLOCKS
from tl_nlp.generation import Settings, Wanted, in_parts, written


def asked_beyond(model: Any) -> str | None:
    """What the model's generation_config asks for that no `Settings` can tell, as NAME=VALUE."""
    config = model.generation_config
    asked = {name for name, value in config.to_diff_dict().items() if value not in (None, False, 0)} - _KNOWN
    if asked or not isinstance(config.early_stopping, bool | None):
        name = min(asked, default="early_stopping")
        return f"{name}={getattr(config, name)}"
    return None


_KNOWN = {
    *("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"),
    *("forced_bos_token_id", "forced_eos_token_id", "early_stopping", "use_cache", "_from_model_config"),
    # the recipe's, which come first
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "length_penalty"),
    *("no_repeat_ngram_size", "do_sample"),
    # of drawing as transformers does it, which is not how it is done here
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
}


def settings_of(model: Any, searched: dict[str, Any]) -> Settings:
    """How the model's texts begin and end, by its generation_config, and how they are searched for: `Settings` from
    `max_new_tokens` on."""
    config = model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return Settings(
        start=config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id,
        ends=tuple(ends), pad=ends[0] if config.pad_token_id is None else config.pad_token_id,
        early_stopping=bool(config.early_stopping), first=config.forced_bos_token_id, last=config.forced_eos_token_id,
        **searched,
    )  # fmt: skip


def options_of(searched: dict[str, Any]) -> dict[str, Any]:
    """The same search in the words of `generate`, for which nothing is drawn."""
    return {theirs: searched[ours] for ours, theirs in _OPTIONS.items()} | {"do_sample": False}


_OPTIONS = {
    "max_new_tokens": "max_new_tokens",
    "min_new_tokens": "min_new_tokens",
    "beams": "num_beams",
    "length_penalty": "length_penalty",
    "no_repeat_ngrams": "no_repeat_ngram_size",
}


def texts_of(model: Any, inputs: dict[str, Tensor], searched: dict[str, Any]) -> np.ndarray:
    """Token ids that are written for windows, shape (windows, tokens), from tokens or from `states` that come out of
    the encoder. Where the model asks for more than is known here transformers writes by itself."""
    options = options_of(searched)
    settings = settings_of(model, searched)
    if asked_beyond(model) is None:
        options |= {"num_beams": 1, "length_penalty": 1.0, "custom_generate": _writing(settings)}

    def write(part: slice) -> np.ndarray:
        here = {name: values[part] for name, values in inputs.items()}
        return model.generate(**in_their_words(here), **options).cpu().numpy()

    return in_parts(write, len(inputs["attention_mask"]), settings)


def in_their_words(inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The inputs under the names that transformers has for them."""
    if "states" not in inputs:
        return inputs
    rest = {name: values for name, values in inputs.items() if name != "states"}
    return {"encoder_outputs": BaseModelOutput(inputs["states"]), **rest}


def _writing(settings: Settings) -> Callable[..., Tensor]:
    """What `generate` calls, as its `custom_generate`, once the windows are read and a prompt of PEFT is in front."""

    def write(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **inputs: Any,
    ) -> Tensor:
        decoder = _Decoding(model, input_ids, inputs, settings.texts)
        return torch.from_numpy(written(decoder, highest, len(input_ids), settings))

    return write


class _Decoding:
    """A step of a decoder after another, with its cache: see `generation.Decoder`. Texts of one window look at one copy
    of what was read of it, where attention is ours; elsewhere each has its own."""

    def __init__(self, model: Any, start: Tensor, inputs: dict[str, Any], n_texts: int):
        self._model, self._start, self._inputs, self._n_texts = model, start, inputs, n_texts
        self._states, self._mask = inputs["encoder_outputs"][0], inputs["attention_mask"]
        self._is_shared = model.config._attn_implementation == BLOCKS
        self._cache: Any = None

    def __call__(self, tokens: np.ndarray, origins: np.ndarray | None) -> Tensor:
        if self._cache is None:
            return self._first()
        if origins is not None:
            self._go_on(torch.from_numpy(origins).to(self._mask.device))
        outputs = self._model(
            encoder_outputs=BaseModelOutput(self._states),
            attention_mask=self._mask,
            decoder_input_ids=torch.from_numpy(tokens[:, None]).to(self._mask.device),
            past_key_values=self._cache,
            use_cache=True,
        )
        return outputs.logits[:, -1]

    def _first(self) -> Tensor:
        """The texts of a window begin alike, so one is read."""
        inputs, n = self._inputs | {"use_cache": True}, self._n_texts
        outputs = self._model(
            **self._model.prepare_inputs_for_generation(self._start, is_first_iteration=True, **inputs)
        )
        self._cache = outputs.past_key_values
        self._cache.self_attention_cache.batch_repeat_interleave(n)
        if self._is_shared:
            biases = torch.zeros(self._mask.shape, dtype=outputs.logits.dtype, device=self._mask.device)
            self._mask = biases.masked_fill(self._mask == 0, torch.finfo(biases.dtype).min)[:, None, None]
        else:
            self._cache.cross_attention_cache.batch_repeat_interleave(n)
            self._states, self._mask = (part.repeat_interleave(n, 0) for part in (self._states, self._mask))
        return outputs.logits[:, -1].repeat_interleave(n, 0)

    def _go_on(self, origins: Tensor) -> None:
        """Of each text what was kept of the one that it continues, and of windows that are done nothing."""
        self._cache.self_attention_cache.batch_select_indices(origins)
        seen = origins[:: self._n_texts] // self._n_texts if self._is_shared else origins
        if len(seen) < len(self._states):
            self._cache.cross_attention_cache.batch_select_indices(seen)
            self._states, self._mask = self._states[seen], self._mask[seen]


_TEXTS = 32  # whose scores of a vocabulary are held at once; those of all take four times as long (docs/lab.md)


def highest(logits: Tensor, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """See `generation.Highest`."""
    noise = None if wanted.noise is None else torch.from_numpy(wanted.noise(logits.shape[1])).to(logits.device)
    n_texts, found = _TEXTS if noise is None else len(noise), []
    for start in range(0, len(logits), n_texts):
        scores = logits[start : start + n_texts].float()
        if wanted.are_normed:
            scores = scores.log_softmax(-1)
        scores[:, list(wanted.never)] = -torch.inf
        if wanted.not_after is not None:
            texts, tokens = wanted.not_after
            are_here = (texts >= start) & (texts < start + n_texts)
            scores[texts[are_here] - start, tokens[are_here]] = -torch.inf
        if noise is not None:
            scores = scores / wanted.temperature + noise
        found.append(scores.topk(min(wanted.n, scores.shape[1])) if wanted.n > 1 else scores.max(-1, keepdim=True))
    values, tokens = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    return values, tokens
