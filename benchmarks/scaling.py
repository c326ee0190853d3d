"""Cost against work: tokens a second and memory over lengths and rows, and the share of what the machine can do.

Command   python benchmarks/scaling.py [MOST_ROWS]

The packaged MiniLM trains all weights but its tables, and predicts, on texts of one length each: of 16 to 256 tokens,
and of 16 tokens in 1,000 to MOST_ROWS (100,000) rows. Each measurement is a process of its own and the median of
three, where it is long one; training is timed by the difference of one epoch and more, predictions by a second time.
The share is of the floating-point operations a second of one large product in bfloat16 (float32 where that is not
fast), measured first.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

TIMES = 3  # of what has no more tokens than this:
N_TOKENS = 64_000  # of the texts of each length; and at least so many are learned from beyond the first epoch
LENGTHS = (16, 32, 64, 128, 256)


def main(most_rows: int) -> None:
    import torch

    from tl_nlp.hardware import device_name

    ceiling = float(told("--ceiling")[0])
    print(f"{device_name(torch.device('cpu'))}; {ceiling / 1e9:.0f} billion operations a second in one large product")
    for what in ("train", "predict"):
        print(f"\n{what:8} {'rows':>7} {'tokens':>7} {'tokens/s':>9} {'share':>6} {'MB':>6}")
        sizes = [(N_TOKENS // length, length) for length in LENGTHS]
        sizes += [(rows, 16) for rows in (1_000, 10_000, 100_000) if rows <= most_rows]
        for rows, length in sizes:
            times = TIMES if rows * length <= N_TOKENS else 1
            found = [told("--one", what, str(rows), str(length)) for _ in range(times)]
            rate, peak = (median(column) for column in zip(*found, strict=True))
            share = rate * operations(length, what) / ceiling
            print(f"{'':8} {rows:7} {length:7} {rate:9.0f} {share:6.1%} {peak:6.0f}", flush=True)


def operations(length: int, what: str) -> float:
    """Of one token through MiniLM's blocks: two for each weight and each product of attention, three times that where
    gradients are computed too."""
    blocks, hidden, between = 6, 384, 1536
    forward = blocks * (2 * (4 * hidden**2 + 2 * hidden * between) + 4 * length * hidden)
    return forward * (3 if what == "train" else 1)


def told(*words: str) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="tl_nlp-scaling-") as folder:
        command = [sys.executable, str(Path(__file__).resolve()), *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])


def ceiling() -> float:
    import torch

    from tl_nlp.hardware import has_fast_bfloat16

    dtype = torch.bfloat16 if has_fast_bfloat16(torch.device("cpu")) else torch.float32
    one, other = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        one @ other
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def one(what: str, n_rows: int, length: int) -> tuple[float, float]:
    """Tokens a second, and the most memory that was held, in MB."""
    from tl_nlp import load_recipe, train
    from tl_nlp.hardware import peak_rss_mb

    recipe = load_recipe(
        Path(__file__).parent.parent / "recipes" / "sentiment.py", "data=files", "data.where={}", "data.values={}",
        "data.target=target", "data.train=train.jsonl", "data.validation=rest.jsonl", "data.test=rest.jsonl",
        "data.overlap=keep", "data.similarity=1", f"task.max_length={length}", "task.max_windows=1",
        "training.eval_every=100", "training.save_every=100", "method=full", "method.embeddings=false",
    )  # fmt: skip
    rows("train.jsonl", n_rows if what == "train" else 64, length)
    rows("rest.jsonl", 64, length)
    if what == "train":
        seconds, more = [], -(-N_TOKENS // (n_rows * length))
        for epochs in (1, 1 + more):
            run = train(recipe.override(f"training.epochs={epochs}"), root=Path("runs"))
            seconds.append(run.results()["train"]["seconds"])
        return more * n_rows * length / (seconds[1] - seconds[0]), peak_rss_mb()
    from tl_nlp import Predictor
    from tl_nlp.tables import read_pieces

    predictor = Predictor.load(train(recipe.override("training.epochs=1"), root=Path("runs")))
    rows("asked.jsonl", n_rows, length)
    for _ in range(2):
        start = time.perf_counter()
        for _answers in predictor.stream(read_pieces(Path("asked.jsonl"), 10_000)):
            pass
    return n_rows * length / (time.perf_counter() - start), peak_rss_mb()


def rows(name: str, n_rows: int, length: int) -> None:
    """A file of texts of so many tokens each, marks included; no two are the same."""
    words = ["a", "the", "film", "plot", "actor", "good", "bad", "long", "story", "scene", "music", "old", "was"]
    with Path(name).open("w", encoding="utf-8") as file:
        for number in range(n_rows):
            picked = [words[(number // 13**place + place) % 13] for place in range(length - 2)]
            label = ("negative", "positive")[number % 2]
            file.write(json.dumps({"text": " ".join(picked), "target": label}) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ceiling"]:
        print(json.dumps([ceiling()]))
    elif sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
