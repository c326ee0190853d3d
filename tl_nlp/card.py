"""The model card: what a model is good for, how that is known, what it was made from and what it may be used for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import date
from importlib import resources
from typing import Any

from tl_nlp.grades import MOST_UNEVEN
from tl_nlp.licences import DUTIES, LICENCES, Ruling, Stated
from tl_nlp.recipe import Recipe

BEGIN, END = "<!-- notes: what stands between these marks is kept -->", "<!-- end of notes -->"
_NOTES = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)

_GRAMS_PER_KWH = 436
"""CO2 of a kWh, the world's mean of 2022 (Ember, Global Electricity Review 2023)."""
_WATTS_PER_THREAD, _WATTS_PER_GPU = 10, 400
"""What is assumed of the hardware: servers draw about so much for a busy thread, and large GPUs up to their limit."""

_N_METRICS = 6  # columns of the table of scores
_N_SLICES = 3  # that are told, the worst first
_METRICS = {  # of the Hub, by ours
    "macro_f1": "f1", "micro_f1": "f1", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge", "rougeLsum": "rouge",
    "bleu": "bleu", "chrf": "chrf", "pearson": "pearsonr", "spearman": "spearmanr", "qwk": "cohen_kappa",
    "exact_match": "exact_match",
}  # fmt: skip
_WHAT = {
    "classify": "text classifier",
    "multilabel": "text classifier of several labels",
    "regress": "grader of texts",
    "select": "picker of sentences",
    "generate": "writer of short texts from longer ones",
}
_INTENDED = {
    "classify": "To label texts like those it learned from ({labels}).",
    "multilabel": "To give texts like those it learned from any of the labels {labels}.",
    "regress": "To propose grades for texts like those it learned from, to a person who gives them.",
    "select": "To pick the sentences of a text that say most, for texts like those it learned from.",
    "generate": "To draft a short text for a longer one like those it learned from. It can invent; check what it says.",
}
_EXAMPLES = {
    "generate": "The museum opens at ten and closes at six. On Mondays it is closed. Children enter for free.",
    "select": "The museum opens at ten and closes at six. On Mondays it is closed. Children enter for free.",
    "regress": "Plants need light because they make their food with it.",
}


@dataclass(frozen=True)
class Made:
    """What a card is written from. `results` are those that are published, {} where nothing was measured."""

    recipe: Recipe
    repo_id: str
    base: str | None  # on the Hub
    results: dict[str, Any]
    environment: dict[str, Any]
    parts: list[Stated]
    ruling: Ruling


