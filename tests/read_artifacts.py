"""Logits of artifacts, read in a process of their own: python read_artifacts.py OUTPUT CHECKPOINT FOLDER...

Of each artifact twice: by this package, and by the lines that its README prints.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

TEXTS = ["the film was good . it is fine .", "a dull plot , and more"]


def logits(model: Any, tokenizer: Any) -> list[float]:
    """Of two texts; of a model that writes, those of the first text's tokens after the second. With 4-bit weights as
    they are trained with, and not as bitsandbytes lays them out to infer, where products are rounded otherwise."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    if model.config.is_encoder_decoder:
        batch["labels"] = batch["input_ids"].flip(0)
    with torch.inference_mode():
        return model.eval()(**batch).logits.float().flatten().tolist()


def by_readme(folder: Path, checkpoint: str) -> list[float]:
    """The README's lines, run in the artifact's folder with the checkpoint's name put in."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    os.chdir(folder)
    exec(code.replace("CHECKPOINT", checkpoint), names)
    if "predictor" in names:
        return logits(names["predictor"].model, names["predictor"].tokenizer)
    return logits(names["model"], names["tokenizer"])


if __name__ == "__main__":
    from tl_nlp import Predictor

    output, checkpoint, *folders = sys.argv[1:]
    found = {}
    for folder in map(Path, folders):
        ours = Predictor.load(folder)
        found[str(folder)] = [logits(ours.model, ours.tokenizer), by_readme(folder, checkpoint)]
    Path(output).write_text(json.dumps(found))
