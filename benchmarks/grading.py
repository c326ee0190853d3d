"""Grades against published systems on three public sets, with the packaged MiniLM: what docs/grading.md shows.

Command   python benchmarks/grading.py DATA FOLDER [essays] [essays_frozen] [answers] [readability]

DATA holds essays/asap/{train,validation}.jsonl, short_answers/mohler/train.jsonl and readability/clear/train.jsonl,
with the columns id, text, pair, target, group, low, high, rater1, rater2. Runs go under FOLDER; called again, it goes
on where it stopped, and what is finished is only read. Essays: recipes/essays.py learns from the training file, a part
of which is its validation, and answers the validation file, once end to end and with three seeds over frozen windows.
Short answers: each assignment is answered by a model of the others. Readability: five folds.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from resuming import trained

from tl_nlp import Recipe, load_recipe, metrics
from tl_nlp.evaluation import read_predictions
from tl_nlp.metrics import Measured
from tl_nlp.statistics import intervals

RECIPES = Path(__file__).parent.parent / "recipes"
FROZEN = ("method=head", "training.batch_size=32", "training.head_lr=3e-4")
EASE = ("task.low=-4", "task.high=2", "task.step=0.1")


def essays(data: Path) -> Iterator[tuple[str, Recipe]]:
    yield "essays", load_recipe(RECIPES / "essays.py", *_essays(data))


def essays_frozen(data: Path) -> Iterator[tuple[str, Recipe]]:
    for seed in range(3):
        yield (
            f"essays-frozen-{seed}",
            load_recipe(RECIPES / "essays.py", *_essays(data), *FROZEN, "training.epochs=20", f"training.seed={seed}"),
        )


def _essays(data: Path) -> tuple[str, ...]:
    folder = data / "essays" / "asap"
    return (
        "data.path=null",
        f"data.train={folder / 'train.jsonl'}",
        f"data.test={folder / 'validation.jsonl'}",
        "data.validation_share=0.1",
        "data.overlap=keep",
    )


def answers(data: Path) -> Iterator[tuple[str, Recipe]]:
    rows = [json.loads(line) for line in (data / "short_answers" / "mohler" / "train.jsonl").open(encoding="utf-8")]
    for assignment in sorted({row["group"].split(".")[0] for row in rows}, key=int)[:8]:
        files = {}
        for split in ("train", "test"):
            held_out = [row for row in rows if (row["group"].split(".")[0] == assignment) == (split == "test")]
            files[split] = WORK / f"answers-{assignment}-{split}.jsonl"
            files[split].write_text("".join(json.dumps(row) + "\n" for row in held_out), "utf-8")
        yield (
            f"answers-{assignment}",
            load_recipe(
                RECIPES / "short_answers.py",
                "data=files",
                f"data.train={files['train']}",
                f"data.test={files['test']}",
                "data.overlap=keep",
                "method=head",
                "training.epochs=30",
            ),
        )


def readability(data: Path) -> Iterator[tuple[str, Recipe]]:
    file = data / "readability" / "clear" / "train.jsonl"
    for fold in range(5):
        yield (
            f"readability-{fold}",
            load_recipe(
                RECIPES / "essays.py",
                f"data.path={file}",
                "data.folds=5",
                f"data.fold={fold}",
                *EASE,
                *FROZEN,
                "training.epochs=30",
            ),
        )


def main(data: Path, chosen: list[str]) -> None:
    for study in chosen or [study.__name__ for study in STUDIES]:
        pooled: list[tuple[np.ndarray, np.ndarray]] = []
        for name, recipe in {one.__name__: one for one in STUDIES}[study](data):
            run = trained(name, recipe, WORK)
            results = run.results()
            scores = results["splits"]["test"]["metrics"]
            scored = {metric: scores[metric] for metric in SHOWN if metric in scores}
            print(f"{name:18}", *(f"{metric} {_told(value)}" for metric, value in scored.items()), sep="  ")
            for other, theirs in results["baselines"].items():
                print(
                    f"  {other:16}",
                    *(f"{metric} {_told(theirs[metric])}" for metric in scored if metric in theirs),
                    sep="  ",
                )
            print(f"  {results['verdict']}; {results['train']['seconds']:.0f} s of training; {run.folder}")
            predictions, rows = read_predictions(run.predictions_file("test"), run.recipe().task)
            pooled.append((np.asarray(rows["target"], float), np.asarray([one.scores["score"] for one in predictions])))
        if study in ("answers", "readability"):
            truth, given = (np.concatenate(side) for side in zip(*pooled, strict=True))
            all_rows: dict[str, Measured] = {
                "pearson": metrics.pearson(truth, given),
                "rmse": metrics.rmse(truth, given),
            }
            found = intervals(all_rows, len(truth))
            print(
                f"{study}: all {len(truth)} rows",
                *(f"{name} {_told(value)}" for name, value in found.items()),
                sep="  ",
            )


def _told(value: dict[str, float]) -> str:
    return (
        f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if "low" in value else f"{value['value']:.3f}"
    )


SHOWN = ("qwk", "mean_pearson", "pearson", "rmse", "human_qwk", "prmse", "length_pearson")
STUDIES: tuple[Callable[[Path], Iterator[tuple[str, Recipe]]], ...] = (essays_frozen, essays, answers, readability)

if __name__ == "__main__":
    WORK = Path(sys.argv[2])
    WORK.mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]), sys.argv[3:])