def card(made: Made, code: str, earlier: str | None = None) -> str:
    """The card of a model that `code` loads, with its metadata; notes of people in an `earlier` one are kept."""
    from jinja2 import Environment, StrictUndefined

    recipe, results, environment = made.recipe, made.results, made.environment
    template = resources.files("tl_nlp").joinpath("card.md").read_text("utf-8")
    jinja = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    jinja.filters["interval"], jinja.filters["number"] = _interval, lambda value: f"{value:.3g}"
    jinja.policies["json.dumps_kwargs"] = {"sort_keys": False}
    first = _first(results)
    findings = [one for one in results.get("data", {}).get("findings", []) if one["severity"] != "note"]
    training = recipe.training.model_dump(mode="json", exclude_defaults=True)
    choices = {"method": recipe.method.model_dump(mode="json"), "training": training}
    text = jinja.from_string(template).render(
        metadata=f"---\n{_metadata(made, code)}\n---",
        recipe=recipe,
        base=f"[{made.base}](https://huggingface.co/{made.base})" if made.base else None,
        base_name=made.base,
        what=_WHAT[recipe.task.head],
        verdict=results.get("verdict") or "not compared with baselines",
        code=code,
        usage=_usage(made, code),
        results={"negative_transfer": None, "baselines": {}, **results} if results else {},
        shown=_shown(results),
        parts=[str(part) for part in made.parts],
        findings=findings,
        intended=_INTENDED[recipe.task.head].format(labels=", ".join(recipe.task.outputs()[:20])),
        slices=first.get("slices", [])[:_N_SLICES],
        uneven=[one for one in first.get("groups", []) if abs(one["value"]) > MOST_UNEVEN],
        trained=_trained(made),
        choices=json.dumps(choices, indent=2, ensure_ascii=False),
        cost=_cost(results, environment),
        licence=_duties(made.parts, made.ruling),
        notes=_notes(earlier),
        owner=made.repo_id.partition("/")[0],
        year=date.today().year,
        url=f"https://huggingface.co/{made.repo_id}",
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _metadata(made: Made, code: str) -> str:
    from huggingface_hub import ModelCardData

    recipe = made.recipe
    where, data = recipe.data.origin
    library = next((name for name in ("tl_nlp", "peft") if f"from {name}" in code), "transformers")
    values: dict[str, Any] = {
        **_licensed(made.ruling),
        "library_name": library,
        "pipeline_tag": _pipeline(recipe),
        "tags": ["tl_nlp", recipe.task.kind, recipe.method.kind],
        "model_name": recipe.name,
        "widget": [{"text": _EXAMPLES.get(recipe.task.head, "It came in time, and I would buy it again.")}],
        "eval_results": _measured(made) or None,
    }
    if made.base:
        values |= {
            "base_model": made.base,
            "base_model_relation": "adapter" if recipe.method.is_adapter else "finetune",
        }
    if where == "hub" and data.count("/") == 1:
        values["datasets"] = [data]
    kwh = _kwh(made.results, made.environment)
    if kwh is not None:
        values["co2_eq_emissions"] = {
            "emissions": round(kwh * _GRAMS_PER_KWH, 3),
            "source": "estimated from the time, with assumed watts and the world's mean grid",
            "training_type": "fine-tuning",
            "hardware_used": made.environment["device_name"],
        }
    if made.results:
        values["metrics"] = sorted({_METRICS.get(name, name) for name in _shown(made.results)})
    return str(ModelCardData(**values).to_yaml(line_break="\n")).strip()


def _licensed(ruling: Ruling) -> dict[str, str]:
    if ruling.licence != "other":
        return {"license": ruling.licence}
    name = re.sub(r"[^a-z0-9.]+", "-", ruling.name.lower())
    return {"license": "other", "license_name": name, "license_link": "README.md"}


def _notes(earlier: str | None) -> str:
    """What people wrote between the marks of an earlier card, with the marks."""
    found = _NOTES.search(earlier or "")
    return found[0] if found else f"{BEGIN}\nNone yet.\n{END}"


def _pipeline(recipe: Recipe) -> str:
    return "summarization" if recipe.task.head in ("generate", "select") else "text-classification"


def _first(results: dict[str, Any]) -> dict[str, Any]:
    return next(iter(results.get("splits", {}).values()), {})


def _shown(results: dict[str, Any]) -> list[str]:
    """The metrics that the card has: the main one, and the first of the others."""
    names = list(_first(results).get("metrics", {}))
    return sorted(names, key=lambda name: name != results["main_metric"])[:_N_METRICS]


def _measured(made: Made) -> list[Any]:
    """Scores of the model and its baselines, with intervals, as the Hub shows them."""
    from huggingface_hub import EvalResult

    results, recipe = made.results, made.recipe
    where, data = recipe.data.origin
    found = []
    for split, scores in results.get("splits", {}).items():
        compared = scores.get("baselines") or results.get("baselines", {})
        for model, metrics in {"": scores["metrics"], **compared}.items():
            for name in _shown(results):
                if name not in metrics:
                    continue
                value = metrics[name]
                told = f"{name} of the baseline {model}" if model else name
                if "low" in value:
                    told += f" (95 % {value['low']:.4g} to {value['high']:.4g})"
                found.append(
                    EvalResult(
                        task_type=_pipeline(recipe),
                        dataset_type=data if where == "hub" else re.sub(r"[^\w.-]+", "-", data) or recipe.data.kind,
                        dataset_name=data,
                        dataset_split=split,
                        metric_type=_METRICS.get(name, name),
                        metric_name=told,
                        metric_value=round(value["value"], 6),
                    )
                )
    return found


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.4g}" + (f" [{value['low']:.4g}, {value['high']:.4g}]" if "low" in value else "")


def _usage(made: Made, code: str) -> str:
    name = made.repo_id
    kept = f'`tl-nlp predict {name} "a text"` answers too, and `tl-nlp demo {name}` opens a page.'
    notes = []
    if "CHECKPOINT" in code:
        base = made.recipe.checkpoint.name.removeprefix("package:")
        notes.append(f"CHECKPOINT is the folder of the checkpoint {base}.")
    if "ForTokenClassification" in code:
        notes.append("An answer is the mean of the logits of its tokens.")
    if temperature := getattr(made.recipe.task, "temperature", None) if made.recipe.task.head == "classify" else None:
        notes.append(f"Probabilities are the softmax of the logits divided by {temperature}.")
    if made.recipe.task.head == "multilabel":
        notes.append("A label is given from its threshold on, which recipe.json has.")
    return " ".join([*notes, kept])


