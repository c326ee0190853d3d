"""States of windows that frozen blocks have given before, kept on disk by content (`cache`).

What a state depends on is its name: weights, number format and token ids. So an edited text, another checkpoint or
another length of windows finds nothing, and another seed, head or rate finds all.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tl_nlp.batches import Encoded
from tl_nlp.cache import cache_folder, keep, touch
from tl_nlp.families import blocks, within_block

Kind = Literal["mean", "first", "tokens"]
"""What is kept of a window: the mean of its tokens' states, the first one, as BERT's own head reads, or each."""
_FORMAT = 3


class FeatureCache:
    """States of a `kind` for each window, that the top `n_above` blocks of a backbone read, or its head, as it is now;
    read in half precision or not."""

    def __init__(self, backbone: Any, kind: Kind, half: bool, n_above: int = 0):
        self.kind, self.n_above = kind, n_above
        root = cache_folder("features")
        self.folder = root / _fingerprint(backbone, half, n_above) / kind if root else None
        self._known: dict[bytes, np.ndarray] = {}
        self._kept: dict[bytes, tuple[Any, int, int]] = {}  # a file's states, and where those of the row are
        self._files: set[Path] = set()
        self.look()

    def look(self) -> None:
        """Finds what there is on disk, and was not before: another process may have read the rows."""
        if self.folder is not None and self.folder.is_dir():
            for file in sorted({*self.folder.glob("*.safetensors")} - self._files):
                self._look_into(file)

    def _look_into(self, file: Path) -> None:
        self._files.add(file)
        touch(file)
        try:
            part = safe_open(file, "np")
            keys, ends = part.get_tensor("keys"), np.cumsum(part.get_tensor("sizes"))
            states = part.get_slice("states")  # stays on disk until a row is asked for
            if len(keys) != len(ends) or list(states.get_shape())[:1] != ends[-1:].tolist():
                raise ValueError("its parts are not of one length")
        except (OSError, SafetensorError, ValueError):  # a cache: what is damaged is computed again
            file.unlink(missing_ok=True)
            return
        for key, start, end in zip(keys, [0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            self._kept[key.tobytes()] = states, start, end

    def __contains__(self, key: bytes) -> bool:
        return key in self._known or key in self._kept

    def __getitem__(self, key: bytes) -> np.ndarray:
        """The states of a row, window after window, of shape (states, hidden)."""
        if key in self._known:
            return self._known[key]
        states, start, end = self._kept[key]
        return states[start:end]

    def add(self, rows: dict[bytes, np.ndarray]) -> None:
        """Keeps the states of further rows, in a file of their own."""
        if self.folder is None or not rows:
            self._known |= rows
            return
        tensors: dict[str, np.ndarray] = {
            "keys": np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1),
            "sizes": np.asarray([len(states) for states in rows.values()], np.int64),
            "states": np.concatenate(list(rows.values())),
        }
        file = self.folder / f"{uuid.uuid4().hex}.safetensors"
        keep(file, partial(_write, tensors), "features")
        self.look()  # and they leave the memory
        self._known |= {key: states for key, states in rows.items() if key not in self._kept}


def _write(tensors: dict[str, np.ndarray], file: Path) -> None:
    try:
        save_file(tensors, file)
    except SafetensorError as error:  # what the system says of a full disk, among others
        raise OSError(str(error)) from None


def row_keys(encoded: Encoded) -> list[bytes]:
    """A name for the content of each row: its windows' ids and token types."""
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded.column_names]
    keys = []
    for windows in zip(*(encoded[name][:] for name in names), strict=True):
        digest = hashlib.blake2b(digest_size=16)
        for column in windows:
            for window in column:
                digest.update(len(window).to_bytes(4, "little"))
                digest.update(np.asarray(window, np.int32).tobytes())
        keys.append(digest.digest())
    return keys


def _fingerprint(backbone: Any, half: bool, n_above: int) -> str:
    """A name for what the states below the top blocks of a backbone depend on, beside the tokens; in half precision
    weights of products are read in bfloat16, whether they are kept in it (`model.halved`) or not."""
    version = transformers.__version__
    digest = hashlib.sha256(f"{_FORMAT} {half} {n_above} {version} {type(backbone).__name__}".encode())
    config = {key: value for key, value in backbone.config.to_dict().items() if key not in _OF_NO_EFFECT}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    products = [name for name, part in backbone.named_modules() if type(part) is torch.nn.Linear]
    weights = backbone.state_dict()
    there = blocks(list(weights))
    above = {*there[len(there) - n_above :]}
    for name, weight in sorted(weights.items()):
        within = within_block(name)
        if name.startswith("pooler.") or (within is not None and within[0] in above):  # they read the states
            continue
        if half and name.rpartition(".")[0] in products and weight.dtype == torch.float32:
            weight = weight.bfloat16()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


_OF_NO_EFFECT = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "transformers_version",
}
