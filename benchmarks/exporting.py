"""How much sooner an export answers than transformers.pipeline in float32, with the same weights and scores.

Command   python benchmarks/exporting.py [RUN] [--rows ROWS] [--exports NAME ...]

RUN is one of a classification with task.pooling=checkpoint, which pipeline can open; without it one epoch of sentiment
is trained. Two things are measured, each in turn with its peer, five times, and the ratios of the medians are what to
quote: single requests, sentences of the test split; and ROWS (10,000) reviews of all lengths, in no order, each read up
to 256 tokens by both, pipeline in batches of 32.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import pipeline
from transformers.utils import logging

from tl_nlp import Predictor, Run, load_recipe, train
from tl_nlp.exporting import export
from tl_nlp.hardware import device_name
from tl_nlp.rows import resolved

TIMES = 5
N_REQUESTS = 100
EXPORTS: dict[str, dict[str, Any]] = {
    "onnx float32": {}, "onnx int8": {"quantize": "int8"}, "openvino float32": {"format": "openvino"},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="?", type=Run.open)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--exports", nargs="+", choices=EXPORTS, default=list(EXPORTS))
    asked = parser.parse_args()
    logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp(prefix="tl_nlp-exporting-"))
    run = asked.run or trained(folder)
    peer = pipeline("text-classification", model=str(run.artifact), device="cpu", dtype="float32")
    predictors = {"torch (tl_nlp)": Predictor.load(run)}
    for name in asked.exports:
        export(run, folder / name, **EXPORTS[name], tolerance=0.1)
        predictors[name] = Predictor.load(folder / name)
    sentences = list(resolved(run.recipe())[1]["test"]["text"])[:N_REQUESTS]
    reviews, labels = mixed(run, asked.rows)
    cut = {"truncation": True, "max_length": 256}

    print(device_name(torch.device("cpu")))
    print(f"{'one request':24} {'p50, ms':>9} {'ratio':>6}")
    for name, predictor in predictors.items():
        ours, theirs = in_turn(
            partial(p50, predictor, [[text] for text in sentences]), partial(p50, partial(peer, **cut), sentences)
        )
        print(f"{name:24} {1000 * ours:9.2f} {theirs / ours:6.2f}")
    print(f"{'pipeline float32':24} {1000 * theirs:9.2f}\n", flush=True)

    print(f"{f'{len(reviews)} reviews':24} {'a second':>9} {'ratio':>6} {'accuracy':>9}")
    answers: dict[str, list[str]] = {}

    def ask_peer() -> float:
        start = time.perf_counter()
        answers["pipeline"] = [one["label"] for one in peer(reviews, batch_size=32, **cut)]
        return time.perf_counter() - start

    def ask(name: str) -> float:
        predictor = predictors[name]
        predictor.task = predictor.task.model_copy(update={"max_windows": 1, "max_length": 256})
        start = time.perf_counter()
        answers[name] = [one.label for one in predictor(reviews)]
        return time.perf_counter() - start

    spent: dict[str, list[float]] = {name: [] for name in (*predictors, "pipeline")}
    for _ in range(TIMES):
        for name in predictors:
            spent[name].append(ask(name))
        spent["pipeline"].append(ask_peer())
    for name, times in spent.items():
        right = np.mean([one == other for one, other in zip(answers[name], labels, strict=True)])
        ratio = median(spent["pipeline"]) / median(times)
        print(f"{name:24} {len(reviews) / median(times):9.1f} {ratio:6.2f} {right:9.4f}")


def trained(folder: Path) -> Run:
    recipe = load_recipe(Path(__file__).parent.parent / "recipes" / "sentiment.py", "training.epochs=1")
    return train(recipe.override("task.pooling=checkpoint", "task.max_length=256"), root=folder)


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