def _trained(made: Made) -> str:
    recipe, environment = made.recipe, made.environment
    versions = environment.get("versions", {})
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    checkpoint = recipe.checkpoint
    pinned = f" at revision `{checkpoint.revision}`" if checkpoint.revision else ""
    loaded = f", loaded in {checkpoint.load_in}" if checkpoint.load_in != "float32" else ""
    told = f"From `{checkpoint.name}`{pinned}{loaded}; seed {recipe.training.seed}. What is not named has its default."
    return f"{told} {named}." if named else told


def _seconds(results: dict[str, Any]) -> float:
    return float(results["train"]["seconds"])


def _kwh(results: dict[str, Any], environment: dict[str, Any]) -> float | None:
    """What the training is estimated to have used; None where its time or its hardware is not known."""
    device = environment.get("device_name")
    if not device or "train" not in results:
        return None
    threads = re.fullmatch(r"CPU, threads: (\d+)", device)
    watts = int(threads[1]) * _WATTS_PER_THREAD if threads else _WATTS_PER_GPU * environment.get("n_processes", 1)
    return _seconds(results) / 3600 * watts / 1000


def _cost(results: dict[str, Any], environment: dict[str, Any]) -> str:
    kwh = _kwh(results, environment)
    if kwh is None:
        return "What the training cost is not known."
    minutes = _seconds(results) / 60
    return (
        f"The training took {minutes:.1f} minutes ({environment['device_name']}): about {kwh:.2g} kWh at "
        f"{_WATTS_PER_THREAD} W a thread or {_WATTS_PER_GPU} W a GPU, which is assumed, and "
        f"{kwh * _GRAMS_PER_KWH:.2g} g of CO2 at {_GRAMS_PER_KWH} g a kWh, the world's mean of 2022 (Ember, Global "
        "Electricity Review 2023)."
    )


def _duties(parts: list[Stated], ruling: Ruling) -> str:
    lines = [f"{ruling.name}, as the strictest of what it was made from asks:" if ruling.duties else f"{ruling.name}."]
    lines += [f"* {duty}: {DUTIES[duty]};" for duty in ruling.duties]
    sources = sorted({f"{part.licence}: {LICENCES[part.licence].source}" for part in parts})
    lines += ["", f"Texts: {'; '.join(sources)}."] if sources else []
    if ruling.obstacles:
        lines += ["", f"It is for private use only: {'; '.join(ruling.obstacles)}."]
    return "\n".join(lines)


def data_card(
    recipe: Recipe,
    repo_id: str,
    sizes: dict[str, int],
    given: dict[str, tuple[int, str]],
    parts: list[Stated],
    ruling: Ruling,
    earlier: str | None = None,
) -> str:
    """The card of a cleaned data set: rows of each split now, and rows and fingerprint of what it was made from. Notes
    of people in an `earlier` one are kept."""
    from huggingface_hub import DatasetCardData

    files = [{"split": split, "path": f"data/{split}.jsonl"} for split in sizes]
    values: dict[str, Any] = {**_licensed(ruling), "pretty_name": recipe.name, "tags": ["tl_nlp"]}
    about = DatasetCardData(**values, configs=[{"config_name": "default", "data_files": files}])
    lines = [
        f"| {split} | {sizes[split]:,} | {n_rows:,} | `{fingerprint}` |"
        for split, (n_rows, fingerprint) in given.items()
    ]
    rows = "\n".join(["| split | rows | rows before | fingerprint before |", "|---|---|---|---|", *lines])
    stated = "\n".join(f"* {one}." for one in map(str, parts))
    return (
        f"---\n{about.to_yaml()}\n---\n\n# {recipe.name}\n\nRows for {recipe.task.kind}, cleaned with tl_nlp: without "
        "rows that could not be read, without duplicates and rows that a later split has too, labels spelt one way, "
        f"personal data masked as far as it was found.\n\n{rows}\n\n```python\nfrom datasets import load_dataset\n\n"
        f'rows = load_dataset("{repo_id}")\n```\n\n## Licence\n\n{stated}\n\n{_duties(parts, ruling)}\n\n'
        f"## Notes\n\n{_notes(earlier)}\n"
    )
