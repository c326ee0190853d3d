"""What each verb of the command line does: it calls, and prints. What is heavy is imported inside the verbs."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tl_nlp import hub
from tl_nlp.components import kinds
from tl_nlp.errors import RecipeError, RunError, TLError
from tl_nlp.hub import local
from tl_nlp.recipe import Recipe, load_recipe, recipe_files
from tl_nlp.run import Run, all_runs, artifact_folder, newest_runs, read_recipe


def list_all(arguments: argparse.Namespace) -> None:
    for name, path in recipe_files().items():
        try:
            summary = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0]
        except (SyntaxError, ValueError) as error:
            summary = f"cannot be read: {error}"
        print(f"{name:22} {summary}")
    for axis in ("tasks", "data", "methods"):
        print(f"{axis + ':':22} {', '.join(kinds(axis))}")


def show(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(arguments.recipe, *arguments.overrides)
    print(json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False))


def train(arguments: argparse.Namespace) -> None:
    started = time.perf_counter()
    chosen = _recipe_or_run(arguments)
    if arguments.weights_only and not isinstance(chosen, Run):
        raise RecipeError("--weights-only is for a run that goes on; a recipe begins a new one")
    if arguments.budget is not None:
        if isinstance(chosen, Run):
            raise RecipeError("--budget changes a recipe, and a run goes on with the recipe it began with")
        seconds = _seconds(arguments.budget)
        from tl_nlp.budget import within

        chosen = within(chosen, seconds - (time.perf_counter() - started))
    from tl_nlp.studies import train

    run = train(chosen, weights_only=arguments.weights_only)
    if os.environ.get("RANK", "0") != "0":  # under `accelerate launch` one process speaks
        return
    results = run.results()
    for split, scores in results["splits"].items():
        print(f"{split}  {scores['rows']} rows  {_values(scores['metrics'])}")
        if "caution" in scores:
            print(f"{split}  {scores['caution']}")
    for name, scores in results.get("baselines", {}).items():
        print(f"baseline {name}  {_values({key: scores[key] for key in scores if key != 'difference'})}")
    for kind in ("seeds", "folds"):
        for split, metrics in results.get(kind, {}).get("splits", {}).items():
            spread = "  ".join(f"{name} {one['mean']:.4g} ± {one['sd']:.2g}" for name, one in metrics.items())
            print(f"{split}  mean ± sd of {results[kind]['n']} {kind}  {spread}")
    for split, scores in results["splits"].items():
        if "verdict" in scores:
            print(f"{split}  {scores['verdict']}")
    if "verdict" in results:
        print(results["verdict"])
    if results.get("negative_transfer"):
        print(f"negative transfer? {results['negative_transfer']}")
    print(run.folder)


def reproduce(arguments: argparse.Namespace) -> None:
    run = Run.open(local(arguments.run))
    from tl_nlp.reproduction import reproduce

    made = reproduce(run)
    for line in made.lines():
        print(line)
    print(made.again.folder)
    if not made.agrees:
        raise RunError(f"{run.folder} is not reproduced: {made.verdict()}")


def _recipe_or_run(arguments: argparse.Namespace) -> Recipe | Run:
    if not Path(arguments.recipe).is_dir():
        return load_recipe(arguments.recipe, *arguments.overrides)
    if arguments.overrides:
        raise RecipeError(
            f"{arguments.overrides[0]}: a run goes on with the recipe it began with; overrides go with a recipe"
        )
    return Run.open(arguments.recipe)


def _seconds(text: str) -> int:
    """The seconds of a time such as 90s, 5m or 1h30m."""
    parts = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,4})m)?(?:(\d{1,6})s)?", text)
    if not text or parts is None:
        raise RecipeError(f"--budget {text}: a time is hours, minutes and seconds, as in 90s, 5m or 1h30m")
    seconds = sum(int(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True))
    if seconds < _LEAST:
        raise RecipeError(f"--budget {text}: loading, checks and scores alone take longer; give it {_LEAST}s or more")
    return seconds


_LEAST = 10  # seconds


def _values(metrics: dict[str, dict[str, float]]) -> str:
    return "  ".join(
        f"{name} {one['value']:.4g}" + (f" [{one['low']:.4g}, {one['high']:.4g}]" if "low" in one else "")
        for name, one in metrics.items()
    )


def check(arguments: argparse.Namespace) -> None:
    # what training refuses is told here like all the rest
    recipe = load_recipe(arguments.recipe, *arguments.overrides, "data.overlap=keep", "data.max_rejects=0.99")

    from tl_nlp.checking import GLANCE, label_counts
    from tl_nlp.cleaning import write_cleaned
    from tl_nlp.preparation import checked, prepare

    prepared = prepare(recipe)
    findings, _ = checked(prepared, GLANCE)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        for split, rows in prepared.rows.items():
            labels = label_counts(rows, prepared.recipe.task)
            print(
                f"{split}  {len(rows)} rows  {'  '.join(f'{name} {count}' for name, count in labels.items())}".rstrip()
            )
        for finding in findings:
            print(finding)
    if arguments.fix is not None:
        stream = sys.stderr if arguments.json else sys.stdout
        sizes = write_cleaned(prepared.rows, prepared.recipe.task, arguments.fix)
        for split, n_rows in sizes.items():
            print(f"{arguments.fix / f'{split}.jsonl'}  {n_rows} rows", file=stream)
        print(f"train on them with: {' '.join(_overrides(arguments.fix, sizes, recipe))}", file=stream)


def _overrides(folder: Path, splits: Iterable[str], recipe: Recipe) -> list[str]:
    """What makes a recipe read the cleaned files in a folder."""
    named = [f"data.{split}={folder / f'{split}.jsonl'}" for split in splits if split in _SPLITS]
    if more := {split: str(folder / f"{split}.jsonl") for split in splits if split not in _SPLITS}:
        named.append(f"data.tests='{json.dumps(more)}'")
    kept = ["data.keep_together=keep_together"] if recipe.data.keep_together else []
    return ["data=files", *named, *kept]


_SPLITS = ("train", "validation", "test")


def compare(arguments: argparse.Namespace) -> None:
    if len(arguments.runs) < 2:
        raise RecipeError("compare takes two or more runs; the first is compared with each of the others")
    from tl_nlp.evaluation import compare

    found = compare(arguments.runs, arguments.split)
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    name = found["metric"]
    for one in found["runs"]:
        print(f"{one['run']}  {_values({name: one[name]})}")
    for one in found["differences"]:
        p = "" if one["p"] is None else f"  p {one['p']:.2g} ({one['test']})"
        print(
            f"{one['verdict']}: {arguments.runs[0]} against {one['against']}: {one['value']:+.3g} "
            f"[{one['low']:+.3g}, {one['high']:+.3g}] {name}{p}"
        )


def report(arguments: argparse.Namespace) -> None:
    run = Run.open(local(arguments.run))
    from tl_nlp.reporting import write_report

    print(write_report(run))


def find_lr(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(arguments.recipe, *arguments.overrides)
    path = arguments.output or Path(f"find-lr-{recipe.name}.png")
    if path.suffix != ".png" or not path.absolute().parent.is_dir():
        raise RecipeError(f"--output {path}: the drawing is a .png file in a folder that is there")
    from tl_nlp.charts import as_text, write_png
    from tl_nlp.lr_range import find_lr

    found = find_lr(recipe)
    write_png(path, found.curves, "learning rate", "loss, smoothed")
    for curve in found.curves:
        print(as_text(curve), end="\n\n")
    print(" ".join(found.overrides))
    print(path)


def learning_curve(arguments: argparse.Namespace) -> None:
    chosen = _recipe_or_run(arguments)
    from tl_nlp.studies import learning_curve

    run, growth = learning_curve(chosen)
    for point in growth.points:
        print(f"{point['rows']:.0f} rows  {_values({growth.metric: point})}")
    for point in growth.expected():
        print(f"{point['rows']:.0f} rows, expected  {_values({growth.metric: point})}")
    print(growth.answer())
    print(run.folder)


def evaluate(arguments: argparse.Namespace) -> None:
    folder = local(arguments.run)
    artifact_folder(folder)  # a wrong path is answered before torch is imported
    from tl_nlp.evaluation import evaluate

    found = evaluate(folder, arguments.split, arguments.file)
    print(json.dumps(found, indent=2))
    if "seen_in_training" in found:
        seen = found["seen_in_training"]
        print(
            f"warning: {seen['rows']} of {found['rows']} rows ({100 * seen['share']:.1f} %) were trained on, or chosen "
            "by: scores on them flatter",
            file=sys.stderr,
        )


def predict(arguments: argparse.Namespace) -> None:
    from tl_nlp.types import as_json
    from tl_nlp.writing import check_output, rows_file

    folder = local(arguments.run)
    artifact_folder(folder)  # a wrong path is answered before torch is imported
    if arguments.input is not None and (arguments.texts or arguments.pair or arguments.group):
        raise RecipeError("--input names a file of rows; texts, --pair and --group go without it")
    if arguments.output is not None:
        check_output(arguments.output)
    texts = arguments.texts or ([] if arguments.input or sys.stdin.isatty() else _lines_of_stdin())
    if not texts and arguments.input is None:
        raise RecipeError("no texts: give them as arguments, as lines of stdin, or as a file with --input")
    from tl_nlp.prediction import Predictor, rows_of
    from tl_nlp.tables import read_pieces

    answers: Iterable[list[dict[str, Any]]]
    if arguments.input is not None:
        # a fault in the last row is told before a model is loaded
        found = rows_of(read_pieces(arguments.input, _PIECE), read_recipe(artifact_folder(folder)))
        n_rows = sum(len(values["id"]) for values in found)
        predictor = Predictor.load(folder)
        answers = predictor.stream(read_pieces(arguments.input, _PIECE), n_rows)
    else:
        predictor = Predictor.load(folder)
        columns = {} if arguments.group is None else {"group": [arguments.group] * len(texts)}
        predictions = predictor(texts, None if arguments.pair is None else [arguments.pair] * len(texts), **columns)
        answers = [[as_json(prediction, str(number)) for number, prediction in enumerate(predictions)]]
    if arguments.output is None:
        for rows in answers:
            for row in rows:
                print(json.dumps(row, ensure_ascii=False))
        return
    with rows_file(arguments.output) as file:
        for rows in answers:
            file.write(rows)


_PIECE = 10_000  # rows of a file that are in memory at once


def _lines_of_stdin() -> list[str]:
    try:
        return sys.stdin.read().splitlines()
    except UnicodeDecodeError as error:
        raise RecipeError(f"stdin is not UTF-8 at byte {error.start}; iconv -f latin1 -t utf-8 converts it") from None


def explain(arguments: argparse.Namespace) -> None:
    folder = local(arguments.run)
    artifact_folder(folder)  # a wrong path is answered before torch is imported
    run = Run.open(folder) if arguments.nearest else None
    from tl_nlp import attribution, neighbours
    from tl_nlp.prediction import Predictor
    from tl_nlp.rows import resolved

    predictor = Predictor.load(folder)
    columns = {} if arguments.group is None else {"group": arguments.group}
    found = attribution.explain(
        predictor, arguments.text, arguments.pair, method=arguments.method, target=arguments.target, **columns
    ).as_json()
    if run is not None:
        rows = resolved(run.recipe())[1]["train"]
        alike = neighbours.nearest(predictor, arguments.text, arguments.pair, rows, arguments.nearest)
        found["nearest"] = [asdict(one) for one in alike]
    print(json.dumps(found, ensure_ascii=False))


def demo(arguments: argparse.Namespace) -> None:
    folders = [local(path) for path in arguments.runs] or [run.folder for run in newest_runs()]
    for folder in folders:
        artifact_folder(folder)
    from tl_nlp.demo.server import serve

    serve(folders)


def export(arguments: argparse.Namespace) -> None:
    folder = local(arguments.run)
    artifact_folder(folder)  # a wrong path is answered before torch is imported
    from tl_nlp.exporting import export, told

    found = export(
        folder,
        arguments.to,
        format=arguments.format,
        quantize=arguments.quantize,
        tolerance=arguments.tolerance,
        split=arguments.split,
    )
    for line in told(found):
        print(line)
    print(arguments.to)


def push(arguments: argparse.Namespace) -> None:
    from tl_nlp.publication import push

    for line in push(
        local(arguments.run),
        arguments.repo_id,
        private=arguments.private,
        merge=arguments.merge,
        revision=arguments.revision,
        space=arguments.space,
        dry_run=arguments.dry_run,
        licence=tuple(f"licence.{one}" for one in arguments.licence),
    ):
        print(line)


def pull(arguments: argparse.Namespace) -> None:
    print(hub.pull(arguments.repo_id, arguments.revision))


def push_data(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(arguments.recipe, *arguments.overrides)
    from tl_nlp.publication import push_data

    for line in push_data(recipe, arguments.repo_id, private=arguments.private, dry_run=arguments.dry_run):
        print(line)


def runs(arguments: argparse.Namespace) -> None:
    for run in all_runs():
        try:
            print(f"{run.folder}  {run.status}  {run.recipe().method.kind}{_main_scores(run)}")
        except TLError as error:
            print(f"{run.folder}  damaged  {error}")


def _main_scores(run: Run) -> str:
    if not run.is_finished:
        return ""
    results = run.results()
    name = results["main_metric"]
    return "".join(
        f"  {split} {name} {scores['metrics'][name]['value']:.4g}" for split, scores in results["splits"].items()
    )
