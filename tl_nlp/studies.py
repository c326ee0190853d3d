"""Several runs that answer one question: how much is luck (seeds), how good on few rows (folds), would more help."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from tl_nlp.charts import write_growth_png
from tl_nlp.errors import DataError, RecipeError
from tl_nlp.evaluation import judged, read_predictions, score, write_predictions
from tl_nlp.recipe import Recipe
from tl_nlp.reporting import write_report
from tl_nlp.rows import resolved
from tl_nlp.run import Run
from tl_nlp.session import alone
from tl_nlp.statistics import PowerLaw, fit_power_law
from tl_nlp.training import create_run, train_one
from tl_nlp.types import Prediction

SIZES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the training rows that a learning curve tries."""
_NOTHING = 1e-9  # a gain that is rounding
_FAR = 100  # times the rows, beyond which a law is not asked


def train(recipe: Recipe | Run, *, root: Path | None = None, weights_only: bool = False) -> Run:
    """Trains a recipe into a new run under `root` (default: $TL_NLP_RUNS, else ./runs); a Run goes on where it stopped,
    `weights_only` also from a checkpoint without its optimizer's state, and then not exactly.

    With training.seeds or data.folds the run holds several, and keeps the model that is best on validation. Raises a
    TLError: see `tl_nlp.errors`. Under `accelerate launch` every process calls this and returns the same run.
    """
    asked = recipe.recipe() if isinstance(recipe, Run) else recipe
    has_folds = asked.data.folds is not None and asked.data.fold is None
    if asked.training.seeds == 1 and not has_folds and not asked.training.scratch:
        return train_one(recipe, root=root, weights_only=weights_only)
    if isinstance(recipe, Run) and recipe.is_finished:
        return recipe
    if asked.training.scratch and (asked.training.seeds > 1 or has_folds):
        raise RecipeError("goes with one run, not with several seeds or folds", "training.scratch")
    if asked.training.seeds > 1 and asked.data.folds is not None:
        raise RecipeError("seeds and folds are studied one at a time; set one of them", "training.seeds")
    accelerator = Accelerator()
    run = recipe if isinstance(recipe, Run) else create_run(recipe, root, accelerator)
    if asked.training.scratch:
        # first, so that the run finds it among its baselines when it is scored
        own = [] if asked.method.kind == "full" else ["method=full", "checkpoint.load_in=float32", "training.lr=1e-4"]
        scratch = asked.override(*own, "training.scratch=false", "checkpoint.random=true")
        _trained(run, "scratch", scratch, accelerator, weights_only)
        return train_one(run, weights_only=weights_only)
    if has_folds:
        parts = {f"folds/{fold}": f"data.fold={fold}" for fold in range(asked.data.folds or 0)}
    else:
        first = asked.training.seed
        parts = {f"seeds/{seed}": f"training.seed={seed}" for seed in range(first, first + asked.training.seeds)}
    with alone(run, accelerator):
        runs = [
            _trained(run, part, asked.override("training.seeds=1", assignment), accelerator, weights_only)
            for part, assignment in parts.items()
        ]
        if accelerator.is_main_process:
            _conclude(run, runs, "folds" if has_folds else "seeds")
        accelerator.wait_for_everyone()
    return run


def _trained(run: Run, part: str, recipe: Recipe, accelerator: Accelerator, weights_only: bool = False) -> Run:
    """The run inside `run`, trained."""
    if accelerator.is_main_process:
        run.within(part, recipe)
    accelerator.wait_for_everyone()
    return train_one(run.within(part, recipe), weights_only=weights_only)


def _conclude(run: Run, runs: list[Run], kind: str) -> None:
    """Takes over the model that is best on validation, and writes results and report of all runs together."""
    best = max(runs, key=_on_validation)
    run.adopt(best)
    results = best.results()
    if kind == "folds":
        results |= _out_of_fold(run, best, runs)
    results[kind] = {"n": len(runs), "chosen": best.folder.name, "splits": _spread(runs)}
    run.write_results(results)
    write_report(run)


def _on_validation(run: Run) -> float:
    metric = run.recipe().task.main_metric
    return max(line["values"][metric] for line in run.history() if line["split"] == "validation")


