"""A head alone on states that are computed once, against transformers.Trainer with a frozen backbone.

Command   python benchmarks/head.py [TIMES]

Both learn the head of `sentiment` for 10 epochs on the same rows, Trainer in bfloat16 where the machine has it. Each
is a command of its own, timed from its start to its end, when the test rows are scored; here that includes the check
of the data, baselines and the report. A second command with another seed finds the states in the feature cache.
TIMES (5) turns, each with an empty cache; the ratios of the medians are what to quote.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tl_nlp.hardware import best_device, device_name, has_fast_bfloat16

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "sentiment.py"
EPOCHS = 10
DEVICE = best_device()
WORDS = ["method=head", f"training.epochs={EPOCHS}", "training.lr=5e-3", "training.head_lr=null", "data.similarity=1"]


def main(times: int) -> None:
    spent: dict[str, list[tuple[float, float, float]]] = {"first": [], "again": [], "Trainer": []}
    for _ in range(times):
        folder = Path(tempfile.mkdtemp(prefix="tl_nlp-head-"))
        spent["first"].append(ours(folder, seed=0))
        spent["again"].append(ours(folder, seed=1))
        spent["Trainer"].append(timed([sys.executable, str(Path(__file__).resolve()), "--trainer"], folder, last_line))
    print(device_name(DEVICE))
    command, training, _ = (median(column) for column in zip(*spent["Trainer"], strict=True))
    print(f"{'':12} {'command, s':>11} {'ratio':>6} {'training, s':>12} {'ratio':>6} {'accuracy':>9}")
    for name, found in spent.items():
        whole, alone, right = (median(column) for column in zip(*found, strict=True))
        print(f"{name:12} {whole:11.1f} {command / whole:6.1f} {alone:12.2f} {training / alone:6.1f} {right:9.4f}")


def last_line(out: str) -> list[float]:
    return json.loads(out.splitlines()[-1])


def ours(folder: Path, seed: int) -> tuple[float, float, float]:
    words = [sys.executable, "-m", "tl_nlp", "train", str(RECIPE), *WORDS, f"training.seed={seed}"]

    def read(out: str) -> list[float]:
        results = json.loads((Path(out.splitlines()[-1]) / "results.json").read_text())
        return [results["train"]["seconds"], results["splits"]["test"]["metrics"]["accuracy"]["value"]]

    return timed(words, folder, read)


def timed(words: list[str], folder: Path, read: Callable[[str], list[float]]) -> tuple[float, float, float]:
    """Seconds of a command and of its training, and the accuracy that it prints last."""
    environment = {**os.environ, "TL_NLP_CACHE": str(folder / "cache"), "TL_NLP_RUNS": str(folder / "runs")}
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    training, accuracy = read(done.stdout.strip())
    return seconds, training, accuracy


def with_trainer() -> None:
    """Prints seconds of training and the accuracy."""
    import numpy as np
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

    from tl_nlp import load_recipe
    from tl_nlp.artifact import locate
    from tl_nlp.pretrained import load_tokenizer
    from tl_nlp.rows import resolved

    recipe = load_recipe(RECIPE, "data.similarity=1")
    checkpoint = locate(recipe.checkpoint)
    tokenizer, labels = load_tokenizer(checkpoint), recipe.task.outputs()
    rows = resolved(recipe)[1].map(
        lambda batch: {**tokenizer(batch["text"]), "labels": [labels.index(target) for target in batch["target"]]},
        batched=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    model.base_model.requires_grad_(False)
    arguments = TrainingArguments(
        tempfile.mkdtemp(prefix="tl_nlp-head-"), num_train_epochs=EPOCHS, per_device_train_batch_size=32,
        per_device_eval_batch_size=64, learning_rate=5e-3, save_strategy="no", report_to="none",
        use_cpu=DEVICE.type == "cpu", dataloader_pin_memory=DEVICE.type == "cuda", bf16=has_fast_bfloat16(DEVICE),
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows["train"], data_collator=DataCollatorWithPadding(tokenizer))
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    predicted = trainer.predict(rows["test"])
    accuracy = float(np.mean(predicted.predictions.argmax(-1) == predicted.label_ids))
    print("\n" + json.dumps([seconds, accuracy]))


if __name__ == "__main__":
    if sys.argv[1:] == ["--trainer"]:
        with_trainer()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
