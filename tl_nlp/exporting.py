"""Exports: a trained model as a graph for ONNX Runtime, and a certificate that it answers as the model does."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from tl_nlp.artifact import load_whole
from tl_nlp.batches import Columns, collate
from tl_nlp.checking import sampled
from tl_nlp.decoding import asked_beyond, settings_of
from tl_nlp.disk import writing
from tl_nlp.document import document_of
from tl_nlp.environment import versions
from tl_nlp.errors import RecipeError, RunError
from tl_nlp.evaluation import compared, own_rows, references
from tl_nlp.families import without_peft
from tl_nlp.generation import log_softmax
from tl_nlp.graphs import quietly, write_document, write_model, write_writer
from tl_nlp.hardware import device_name, inferring
from tl_nlp.heads import head_of
from tl_nlp.hub import local
from tl_nlp.onnx import (
    DECODER,
    DOCUMENT,
    ENCODER,
    GENERATION,
    MODEL,
    TOKENIZER,
    Exported,
    ExportedWriter,
    described,
)
from tl_nlp.prediction import Predictor
from tl_nlp.recipe import Recipe
from tl_nlp.rows import columns_of
from tl_nlp.run import CERTIFICATE, RECIPE, Run, artifact_folder, is_export, read_recipe
from tl_nlp.smoothing import smooth
from tl_nlp.tokenization import as_json
from tl_nlp.types import COLUMNS, IGNORED, Label, Labels, Prediction, Scores, Text

if TYPE_CHECKING:
    from datasets import Dataset

TOLERANCE = 0.01
"""The loss of the main metric that an export may have, as a share of the metric's scale."""
_OTHERS = 2  # times as many answers may be others: most of those that change are near to a border, on either side
_EQUAL = 1e-3  # what sums in another order come to, of numbers about 1: beyond it the graph is not the model
_MOST_ROWS = 2000  # of the test split, that are answered twice
GRAPHS = (MODEL, DOCUMENT, ENCODER, DECODER)
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The package that reads each format."""
_SMOOTHED_BY = 64  # of the training rows, whose answers show which activations are outliers
_MOST_REQUESTS = 50  # that are timed one by one


def export(
    run: str | Path | Run,
    to: str | Path,
    *,
    format: Literal["onnx", "openvino"] = "onnx",
    quantize: Literal["int8"] | None = None,
    tolerance: float = TOLERANCE,
    split: str = "test",
) -> dict[str, Any]:
    """Writes a run, or an artifact alone, as a folder that answers without torch; returns its certificate.

    Adapters are merged. `format` is what reads it, ONNX Runtime or OpenVINO, and what it is tried with. With `quantize`
    the weights are int8 and activations are so as they come, after outliers that training rows show are smoothed
    (`smoothing`). Raises RunError where the folder is there already, for a model that has no such form, and, with
    figures, where the export loses more than the tolerance on the rows of the split: then nothing is written. Raises
    DataError where those rows cannot be had.
    """
    folder, to = run.folder if isinstance(run, Run) else local(run), Path(to)
    artifact = artifact_folder(folder)
    if is_export(artifact):
        raise RunError(f"{artifact} is an export already")
    recipe = read_recipe(artifact)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunError(f"{to} is there already; an export is written into a folder of its own")
    if not 0 <= tolerance < 1:
        raise RecipeError(f"{tolerance} is no share of a metric's scale, which is from 0 to 1", "tolerance")
    rows, learned = own_rows(folder, recipe, split, "train" if quantize else split)
    with writing(to) as made:
        model, tokenizer = load_whole(artifact)
        plain = without_peft(model)
        (made / TOKENIZER).write_text(as_json(tokenizer), "utf-8")
        (made / RECIPE).write_text(recipe.model_dump_json(indent=2) + "\n", "utf-8")
        has_document = head_of(recipe.task).is_own
        if recipe.task.head == "generate":
            if beyond := asked_beyond(plain):
                raise RunError(f"the model's generation_config has {beyond}, which an export cannot do")
            told_settings = json.dumps(asdict(settings_of(plain, recipe.task.head_settings())), indent=2)
            (made / GENERATION).write_text(told_settings + "\n", "utf-8")
        if quantize is not None:
            some = learned.select(sampled(len(learned), _SMOOTHED_BY))
            smooth(plain, partial(Predictor(model, tokenizer, recipe.task, "float32").predict, some))
        with quietly():
            if recipe.task.head == "generate":
                write_writer(plain, quantize, made)
            else:
                write_model(plain, tokenizer, quantize, made / MODEL)
            if has_document:
                write_document(document_of(plain), plain.config.hidden_size, made / DOCUMENT)
        exported = Exported.read(made, recipe.task, has_document, format)
        after = Predictor(exported, exported.tokenizer, recipe.task, recipe=recipe)
        before = Predictor.load(artifact, "float32")
        files = {
            name: described(made / name) for name in (*GRAPHS, GENERATION, TOKENIZER, RECIPE) if (made / name).exists()
        }
        found = {
            "format": 1,
            "export": format,
            "quantized": quantize,
            "tolerance": tolerance,
            "split": split,
            **_compared(before, after, rows),
            "latency_ms": _latency(before, after, rows),
            "bytes": {
                "before": sum(weight.numel() * weight.element_size() for weight in plain.parameters()),
                "after": sum(files[name]["bytes"] for name in GRAPHS if name in files),
            },
            "device": device_name(torch.device("cpu")),
            "versions": {**versions(), **{name: version(name) for name in ("onnx", RUNTIMES[format], "tokenizers")}},
            "files": files,
        }
        _refuse_loss(found, recipe)
        (made / CERTIFICATE).write_text(json.dumps(found, indent=2) + "\n", "utf-8")
        (made / "README.md").write_text(_readme(recipe, found), "utf-8")
    return found


# ---- the certificate


def _compared(before: Predictor, after: Predictor, rows: Dataset) -> dict[str, Any]:
    """How the answers to rows differ, and what that does to the main metric."""
    task = before.task
    values = references(task, rows.select(sampled(len(rows), _MOST_ROWS)))
    outputs = [_inferred(each, values) for each in (before, after)]
    answers = [
        each.task.decode(theirs, values, each.tokenizer) for each, theirs in zip((before, after), outputs, strict=True)
    ]
    if task.head == "generate":
        numbers = [_likely(each, values, outputs[0]) for each in (before, after)]
    else:
        numbers = [
            [_numbers(answer, output) for answer, output in zip(one, theirs, strict=True)]
            for one, theirs in zip(answers, outputs, strict=True)
        ]
    gaps = [np.abs(ours - theirs).max(initial=0.0) for ours, theirs in zip(*numbers, strict=True)]
    size = max(1.0, *(float(np.abs(one).max(initial=0.0)) for one in numbers[0]))
    same = [_answer(one) == _answer(other) for one, other in zip(*answers, strict=True)]
    scores = [task.score(one, values)[task.main_metric] for one in answers]
    return {
        "rows": len(same),
        "agreement": float(np.mean(same)),
        "max_difference": {"value": float(max(gaps)), "relative": float(max(gaps)) / size, "of": _of(answers[0][0])},
        "metric": {
            "name": task.main_metric,
            "before": float(scores[0]),
            "after": float(scores[1]),
            "difference": asdict(compared(task, answers[1], answers[0], values)),
        },
    }


def _inferred(predictor: Predictor, values: dict[str, list[Any]]) -> list[np.ndarray]:
    return predictor.infer(_encoded(predictor, values))


def _encoded(predictor: Predictor, values: dict[str, list[Any]]) -> Columns:
    read = {name: theirs for name, theirs in values.items() if name != "target"}
    return Columns(predictor.task.encode(read, predictor.tokenizer))


def _likely(predictor: Predictor, values: dict[str, list[Any]], texts: list[np.ndarray]) -> list[np.ndarray]:
    """The log-probability of each token of texts that were written, of each row as one array."""
    encoded = _encoded(predictor, values)
    exported = isinstance(predictor.model, ExportedWriter)
    settings = predictor.model.settings if exported else settings_of(predictor.model, predictor.task.head_settings())
    found = []
    for row, ids in enumerate(texts):
        is_end = np.isin(ids[:, 1:], [*settings.ends, settings.pad])
        is_told = is_end.cumsum(1) - is_end == 0  # up to the end mark
        if exported:
            decoder = predictor.model.reading(encoded[[row]])
            logits = np.stack([decoder(tokens, None) for tokens in ids[:, :-1].T], 1)[is_told]
        else:
            labels = [np.where(is_told, ids[:, 1:], IGNORED).tolist()]
            batch = collate({"input_ids": encoded[[row]]["input_ids"], "labels": labels}, predictor.pad_id)
            with inferring(predictor.model, "float32"):
                logits = predictor.head.logits(predictor.model, batch).numpy()
        found.append(np.take_along_axis(log_softmax(logits), ids[:, 1:][is_told][:, None], 1))
    return found


def _numbers(answer: Prediction, output: np.ndarray) -> np.ndarray:
    """Those that an answer has, or it was made from."""
    if isinstance(answer, Label | Labels):
        return np.asarray(list(answer.probabilities.values()))
    if isinstance(answer, Scores):
        return np.asarray(list(answer.scores.values()))
    return output[np.isfinite(output)]


def _of(answer: Prediction) -> str:
    if isinstance(answer, Label | Labels):
        return "probability"
    if isinstance(answer, Text):
        return "log-probability of a token"
    return "points" if isinstance(answer, Scores) else "logit"


def _answer(answer: Prediction) -> Any:
    """What a person is told."""
    if isinstance(answer, Label | Text):
        return answer.label if isinstance(answer, Label) else answer.text
    if isinstance(answer, Labels):
        return answer.labels
    return answer.grades or answer.scores if isinstance(answer, Scores) else answer.sentences


def _latency(before: Predictor, after: Predictor, rows: Dataset) -> dict[str, float]:
    """The median time of one request, in ms; both answer each in turn."""
    names = tuple(name for name in (*COLUMNS, *before.task.columns) if name not in ("id", "target"))
    spent: tuple[list[float], list[float]] = [], []
    for place in range(min(len(rows), _MOST_REQUESTS)):
        columns = columns_of(rows.select([place]), names)
        texts, pairs = columns.pop("text"), columns.pop("pair", None)
        for predictor, times in zip((before, after), spent, strict=True):
            predictor(texts, pairs, **columns)  # the first of a shape takes longer
            start = time.perf_counter()
            predictor(texts, pairs, **columns)
            times.append(1000 * (time.perf_counter() - start))
    return {"before": float(np.median(spent[0])), "after": float(np.median(spent[1]))}


def _refuse_loss(found: dict[str, Any], recipe: Recipe) -> None:
    metric, gap, tolerance = found["metric"], found["max_difference"], found["tolerance"]
    scale = 100 if metric["name"].startswith("rouge") else 1
    loss = (metric["before"] - metric["after"]) / scale
    told = (
        f"on {found['rows']} rows of {found['split']} {metric['name']} is {metric['before']:.4g} before and "
        f"{metric['after']:.4g} after, {found['agreement']:.1%} of the answers are the same, and the greatest "
        f"difference is {gap['value']:.3g} ({gap['of']})"
    )
    is_equal = found["quantized"] is None and recipe.checkpoint.load_in == "float32"
    if is_equal and gap["relative"] > _EQUAL:
        raise RunError(f"the graph does not compute what the model does, so it is not written: {told}")
    if loss > tolerance or found["agreement"] < 1 - _OTHERS * tolerance:
        raise RunError(
            f"the export loses more than the tolerance of {tolerance:g}, so it is not written: {told}; --tolerance "
            "allows more, and without --quantize nothing is lost"
        )


def told(found: dict[str, Any]) -> list[str]:
    """A certificate in lines for people."""
    metric, gap, difference = found["metric"], found["max_difference"], found["metric"]["difference"]
    latency, size = found["latency_ms"], found["bytes"]
    return [
        f"{metric['name']} {metric['before']:.4g} before, {metric['after']:.4g} after "
        f"({difference['value']:+.3g} [{difference['low']:+.3g}, {difference['high']:+.3g}]) "
        f"on {found['rows']} rows of {found['split']}",
        f"{found['agreement']:.2%} of the answers are the same; greatest difference {gap['value']:.3g} ({gap['of']})",
        f"one request: {latency['before']:.2f} ms before (PyTorch, float32), {latency['after']:.2f} ms after "
        f"(median; {found['device']})",
        f"size: {size['before'] / 1e6:.1f} MB before, {size['after'] / 1e6:.1f} MB after",
    ]


def _readme(recipe: Recipe, found: dict[str, Any]) -> str:
    kind = "weights in int8" if found["quantized"] else "float32"
    lines = "\n".join(f"* {line}" for line in told(found))
    return (
        f"# {recipe.name}\n\n{recipe.task.kind}, exported to ONNX ({kind}) with tl_nlp. It answers without PyTorch and "
        f'transformers:\n\n```python\nfrom tl_nlp import Predictor\n\npredictor = Predictor.load(".")\n```\n\n'
        f"What certificate.json says:\n\n{lines}\n"
    )
