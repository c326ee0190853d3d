"""An encoder left or entered below its top blocks: where nothing further down learns, states there stand for tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tl_nlp.decoding import asked_beyond, in_their_words
from tl_nlp.families import blocks, encoder_of, head_modules, writes


def reads_states(model: Any) -> bool:
    """Whether it has a head or a decoder that reads the states of an encoder, with nothing of PEFT in between, and no
    search asks for the tokens."""
    if hasattr(model, "peft_config"):
        return False
    if writes(model):
        return asked_beyond(model) is None
    return not model.config.is_encoder_decoder and bool(head_modules(model))


def hold_still(encoder: nn.Module, n_above: int) -> None:
    """Nothing drops out of what makes the states that the top `n_above` blocks read, of 0 those that come out of the
    encoder."""
    if not n_above:
        encoder.eval()
        return
    encoder.training = False  # of itself alone: BART's drops out in front of its blocks
    _, _, there = _blocks(encoder)
    for part in (*_first(encoder), *there[: len(there) - n_above]):
        part.eval()


def states_below(encoder: Any, n_above: int, **inputs: Tensor) -> Tensor:
    """What the top `n_above` blocks read of tokens, of 0 what comes out of the encoder: (windows, tokens, hidden)."""
    if not n_above:
        return encoder(**inputs).last_hidden_state
    parent, name, there = _blocks(encoder)
    seen: list[Any] = []
    hook = there[-n_above - 1].register_forward_hook(lambda *told: seen.append(told[2]))
    try:
        parent._modules[name] = there[:-n_above]
        encoder(**inputs)
    finally:
        parent._modules[name] = there
        hook.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def looked_at(model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What the decoder of a writer is to look at: the tokens of a batch (`heads.Batch`), or, where it has states that
    the top `n_above` blocks of the encoder read, `states` that come out of it."""
    mask = batch["attention_mask"]
    if "states" not in batch:
        return {"input_ids": batch["input_ids"], "attention_mask": mask}
    states, n_above, encoder = batch["states"], batch["n_above"], encoder_of(model)
    if n_above:
        with _from_within(encoder, states, n_above):
            states = encoder(inputs_embeds=states, attention_mask=mask).last_hidden_state
    return {"states": states, "attention_mask": mask}


@contextmanager
def entered(model: Any, states: Tensor, n_above: int) -> Iterator[None]:
    """Within the block an encoder reads these states where its top `n_above` blocks do, or its head, and no token."""
    if n_above:
        with _from_within(model.base_model, states, n_above):
            yield
        return
    name, backbone = model.base_model_prefix, model.base_model
    model._modules[name] = _Read(states, getattr(backbone, "pooler", None))
    try:
        yield
    finally:
        model._modules[name] = backbone


@contextmanager
def _from_within(encoder: nn.Module, states: Tensor, n_above: int) -> Iterator[None]:
    """Within the block it has no more than its top blocks, which read these states."""
    parent, name, there = _blocks(encoder)
    first = _first(encoder)
    try:
        parent._modules[name] = there[-n_above:]
        for part in first:
            part.forward = lambda *_, **__: states
        yield
    finally:
        parent._modules[name] = there
        for part in first:
            part.__dict__.pop("forward", None)


class _Read:
    """In the place of a backbone whose states are known; the pooler still acts, as a part of the head."""

    def __init__(self, states: Tensor, pooler: nn.Module | None):
        self.states, self.pooler = states, pooler

    def __call__(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        pooled = None if self.pooler is None else self.pooler(self.states)
        return BaseModelOutputWithPooling(last_hidden_state=self.states, pooler_output=pooled)


def can_be_entered(model: Any, n_above: int, learning: Iterable[nn.Parameter]) -> bool:
    """Whether the model answers the same from states below the top blocks of its encoder as from tokens, tried on two
    short rows, and nothing that is `learning` acts on these states. Not where a block looks further down than at the
    one below, as DeBERTa's convolution does, nor where all blocks share what learns, nor where the lowest block has
    what the others need, as T5's has its distances."""
    if not reads_states(model):
        return False
    was_training, learned = model.training, {weight: weight.requires_grad for weight in model.parameters()}
    model.eval().requires_grad_(False)
    for weight in learning:
        weight.requires_grad_(True)
    try:
        return _answers_the_same(model, n_above)
    except Exception as error:  # a family that has its blocks in another way
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        print(
            f"blocks that never learn read the texts of every step, since states are no way in ({told})",
            file=sys.stderr,
        )
        return False
    finally:
        for weight, is_learning in learned.items():
            weight.requires_grad_(is_learning)
        model.train(was_training)


def _answers_the_same(model: Any, n_above: int) -> bool:
    encoder, device = encoder_of(model), next(model.parameters()).device
    *_, there = _blocks(encoder)
    names = [name for name, _ in encoder.named_parameters()]
    if [encoder.get_submodule(block) for block in blocks(names)] != list(there):
        return False
    ids = torch.arange(1, 17, device=device).view(2, 8)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    states = states_below(encoder, n_above, input_ids=ids, attention_mask=mask)
    if states.requires_grad:
        return False
    states = states * mask.unsqueeze(2)  # as those of unlike lengths are padded
    with torch.no_grad():
        if writes(model):
            plain = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids).logits
            read = looked_at(model, {"states": states, "n_above": n_above, "attention_mask": mask})
            again = model(**in_their_words(read), decoder_input_ids=ids).logits
        else:
            plain = model(input_ids=ids, attention_mask=mask).logits
            with entered(model, states, n_above):
                again = model(inputs_embeds=states, attention_mask=mask).logits
            if plain.ndim == states.ndim:  # of each token
                plain, again = plain[mask > 0], again[mask > 0]
    return torch.allclose(plain, again, rtol=1e-3, atol=1e-4)


def _first(encoder: nn.Module) -> list[nn.Module]:
    """What comes before the blocks."""
    return [part for name, part in encoder.named_children() if "embed" in name]


def _blocks(encoder: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The list of an encoder's blocks, and where it is: in which module, under which name."""
    path, there = next((path, part) for path, part in encoder.named_modules() if isinstance(part, nn.ModuleList))
    parent, _, name = path.rpartition(".")
    return encoder.get_submodule(parent), name, there
