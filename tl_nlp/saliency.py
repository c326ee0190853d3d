"""What each token of a text does to one number of a model: integrated gradients and occlusion, over all its windows.

Both ask what the number would be where some tokens were not known: the mask token stands for them, or the padding token
where a tokenizer has no mask. All other tokens, the pair's and the special ones among them, stay as they are; so does
what was counted on the text's surface.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor, nn

from tl_nlp.batches import told
from tl_nlp.errors import CheckpointError, HardwareError
from tl_nlp.families import encoder_of, without_peft
from tl_nlp.hardware import inferring
from tl_nlp.heads import Batch
from tl_nlp.prediction import Predictor
from tl_nlp.types import IGNORED

Span = tuple[int, int]
Value = Callable[[Tensor], Tensor]
"""From a head's logits, the first dimension being the examples, the number of each: shape (examples,)."""

N_STEPS = (20, 100)  # on the way from the baseline to the text; more where the effects of fewer do not add up
_MOST_LACKING = 0.02  # of the sum that effects should have, and at least of a number of 1
_MOST_TOKENS = 2048  # in one pass
_MOST_WRITTEN = 512  # tokens that are written in one pass, each with a number for every word of the vocabulary


# ---- the number


def of_label(place: int, temperature: float = 1.0) -> Value:
    """The log-odds of one label out of several, from logits of shape (examples, labels): they do not saturate as
    probabilities do, and unlike a logit they do not move where all logits do."""

    def value(logits: Tensor) -> Tensor:
        scaled = logits / temperature
        others = torch.cat([scaled[:, :place], scaled[:, place + 1 :]], 1)
        return scaled[:, place] - others.logsumexp(1)

    return value


def of_text(labels: Tensor, is_counted: Tensor) -> Value:
    """The log-probability of the tokens that are counted, summed over all windows of an example, from logits of shape
    (examples * labels that are none of `IGNORED`, vocabulary); labels and `is_counted` are of shape (windows, tokens).
    """
    places = told(labels)
    wanted, counts = labels.flatten()[places], is_counted.flatten()[places]

    def value(logits: Tensor) -> Tensor:
        n_examples = len(logits) // len(wanted)
        told = logits.gather(1, wanted.repeat(n_examples)[:, None])[:, 0] - logits.logsumexp(1)
        return (told.view(n_examples, -1) * counts).sum(1)

    return value


def written_labels(windows: list[list[int]], tokenizer: Any) -> Tensor:
    """What a model has written as the labels it would have learned it by, shape (windows, tokens): from behind the
    token that its decoder starts with, to the end mark."""
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    rows = []
    for ids in windows:
        written = ids[1:]  # what the decoder starts with may be an end
        end = next((place for place, token in enumerate(written, 1) if token in ends), len(written))
        rows.append(torch.tensor(written[:end]))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def tokens_of(word: str, labels: Tensor, tokenizer: Any) -> Tensor:
    """Which tokens of what was written the word is of, wherever it stands; shaped as the labels."""
    of_word = torch.zeros_like(labels, dtype=torch.bool)
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    for row, ids in enumerate(labels.tolist()):
        known = [token for token in ids if token != IGNORED]
        texts = [tokenizer.decode(known[:end], skip_special_tokens=True) for end in range(len(known) + 1)]
        for found in pattern.finditer(texts[-1]):
            for place in range(len(known)):
                of_word[row, place] |= len(texts[place]) < found.end() and len(texts[place + 1]) > found.start()
    return of_word


# ---- the text


