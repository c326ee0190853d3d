"""report.html: the one page a person reads. It holds everything it shows and asks nothing of the network."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_nlp import charts
from tl_nlp.evaluation import read_predictions
from tl_nlp.grades import MOST_UNEVEN
from tl_nlp.run import Run

if TYPE_CHECKING:
    from jinja2 import Template

_N_CHARACTERS = 300  # of a text that was mistaken
_MOST_LABELS = 40  # that a confusion matrix is drawn for
_N_CONFUSED = 15  # pairs of labels that are told where they are more


def write_report(run: Run) -> Path:
    """Writes the report of a finished run into it, and returns its path. Raises RunError."""
    run.report_file.write_text(_template().render(**_content(run)), "utf-8")
    return run.report_file


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    return environment.from_string(resources.files("tl_nlp").joinpath("report.html").read_text("utf-8"))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _content(run: Run) -> dict[str, Any]:
    results, data, recipe, environment = run.results(), run.data(), run.recipe(), run.environment()
    name, test = results["main_metric"], results["splits"]["test"]
    verdict = results.get("verdict", "not compared with baselines")
    baselines = results.get("baselines", {})
    ranked = sorted(baselines.items(), key=lambda one: -one[1][name]["value"])
    shown = [(recipe.name, test["metrics"][name]), *((other, scores[name]) for other, scores in ranked)]
    history = run.history()
    drawings = {
        "baselines": charts.whiskers([one for one, _ in shown], [value for _, value in shown], name, marked=0),
        "slices": _slices(test["slices"], name),
        "loss": _history(history, "train", "loss"),
        "validation": _history(history, "validation", name),
    }
    if "confusion" in test and len(test["classes"]) <= _MOST_LABELS:
        drawings["confusion"] = charts.heatmap(list(test["classes"]), test["confusion"])
    if "calibration" in test:
        curve = test["calibration"]["risk_coverage"]
        drawings["reliability"] = charts.reliability_curve(test["calibration"]["reliability"])
        points = [one["answered"] for one in curve], [one["accuracy"] for one in curve]
        drawings["risk_coverage"] = charts.lines({"accuracy": points}, "share answered, surest first", "share right")
    groups = test.get("groups", [])
    if groups:
        names = [f"{one['name']} ({one['rows']})" for one in groups]
        drawings["groups"] = charts.whiskers(names, groups, "standardised mean difference", zero=True)
    if "work" in test:
        points = [one["share"] for one in test["work"]["curve"]], [one["value"] for one in test["work"]["curve"]]
        drawings["work"] = charts.lines({"qwk": points}, "share graded without a teacher", "QWK with the teacher")
    return {
        "name": recipe.name,
        "recipe": recipe,
        "recipe_json": json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False),
        "main_metric": name,
        "headline": {"better": "Better", "worse": "Worse"}.get(verdict.split()[0], "Undecided"),
        "verdict": verdict,
        "negative_transfer": results.get("negative_transfer"),
        "splits": results["splits"],
        "studies": {kind: results[kind] for kind in ("seeds", "folds") if kind in results},
        "test": test,
        "baselines": ranked,
        "train": results["train"],
        "data": data,
        "environment": environment,
        "fewer": {
            one: n_rows for one, n_rows in results["baseline_rows"].items() if n_rows < data["splits"]["train"]["rows"]
        },
        "confused": _confused(test),
        "uneven": [one["name"] for one in groups if abs(one["value"]) > MOST_UNEVEN],
        "drawings": {key: drawing for key, drawing in drawings.items() if drawing},
        "mistakes": _mistakes(run, test["mistakes"]),
        "temperature": getattr(run.trained_recipe().task, "temperature", None) if "calibration" in test else None,
    }


def _confused(test: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs of labels that are confused most often, where they are too many to be drawn."""
    names = list(test.get("classes", {}))
    if "confusion" not in test or len(names) <= _MOST_LABELS:
        return []
    pairs = [
        {"reference": names[row], "prediction": names[column], "rows": count}
        for row, line in enumerate(test["confusion"])
        for column, count in enumerate(line)
        if count and row != column
    ]
    return sorted(pairs, key=lambda one: -one["rows"])[:_N_CONFUSED]


def _slices(slices: list[dict[str, Any]], name: str) -> str:
    names = [f"{one['name']} ({one['rows']})" for one in slices]
    return charts.whiskers(names, slices, f"{name}, worst first") if slices else ""


def _history(history: list[dict[str, Any]], split: str, name: str) -> str:
    rows = [line for line in history if line["split"] == split and name in line["values"]]
    points = [line["epoch"] for line in rows], [line["values"][name] for line in rows]
    return charts.lines({split: points}, "epoch", f"{split}: {name}") if rows else ""


def _mistakes(run: Run, mistakes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not mistakes:
        return []
    _, rows = read_predictions(run.predictions_file("test"), run.recipe().task)
    text_of = dict(zip(rows["id"], rows["text"], strict=True))
    return [
        {
            **one,
            "text": text_of.get(one["id"], "")[:_N_CHARACTERS],
            "reference": _in_words(one["reference"]),
            "prediction": _in_words(one["prediction"]),
        }
        for one in mistakes
    ]


def _in_words(value: Any) -> str:
    """A target or a prediction: grades of traits as "style 3, content 4.5"."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{trait} {grade:g}" for trait, grade in value.items() if grade is not None)
