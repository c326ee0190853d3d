"""Seconds of training and test accuracy of the sentiment recipe, against transformers.Trainer in the same run.

Command   python benchmarks/against_trainer.py [EPOCHS]

Both train the same checkpoint on the same rows for as many steps at the same rate, and score the same test rows.
Trainer runs in bfloat16 too, with its defaults otherwise. The ratio is what to quote; seconds depend on the machine.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

from tl_nlp import load_recipe, train
from tl_nlp.artifact import locate
from tl_nlp.hardware import has_fast_bfloat16
from tl_nlp.pretrained import load_tokenizer


def main() -> None:
    epochs = sys.argv[1] if len(sys.argv) > 1 else "1"
    recipe = load_recipe(Path(__file__).parent.parent / "recipes" / "sentiment.py", f"training.epochs={epochs}")
    folder = Path(tempfile.mkdtemp(prefix="tl_nlp-trainer-"))

    run = train(recipe, root=folder)
    results = run.results()
    ours = results["train"]["seconds"], results["splits"]["test"]["metrics"]["accuracy"]["value"]

    checkpoint = locate(recipe.checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    labels = recipe.task.outputs()
    rows = recipe.data.load().map(
        lambda batch: {**tokenizer(batch["text"]), "labels": [labels.index(target) for target in batch["target"]]},
        batched=True,
    )
    torch.manual_seed(0)
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(checkpoint),
        TrainingArguments(
            str(folder / "trainer"),
            num_train_epochs=float(epochs),
            per_device_train_batch_size=recipe.training.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=recipe.training.lr,
            warmup_steps=recipe.training.warmup,
            bf16=has_fast_bfloat16(torch.device("cpu")),
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=rows["train"],
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    predicted = trainer.predict(rows["test"])
    accuracy = float(np.mean(predicted.predictions.argmax(-1) == predicted.label_ids))

    print(f"{'':10} {'seconds':>8} {'accuracy':>9}")
    print(f"{'tl_nlp':10} {ours[0]:8.1f} {ours[1]:9.4f}")
    print(f"{'Trainer':10} {seconds:8.1f} {accuracy:9.4f}")
    print(f"Trainer takes {seconds / ours[0]:.2f} times as long")


if __name__ == "__main__":
    main()