@dataclass(frozen=True)
class Reading:
    """A text as a model reads it, all its windows at once, and the number that is explained.

    `batch` has one example. Where `groups` are asked for, they are shaped as its `input_ids`: the number of the stretch
    of the text (word, sentence) that a token is of, -1 for a token of none.
    """

    predictor: Predictor
    batch: Batch
    value: Value

    @property
    def n_at_once(self) -> int:
        """How many copies of the text fit in one pass."""
        fitting = _MOST_TOKENS // self.batch["input_ids"].numel()
        if "labels" in self.batch:
            fitting = min(fitting, _MOST_WRITTEN // self.batch["labels"].numel())
        return max(1, fitting)

    def values(self, n_copies: int, input_ids: Tensor | None = None) -> Tensor:
        """The number for copies of the text, shape (copies,); `input_ids`, of shape (copies, windows, tokens), where
        these are unlike."""
        n_windows = len(self.batch["input_ids"])
        batch = {
            name: tensor.repeat(n_copies, *[1] * (tensor.dim() - 1))
            for name, tensor in self.batch.items()
            if name not in ("rows", "told", "n_rows")
        }
        if input_ids is not None:
            batch["input_ids"] = input_ids.flatten(0, 1)
        batch["rows"] = torch.arange(n_copies, device=batch["input_ids"].device).repeat_interleave(n_windows)
        batch["n_rows"] = n_copies
        if "labels" in batch:
            batch["told"] = told(batch["labels"])
        return self.value(self.predictor.head.logits(self.predictor.model, batch))

    def unknown(self, groups: Tensor) -> Tensor:
        """The token ids with those of all groups unknown."""
        tokenizer = self.predictor.tokenizer
        instead = self.predictor.pad_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
        return self.batch["input_ids"].masked_fill(groups >= 0, instead)


def integrated_gradients(reading: Reading, groups: Tensor) -> tuple[dict[int, float], float]:
    """The effect of each group that has tokens: integrated gradients (Sundararajan et al. 2017,
    https://arxiv.org/abs/1703.01365, equation 1) on the embeddings of tokens, in float32, summed over a group's tokens;
    and what their sum is off the number less the number of the text with all groups unknown.

    Raises CheckpointError for a model that no gradient of its embeddings can be had of.
    """
    method = _captum().IntegratedGradients
    model = reading.predictor.model.eval()
    _refuse_packed(model)
    tables = _embeddings(model)
    groups = groups.to(reading.batch["input_ids"].device)
    both = reading.batch["input_ids"], reading.unknown(groups)
    with torch.no_grad():
        inputs, baselines = (tables[0](ids).float().unsqueeze(0) for ids in both)

    def values(embedded: Tensor) -> Tensor:
        with _instead(tables, embedded.flatten(0, 1)):
            return reading.values(len(embedded))

    effects: dict[int, float] = {}
    lacking = 0.0
    for n_steps in N_STEPS:
        with torch.enable_grad():
            by_number, delta = method(values).attribute(
                inputs,
                baselines,
                n_steps=n_steps,
                internal_batch_size=reading.n_at_once,
                return_convergence_delta=True,
            )
        by_token = by_number[0].sum(-1)
        effects = {number: by_token[groups == number].sum().item() for number in _numbers(groups)}
        lacking = delta.item()
        if abs(lacking) <= _MOST_LACKING * max(1.0, abs(sum(effects.values()) - lacking)):
            break
    return effects, lacking


def occlusion(reading: Reading, groups: Tensor) -> dict[int, float]:
    """The effect of each group that has tokens: the number less the number where the group's tokens are unknown
    (Zeiler & Fergus 2014, https://arxiv.org/abs/1311.2901, section 4.1)."""
    ids = reading.batch["input_ids"].unsqueeze(0)
    groups = groups.to(ids.device)
    features = groups.unsqueeze(0) + 1  # 0 has all tokens of no group, which stay
    with inferring(reading.predictor.model, "float32"):
        by_token = (
            _captum()
            .FeatureAblation(lambda copies: reading.values(len(copies), copies))
            .attribute(
                ids,
                reading.unknown(groups).unsqueeze(0),
                feature_mask=features,
                perturbations_per_eval=reading.n_at_once,
            )[0]
        )
    return {number: by_token[groups == number][0].item() for number in _numbers(groups)}


def _numbers(groups: Tensor) -> list[int]:
    return [number for number in groups.unique().tolist() if number >= 0]


def _captum() -> Any:
    """Captum's methods. Raises HardwareError where it is not installed."""
    try:
        import captum.attr
    except ImportError:
        raise HardwareError("attributions need captum: pip install 'tl-nlp[demo]'") from None
    return captum.attr


# ---- the embeddings


def _refuse_packed(model: Any) -> None:
    """bitsandbytes lays 4-bit weights out anew when a CPU with products in bfloat16 first infers with them, and no
    gradient passes them then: it would be lost without a word."""
    states = (getattr(weight, "quant_state", None) for weight in model.parameters())
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        raise CheckpointError(
            "no gradients pass the nf4 weights of this checkpoint on this CPU; method=occlusion needs none"
        )


def _embeddings(model: Any) -> list[nn.Module]:
    """The tables that may be asked for the embeddings of a model's input: its encoder's, and where that is another
    module the one that PEFT asks when it puts virtual tokens before them."""
    tables = [part.get_input_embeddings() for part in (encoder_of(model), without_peft(model))]
    return list({id(table): table for table in tables}.values())


@contextmanager
def _instead(tables: list[nn.Module], embedded: Tensor) -> Iterator[None]:
    """Within the block the first thing that is embedded gets these embeddings, of shape (windows, tokens, width); a
    decoder's words come later. Tokens that a family adds behind them to fill its blocks stay.

    Raises CheckpointError where nothing was embedded.
    """
    waiting = [embedded]

    def put(table: Any, inputs: Any, found: Tensor) -> Tensor:
        if not waiting:
            return found
        given = waiting.pop().to(found.dtype)
        return torch.cat([given, found[:, given.shape[1] :]], 1)

    hooks = [table.register_forward_hook(put) for table in tables]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if waiting:
        raise CheckpointError(
            "this model does not look its tokens up in a table of embeddings, which gradients are taken of; "
            "method=occlusion needs none"
        )


# ---- where words and tokens stand


def _kind(character: str) -> str:
    """What a character can be in a word, as one letter."""
    if character in "\u200c\u200d\ufe0f":  # what joins signs to one
        return "z"
    category = unicodedata.category(character)
    if category == "Nd":
        return "d"
    if category[0] in "LMN" or character == "_":
        name = unicodedata.name(character, "")
        return "h" if name.startswith(("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA")) else "w"
    if category[0] in "SC" and category not in ("Cc", "Cf"):
        return "s"
    return {"'": "j", "\u2019": "j", "-": "j", ".": "n", ",": "n"}.get(character, " ")


_WORD = re.compile(r"[wd][wdz]*(?:j[wd][wdz]*|(?<=d)n(?=d)[wdz]*)*|h|s[sz]*")


def word_spans(text: str) -> list[Span]:
    """Where the words are: letters and digits with what holds them together ("well-made", "isn't", "3.5"), signs of
    scripts without spaces each, and symbols (emoji, "$")."""
    return [found.span() for found in _WORD.finditer("".join(map(_kind, text)))]


def token_spans(
    windows: list[list[int]], text: str, front: str, tokenizer: Any, sides: list[list[bool]] | None = None
) -> list[list[Span | None]]:
    """For each token of a text's windows where in the text its characters are; None for a token of something else.

    Windows are what a task has made of the text, so their tokens are found again, in order, among those of the text
    alone; those of `front`, what stands before it in a window, are told apart by being found too. Where `sides` tell
    which tokens are the text's, only these are looked for. Raises CheckpointError for a tokenizer that does not tell
    where its tokens stand.
    """
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand, so nothing can be said of single words; "
            "a checkpoint with a tokenizer.json does"
        )
    options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    ahead: list[Any] = [] if sides else _names(tokenizer(front, **options)["input_ids"], tokenizer)
    ahead.append(object())  # which nothing is like, so that what is found is not of both
    encoded = tokenizer(text, return_offsets_mapping=True, **options)
    names, offsets = _names(encoded["input_ids"], tokenizer), encoded["offset_mapping"]
    spans, at = [], 0
    for place, ids in enumerate(windows):
        ours: list[Any] = _names(ids, tokenizer)
        if sides:
            ours = [name if is_ours else None for name, is_ours in zip(ours, sides[place], strict=True)]
        found: list[Span | None] = [None] * len(ids)
        start = at
        blocks = SequenceMatcher(None, ours, [*ahead, *names[start:]], autojunk=False).get_matching_blocks()
        for of_window, there, size in blocks:
            for step in range(size):
                token = there + step - len(ahead)
                if token >= 0:
                    found[of_window + step] = offsets[start + token]
                    at = start + token + 1
        spans.append(found)
    return spans


