"""Files of strangers: what is refused before any library reads them. Each refusal names the file and the key.

Configurations are JSON, weights are safetensors, and neither can hold code; what they can do is to name code, a kernel
or a file elsewhere, to ask for more memory than there is, and to hold numbers that are none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tl_nlp.errors import CheckpointError

MAX_JSON = 200 * 10**6  # bytes of a file; the largest tokenizers have 35 MB
MAX_NUMBER = 10**8  # of a size that a configuration names
MAX_MODULES = 4096  # blocks, heads or experts, which are made one by one

_CODE = {
    "auto_map": "asks for code of the checkpoint's own, which is never run; use a checkpoint that transformers "
    "supports itself",
    "custom_pipelines": "asks for code of the checkpoint's own, which is never run",
    "megatron_config": "asks for the code of another package, which is not loaded",
    **dict.fromkeys(
        ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
         "_experts_implementation", "_experts_implementation_internal", "use_kernels", "kernel_config"),
        "names a kernel, which can be code of the Hub; which one computes is chosen here, so leave it out",
    ),
}  # fmt: skip
_NAMES_FILE = re.compile(r"(.*_)?(files?|spm|transformers_weights)")
_NEVER_READ = ("special_tokens_map_file",)
"""What old versions wrote down, and no version opens."""
_COUNTS = re.compile(r".*(layer|block|expert|heads|hops).*")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that keeps within `MAX_JSON`. Raises CheckpointError."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path} has over {MAX_JSON / 1e6:g} MB, which is no configuration")
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object but {type(values).__name__}")
    return values


def refuse_config(path: Path) -> None:
    """Raises CheckpointError for a configuration that names code, a kernel or a file elsewhere, or absurd sizes."""
    for key, value in _entries(read_json(path)):
        if value is None or value is False:
            continue
        if key in _CODE:
            raise CheckpointError(f"{path}: {key!r} {_CODE[key]}")
        if _NAMES_FILE.fullmatch(key) and key not in _NEVER_READ:
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str) and (Path(name).name != name or "\\" in name or "\0" in name):
                    raise CheckpointError(f"{path}: {key!r} names {name!r}, which is outside the checkpoint")
        if isinstance(value, int) and path.name != "tokenizer_config.json":
            most = MAX_MODULES if _COUNTS.fullmatch(key) else MAX_NUMBER
            if abs(value) > most:
                raise CheckpointError(f"{path}: {key!r} is {value:.3g}, and no checkpoint has more than {most:,}")


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of an object and of the objects in it, with its value."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from node.items()
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def refuse_index(path: Path) -> None:
    """Raises CheckpointError for an index whose shards are no safetensors files beside it."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{path} holds no weight_map, which says where each weight is")
    for key, name in shards.items():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{path}: weight_map names {name!r} for {key}, which is outside the checkpoint")
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: weight_map names {name!r} for {key}; weights are read from safetensors only"
            )
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{path}: weight_map names {name!r} for {key}, and there is no such file")


def weights_bytes(files: Iterable[Path]) -> int:
    """How many bytes of weights there are in files that are whole and hold nothing but numbers. Raises CheckpointError
    for others."""
    import torch
    from safetensors import SafetensorError, safe_open

    n_bytes, scanned = 0, (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in list(tensors.keys()):
                    tensor = tensors.get_tensor(name)
                    n_bytes += tensor.nbytes
                    if tensor.dtype in scanned and not bool(torch.isfinite(tensor).all()):
                        raise CheckpointError(
                            f"{file}: {name} holds NaN or infinity, so nothing can be computed with it"
                        )
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file} cannot be loaded: it is no whole safetensors file ({error})") from None
    return n_bytes
