"""Training of the sentiment recipe against transformers.Trainer: rows a second, and accuracy.

Command   python benchmarks/against_trainer.py [speed] [accuracy] [--share N] [--peers NAME ...]

Trainer trains the same checkpoint on the same rows for as many steps at the same rate, with its defaults (float32), and
in bfloat16 with rows grouped by length, where the machine has it.

Speed: rows a second of the training itself, from the difference between 3 epochs and 1 on one row of N (5); what is
evaluated on the way, which is nothing there, is not counted. Five times, all in turn, and the ratio of the medians is
what to quote. Accuracy: the whole recipe on all rows for three seeds, scored on the same test rows.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.utils import logging

from tl_nlp import Recipe, load_recipe, train
from tl_nlp.artifact import locate
from tl_nlp.data.files import Files
from tl_nlp.hardware import best_device, device_name, has_fast_bfloat16
from tl_nlp.pretrained import load_tokenizer
from tl_nlp.rows import resolved

TIMES = 5
SEEDS = 3
DEVICE = best_device()
PEERS = {
    "Trainer, float32": {},
    "Trainer, bfloat16, by length": {"bf16": True, "train_sampling_strategy": "group_by_length"},
}


@dataclass
class Trained:
    seconds: float  # of the training, without loading, tokenizing and scoring
    accuracy: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", metavar="speed|accuracy", default=["speed", "accuracy"])
    parser.add_argument("--share", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    asked = parser.parse_args()
    names = ["tl_nlp", *(name for name in asked.peers if not PEERS[name] or has_fast_bfloat16(DEVICE))]
    logging.set_verbosity_error()
    recipe = sentiment()
    print(f"{device_name(DEVICE)}; torch {torch.__version__}", flush=True)
    if "speed" in asked.parts:
        speed(part_of(recipe, asked.share), names)
    if "accuracy" in asked.parts:
        accuracy(recipe, names)


def sentiment() -> Recipe:
    return load_recipe(Path(__file__).parent.parent / "recipes" / "sentiment.py", "data.similarity=1")


def speed(few: Recipe, names: list[str]) -> None:
    n_rows = len(resolved(few)[1]["train"])
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(TIMES):
        for name, rate in rates.items():
            one, three = (trained(name, few, float(epochs), seed=0).seconds for epochs in (1, 3))
            rate.append(2 * n_rows / (three - one))
            print(f"{name:30} {rate[-1]:7.1f} rows a second", file=sys.stderr, flush=True)
    ours = median(rates["tl_nlp"])
    print(f"{'':30} {'rows/s':>7} {'lowest':>7} {'highest':>8} {'ratio':>6}")
    for name, rate in rates.items():
        print(f"{name:30} {median(rate):7.1f} {min(rate):7.1f} {max(rate):8.1f} {ours / median(rate):6.2f}", flush=True)


def accuracy(recipe: Recipe, names: list[str]) -> None:
    print(f"{'':30} {'accuracy':>8}  {'seconds':>8}  of each seed")
    for name in names:
        runs = [trained(name, recipe, recipe.training.epochs, seed) for seed in range(SEEDS)]
        scores = " ".join(f"{run.accuracy:.4f}" for run in runs)
        means = mean(run.accuracy for run in runs), mean(run.seconds for run in runs)
        print(f"{name:30} {means[0]:8.4f}  {means[1]:8.1f}  {scores}", flush=True)


def trained(name: str, recipe: Recipe, epochs: float, seed: int) -> Trained:
    return ours(recipe, epochs, seed) if name == "tl_nlp" else theirs(recipe, epochs, seed, PEERS[name])


def ours(recipe: Recipe, epochs: float, seed: int) -> Trained:
    os.environ["TL_NLP_CACHE"] = ""  # what lower blocks have read is read in each training, so that it cancels out
    recipe = recipe.override(f"training.epochs={epochs}", f"training.seed={seed}")
    results = train(recipe, root=Path(tempfile.mkdtemp(prefix="tl_nlp-trainer-"))).results()
    return Trained(results["train"]["seconds"], results["splits"]["test"]["metrics"]["accuracy"]["value"])


def theirs(recipe: Recipe, epochs: float, seed: int, options: dict[str, object]) -> Trained:
    checkpoint = locate(recipe.checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    labels = recipe.task.outputs()
    rows = resolved(recipe)[1].map(
        lambda batch: {**tokenizer(batch["text"]), "labels": [labels.index(target) for target in batch["target"]]},
        batched=True,
    )
    torch.manual_seed(seed)
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(checkpoint),
        TrainingArguments(
            tempfile.mkdtemp(prefix="tl_nlp-trainer-"),
            num_train_epochs=epochs,
            per_device_train_batch_size=recipe.training.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=recipe.training.lr,
            warmup_steps=recipe.training.warmup,
            use_cpu=DEVICE.type == "cpu",
            seed=seed,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=DEVICE.type == "cuda",
            **options,
        ),
        train_dataset=rows["train"],
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    predicted = trainer.predict(rows["test"])
    return Trained(seconds, float(np.mean(predicted.predictions.argmax(-1) == predicted.label_ids)))


def part_of(recipe: Recipe, share: int) -> Recipe:
    """The recipe on one of so many rows of each split."""
    folder = Path(tempfile.mkdtemp(prefix="tl_nlp-trainer-"))
    for split, rows in resolved(recipe)[1].items():
        rows.select(range(0, len(rows), share)).to_json(folder / f"{split}.jsonl")
    files = {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")}
    return recipe.model_copy(update={"data": Files(**files, overlap="keep")})


if __name__ == "__main__":
    main()