def _spread(runs: list[Run]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation over the runs of every metric of every split."""
    all_results = [run.results()["splits"] for run in runs]
    spread: dict[str, dict[str, dict[str, float]]] = {}
    for split, scores in all_results[0].items():
        spread[split] = {}
        for name in scores["metrics"]:
            values = [one[split]["metrics"][name]["value"] for one in all_results if name in one[split]["metrics"]]
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            spread[split][name] = {"mean": float(np.mean(values)), "sd": sd}
    return spread


def _out_of_fold(run: Run, best: Run, runs: list[Run]) -> dict[str, Any]:
    """Scores and verdict over all rows, each answered by the run that has not seen it; writes these predictions."""
    task = best.trained_recipe().task

    def gathered(baseline: str | None) -> tuple[list[Prediction], dict[str, list[Any]]]:
        predictions: list[Prediction] = []
        rows: dict[str, list[Any]] = {}
        for one in runs:
            theirs, their_rows = read_predictions(one.predictions_file("test", baseline), task)
            predictions += theirs
            for name, values in their_rows.items():
                rows.setdefault(name, []).extend(values)
        write_predictions(run.predictions_file("test", baseline), rows, predictions)
        return predictions, rows

    predictions, rows = gathered(None)
    answers = {name: gathered(name)[0] for name in best.baselines()}
    return {"splits": {"test": score(task, predictions, rows)}, **judged(task, predictions, answers, rows)}


@dataclass(frozen=True)
class Growth:
    """A learning curve: the main metric, with its interval, for each number of training rows; the law through them."""

    metric: str
    points: list[dict[str, float]]
    law: PowerLaw | None

    def expected(self) -> list[dict[str, float]]:
        """What twice and four times the rows promise, with intervals."""
        if self.law is None:
            return []
        most = self.points[-1]["rows"]
        return [{"rows": times * most, **self.law.at(times * most)} for times in (2, 4)]

    def answer(self) -> str:
        """Would more rows help, and how many?"""
        if self.law is None:
            return "under four sizes tell no law"
        n = self.points[-1]["rows"]
        gain, (ceiling, scale, rate) = self.law.gain(n, 2 * n), self.law.fitted
        told = f"{gain['value']:+.2g} [{gain['low']:+.2g}, {gain['high']:+.2g}] {self.metric} from twice the rows"
        if gain["low"] <= _NOTHING:
            return f"undecided whether more rows help: {told}"
        halving = n * 2 ** (1 / rate)
        way = f"to {ceiling - scale * n**-rate / 2:.3g}, half of the way to the law's ceiling {ceiling:.3g}, about "
        return f"more rows help: {told}; {way}{halving:,.0f} rows" if halving < _FAR * n else f"more rows help: {told}"


def learning_curve(recipe: Recipe | Run, *, root: Path | None = None) -> tuple[Run, Growth]:
    """Trains on nested parts of the training rows, and fits the law by which the score grows; a Run goes on where it
    stopped. Raises a TLError."""
    given, recipe = recipe, recipe.recipe() if isinstance(recipe, Run) else recipe
    n_rows = len(resolved(recipe)[1]["train"])
    if n_rows < 64:
        raise DataError(f"{n_rows} training rows are too few for a learning curve; it takes 64 or more")
    named = recipe.model_copy(update={"name": f"{recipe.name}-learning-curve"})
    accelerator = Accelerator()
    run = given if isinstance(given, Run) else create_run(named, root, accelerator)
    metric, points = recipe.task.main_metric, []
    for share in SIZES:
        size = math.ceil(share * n_rows)
        smaller = recipe.override(f"data.train_rows={size}", "training.seeds=1", "training.scratch=false")
        part = _trained(run, f"sizes/{size}", smaller, accelerator)
        points.append({"rows": float(size), **part.results()["splits"]["test"]["metrics"][metric]})
    growth = Growth(metric, points, fit_power_law(points, 100.0 if metric.startswith("rouge") else 1.0))
    law = None if growth.law is None else growth.law.at
    if accelerator.is_main_process:
        write_growth_png(run.growth_file, points, law, 4 * n_rows, metric)
        run.write_growth({"metric": metric, "points": points, "expected": growth.expected(), "answer": growth.answer()})
    accelerator.wait_for_everyone()
    return run, growth