def whole(words: list[Span], tokens: list[list[Span | None]]) -> list[Span]:
    """The words, those joined to one that a token is of together."""
    starts, ends = [start for start, _ in words], [end for _, end in words]
    joined: set[int] = set()  # words that are one with the next
    for span in {span for window in tokens for span in window if span}:
        joined.update(range(bisect.bisect_right(ends, span[0]), bisect.bisect_left(starts, span[1]) - 1))
    found: list[Span] = []
    for number, (start, end) in enumerate(words):
        if number - 1 in joined:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


def groups_of(spans: Sequence[Span], tokens: list[list[Span | None]]) -> Tensor:
    """For each token, in windows of one length, the number of the first stretch of the text that it is in, -1 where it
    is in none. Stretches are in order."""
    ends = [end for _, end in spans]

    def of(token: Span | None) -> int:
        if token is None:
            return -1
        number = bisect.bisect_right(ends, token[0])  # the first that ends behind its start
        return number if number < len(spans) and spans[number][0] < token[1] else -1

    windows = [torch.tensor([of(token) for token in window]) for window in tokens]
    return nn.utils.rnn.pad_sequence(windows, batch_first=True, padding_value=-1)


def _names(ids: list[int], tokenizer: Any) -> list[str]:
    """Tokens without the mark of a space before them: a word at the beginning is the same word behind a prefix."""
    return [name.lstrip("\u0120\u2581") for name in tokenizer.convert_ids_to_tokens(ids)]
