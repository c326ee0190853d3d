"""Peak memory of loading, tokenizing and starting to train on a generated CSV of a million short rows.

Command   python benchmarks/million_rows.py [ROWS]

The training is one step; its validation is left out.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from tl_nlp import load_recipe, training
from tl_nlp.hardware import device_name, peak_rss_mb

WORDS = (
    "the",
    "film",
    "plot",
    "story",
    "good",
    "bad",
    "dull",
    "with",
    "and",
    "very",
    "some",
    "it",
    "was",
    "of",
    "never",
)


def main() -> None:
    n_rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    folder = Path(tempfile.mkdtemp(prefix="tl_nlp-million-"))
    draw = random.Random(0)
    with (folder / "rows.csv").open("w", encoding="utf-8") as file:
        file.write("text,target\n")
        for number in range(n_rows):
            file.write(f"{' '.join(draw.choices(WORDS, k=draw.randint(5, 15)))} {number},{number % 2}\n")
    recipe = load_recipe(
        Path(__file__).parent.parent / "recipes" / "classification.py",
        f"data.path={folder / 'rows.csv'}",
        "training.epochs=1e-9",
    )
    print(device_name(torch.device("cpu")))
    print(f"{'stage':22} {'seconds':>8} {'peak MB':>8}")
    started = time.perf_counter()

    def report(stage: str) -> None:
        print(f"{stage:22} {time.perf_counter() - started:8.1f} {peak_rss_mb():8.0f}", flush=True)

    report("imports")
    rows = recipe.data.load()
    report("read and split")
    del rows

    class Started(Exception):
        pass

    def stop(*arguments: object, **choices: object) -> None:
        raise Started

    training.Predictor.infer = stop  # the validation follows the first step, which is all there is
    try:
        training.train(recipe, root=folder / "runs")
    except Started:
        report("tokenized, one step")


if __name__ == "__main__":
    main()
