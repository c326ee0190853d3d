"""How much sooner an export answers than transformers.pipeline in float32, with the same weights and scores.

Command   python benchmarks/exporting.py [RUN] [--rows ROWS] [--max-length TOKENS] [--exports NAME ...]

RUN is one of a classification with task.pooling=checkpoint, which pipeline can open; without it one epoch of sentiment
is trained. Two things are measured, each in turn with its peer, five times, and the ratios of the medians are what to
quote: single requests, sentences of the test split; and ROWS (10,000) reviews of all lengths, in no order, a fifth of
them each time. Both read TOKENS of each, by default what the checkpoint has room for, as pipeline does of itself, in
batches of 32.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import trange
from transformers import pipeline
from transformers.utils import logging

from tl_nlp import Predictor, Run, load_recipe, train
from tl_nlp.exporting import export
from tl_nlp.hardware import device_name
from tl_nlp.rows import resolved

TIMES = 5
PEER = "pipeline float32"
N_REQUESTS = 100
EXPORTS: dict[str, dict[str, Any]] = {
    "onnx float32": {}, "onnx int8": {"quantize": "int8"}, "openvino float32": {"format": "openvino"},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="?", type=Run.open)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--exports", nargs="+", choices=EXPORTS, default=list(EXPORTS))
    asked = parser.parse_args()
    logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp(prefix="tl_nlp-exporting-"))
    run = asked.run or trained(folder, asked.max_length)
    peer = pipeline("text-classification", model=str(run.artifact), device="cpu", dtype="float32")
    predictors = {"torch (tl_nlp)": Predictor.load(run)}
    for name in asked.exports:
        export(run, folder / name, **EXPORTS[name], tolerance=0.1)
        predictors[name] = Predictor.load(folder / name)
    sentences = list(resolved(run.recipe())[1]["test"]["text"])[:N_REQUESTS]
    reviews, labels = mixed(run, asked.rows)
    cut = {"truncation": True, "max_length": asked.max_length}
    for predictor in predictors.values():
        predictor.task = predictor.task.model_copy(update={"max_windows": 1, "max_length": asked.max_length})

    print(device_name(torch.device("cpu")))
    print(f"{'one request':24} {'p50, ms':>9} {'peer':>7} {'ratio':>6}")
    for name, predictor in predictors.items():
        ours, theirs = in_turn(
            partial(p50, predictor, [[text] for text in sentences]), partial(p50, partial(peer, **cut), sentences)
        )
        print(f"{name:24} {1000 * ours:9.2f} {1000 * theirs:7.2f} {theirs / ours:6.2f}", flush=True)
    print()

    def label(name: str, texts: list[str]) -> list[str]:
        if name == PEER:
            return [one["label"] for one in peer(texts, batch_size=32, **cut)]
        return [one.label for one in predictors[name](texts)]

    print(f"{f'{len(reviews)} reviews':24} {'a second':>9} {'lowest':>7} {'highest':>8} {'ratio':>6} {'accuracy':>9}")
    names = [*predictors, PEER]
    rates: dict[str, list[float]] = {name: [] for name in names}
    right: dict[str, list[bool]] = {name: [] for name in names}
    for turn in trange(TIMES, desc="turns", file=sys.stderr):
        texts, here = reviews[turn::TIMES], labels[turn::TIMES]
        for name in names:
            start = time.perf_counter()
            answers = label(name, texts)
            rates[name].append(len(texts) / (time.perf_counter() - start))
            right[name] += [one == other for one, other in zip(answers, here, strict=True)]
    for name, rate in rates.items():
        ratio = median(rate) / median(rates[PEER])
        print(
            f"{name:24} {median(rate):9.1f} {min(rate):7.1f} {max(rate):8.1f} {ratio:6.2f} {np.mean(right[name]):9.4f}"
        )


def trained(folder: Path, max_length: int) -> Run:
    recipe = load_recipe(Path(__file__).parent.parent / "recipes" / "sentiment.py", "training.epochs=1")
    return train(recipe.override("task.pooling=checkpoint", f"task.max_length={max_length}"), root=folder)


def mixed(run: Run, n_rows: int) -> tuple[list[str], list[str]]:
    """Reviews of one sentence to some pages, most of them none the model learned from, and their labels. The file has
    its long ones before its short ones, and people's files are in no such order."""
    recipe = run.recipe().override("data.where={}", f"data.train_rows={n_rows}", "data.similarity=1")
    rows = resolved(recipe)[1]["train"].shuffle(seed=0)
    return list(rows["text"]), list(rows["target"])


def p50(answer: Callable[[Any], object], requests: list[Any]) -> float:
    """The median time of one request, in seconds."""
    times = []
    for request in requests:
        start = time.perf_counter()
        answer(request)
        times.append(time.perf_counter() - start)
    return median(times)


def in_turn(ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float]:
    """The medians of what two measurements give, taken in turn."""
    both = [(ours(), theirs()) for _ in range(TIMES)]
    return median(one for one, _ in both), median(other for _, other in both)


if __name__ == "__main__":
    main()
