"""A tokenizer.json read without transformers, for what has to answer where transformers is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tl_nlp.errors import RunError


class Encodings(dict[str, Any]):
    """Columns of encoded texts: `input_ids` and so on, a list for each window; as transformers' `BatchEncoding`."""

    def __init__(self, columns: dict[str, Any], windows: list[Any]):
        super().__init__(columns)
        self._windows = windows

    def sequence_ids(self, place: int) -> list[int | None]:
        """For each token of a window whether it is of the first text or the second (0 or 1), None for a mark."""
        return self._windows[place].sequence_ids


class FastTokenizer:
    """Answers calls as the fast tokenizers of transformers do, as far as tasks make any.

    With `has_types` it gives `token_type_ids`, which some models read.
    """

    is_fast = True
    eos_token_id: int | None = None  # known to models that write
    sep_token_id: int | None = None

    def __init__(self, tokenizer: Any, has_types: bool):
        self.pad_token_id: int = (tokenizer.padding or {}).get("pad_id", 0)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer, self._has_types = tokenizer, has_types

    @classmethod
    def load(cls, path: Path, has_types: bool) -> FastTokenizer:
        """The tokenizer of a file. Raises RunError for one that is damaged."""
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_str(path.read_text("utf-8")), has_types)
        except Exception as error:  # tokenizers raises Exception itself
            raise RunError(f"{path} cannot be read as a tokenizer: {str(error).splitlines()[0]}") from None

    def __call__(
        self,
        texts: list[str],
        pairs: list[str] | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_overflowing_tokens: bool = False,
        return_offsets_mapping: bool = False,
        return_attention_mask: bool = True,
    ) -> Encodings:
        """A window for each text, or several where what overflows is asked for too.

        `truncation` is True (of both texts, the longer first) or "only_second".
        """
        if truncation:
            strategy = "longest_first" if truncation is True else truncation
            self._tokenizer.enable_truncation(max_length, strategy=strategy)
        else:
            self._tokenizer.no_truncation()
        # where nothing stands in the text is not always asked, and takes a third of the time
        needs_places = return_offsets_mapping or pairs is not None
        encode = self._tokenizer.encode_batch if needs_places else self._tokenizer.encode_batch_fast
        given: Any = texts if pairs is None else list(zip(texts, pairs, strict=True))
        windows, owners = [], []
        for row, encoding in enumerate(encode(given, add_special_tokens=add_special_tokens)):
            theirs = [encoding, *(encoding.overflowing if return_overflowing_tokens else ())]
            windows += theirs
            owners += [row] * len(theirs)
        columns: dict[str, Any] = {"input_ids": [window.ids for window in windows]}
        if self._has_types:
            columns["token_type_ids"] = [window.type_ids for window in windows]
        if return_attention_mask:
            columns["attention_mask"] = [window.attention_mask for window in windows]
        if return_offsets_mapping:
            columns["offset_mapping"] = [window.offsets for window in windows]
        if return_overflowing_tokens:
            columns["overflow_to_sample_mapping"] = owners
        return Encodings(columns, windows)

    def num_special_tokens_to_add(self) -> int:
        """How many marks are put around a text."""
        return self._tokenizer.num_special_tokens_to_add(False)

    def batch_decode(self, ids: list[list[int]], *, skip_special_tokens: bool = False) -> list[str]:
        """The texts of token ids."""
        return self._tokenizer.decode_batch(ids, skip_special_tokens)


def as_json(tokenizer: Any) -> str:
    """A fast tokenizer of transformers as the text of a tokenizer.json, its padding told, which `FastTokenizer` reads.

    Raises RunError for one that has no such form.
    """
    from tokenizers import Tokenizer

    if not tokenizer.is_fast:
        raise RunError(f"{type(tokenizer).__name__} has no tokenizer.json, and an export reads nothing else")
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.enable_padding(pad_id=tokenizer.pad_token_id or 0, pad_token=tokenizer.pad_token or "[PAD]")
    return copy.to_str()
