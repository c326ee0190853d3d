"""Exports: a trained model as a graph for ONNX Runtime, and a certificate that it answers as the model does."""

from __future__ import annotations

import io
import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from tl_nlp.artifact import load_whole
from tl_nlp.batches import Columns
from tl_nlp.disk import writing
from tl_nlp.document import document_of
from tl_nlp.environment import versions
from tl_nlp.errors import RecipeError, RunError
from tl_nlp.evaluation import compared, own_rows, references
from tl_nlp.families import without_peft
from tl_nlp.hardware import device_name
from tl_nlp.heads import head_of
from tl_nlp.hub import local
from tl_nlp.onnx import DOCUMENT, MODEL, SIDES, TOKENIZER, Exported, described
from tl_nlp.prediction import Predictor
from tl_nlp.recipe import Recipe
from tl_nlp.rows import columns_of
from tl_nlp.run import CERTIFICATE, RECIPE, Run, artifact_folder, is_export, read_recipe
from tl_nlp.tokenization import as_json
from tl_nlp.types import COLUMNS, Label, Labels, Prediction, Scores

if TYPE_CHECKING:
    from datasets import Dataset

TOLERANCE = 0.01
"""The loss of the main metric that an export may have, as a share of the metric's scale."""
_OTHERS = 2  # times as many answers may be others: most of those that change are near to a border, on either side
_EQUAL = 1e-3  # what sums in another order come to, of numbers about 1: beyond it the graph is not the model
_MOST_ROWS = 2000  # of the test split, that are answered twice
_MOST_REQUESTS = 50  # that are timed one by one


def export(
    run: str | Path | Run,
    to: str | Path,
    *,
    quantize: Literal["int8"] | None = None,
    tolerance: float = TOLERANCE,
    split: str = "test",
) -> dict[str, Any]:
    """Writes a run, or an artifact alone, as a folder that answers without torch; returns its certificate.

    Adapters are merged. With `quantize` the weights are int8 and activations are so as they come. Raises RunError where
    the folder is there already, for a model that has no such form, and, with figures, where the export loses more than
    the tolerance on the rows of the split: then nothing is written. Raises DataError where those rows cannot be had.
    """
    folder, to = run.folder if isinstance(run, Run) else local(run), Path(to)
    artifact = artifact_folder(folder)
    if is_export(artifact):
        raise RunError(f"{artifact} is an export already")
    recipe = read_recipe(artifact)
    if recipe.task.head == "generate":
        raise RunError(f"task {recipe.task.kind} writes, and only models that read can be exported so far")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunError(f"{to} is there already; an export is written into a folder of its own")
    if not 0 <= tolerance < 1:
        raise RecipeError(f"{tolerance} is no share of a metric's scale, which is from 0 to 1", "tolerance")
    rows = own_rows(folder, recipe, split)
    with writing(to) as made:
        model, tokenizer = load_whole(artifact)
        plain = without_peft(model)
        (made / TOKENIZER).write_text(as_json(tokenizer), "utf-8")
        (made / RECIPE).write_text(recipe.model_dump_json(indent=2) + "\n", "utf-8")
        has_document = head_of(recipe.task).is_own
        with _quietly():
            _write_model(plain, tokenizer, quantize, made / MODEL)
            if has_document:
                _write_document(document_of(plain), plain.config.hidden_size, made / DOCUMENT)
        exported = Exported.read(made, recipe.task, has_document)
        after = Predictor(exported, exported.tokenizer, recipe.task, recipe=recipe)
        before = Predictor.load(artifact)
        before.precision = "float32"
        files = {
            name: described(made / name) for name in (MODEL, DOCUMENT, TOKENIZER, RECIPE) if (made / name).exists()
        }
        found = {
            "format": 1,
            "export": "onnx",
            "quantized": quantize,
            "tolerance": tolerance,
            "split": split,
            **_compared(before, after, rows),
            "latency_ms": _latency(before, after, rows),
            "bytes": {
                "before": sum(weight.numel() * weight.element_size() for weight in plain.parameters()),
                "after": sum(files[name]["bytes"] for name in (MODEL, DOCUMENT) if name in files),
            },
            "device": device_name(torch.device("cpu")),
            "versions": {**versions(), **{name: version(name) for name in ("onnx", "onnxruntime", "tokenizers")}},
            "files": files,
        }
        _refuse_loss(found, recipe)
        (made / CERTIFICATE).write_text(json.dumps(found, indent=2) + "\n", "utf-8")
        (made / "README.md").write_text(_readme(recipe, found), "utf-8")
    return found


# ---- the graphs


@contextmanager
def _quietly() -> Iterator[None]:
    """What exporters tell of themselves is not ours to tell."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _write_model(model: Any, tokenizer: Any, quantize: str | None, path: Path) -> None:
    """The model as a graph from `input_ids`, `attention_mask` and where there are any `token_type_ids`, of shape
    (windows, tokens), to `logits`, which where a `Document` reads them are the states."""
    from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    # two of each, since torch.export takes a size of 1 for one that is always so, and one token that is not read
    names = [name for name in tokenizer(["a"]) if name in ("input_ids", "token_type_ids", "attention_mask")]
    inputs = {name: torch.ones((2, 8), dtype=torch.long) for name in {*names, "attention_mask"}}
    if "token_type_ids" in inputs:
        inputs["token_type_ids"][:, :4] = 0
    inputs["attention_mask"][1, 7] = 0
    anywhere = torch.export.Dim.DYNAMIC
    quantizer = None
    if quantize is not None:
        # seven bits of eight for weights: processors without VNNI add in 16 bits, where eight would overflow
        quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(per_channel=True, reduce_range=True))
    config = OnnxConfig(
        dynamic_shapes={name: {0: anywhere, 1: anywhere} for name in inputs}, ort_fusions=None, quantizer=quantizer
    )
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    _save(OnnxExporter().export(model, inputs, config).program, path)


def _write_document(document: Any, n_hidden: int, path: Path) -> None:
    """What a document makes of what is laid out by example, as a graph: see `onnx.Exported`."""

    class Reading(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.document = document

        def forward(self, laid: list[torch.Tensor], surface: Any, group: Any) -> torch.Tensor:
            return self.document.logits(laid, surface, group)

    anywhere = torch.export.Dim.DYNAMIC
    if document.comparison is None:
        laid = [torch.ones(2, 3, n_hidden), torch.ones(2, 3)]
        names = ["windows", "lengths"]
    else:
        shapes_of = [(2, 3 + place) for place, _ in enumerate(SIDES)]  # equal sizes would be taken for always so
        laid = [part for s in shapes_of for part in (torch.ones(*s, n_hidden), torch.ones(s, dtype=torch.bool))]
        names = [part for name in SIDES for part in (name, f"{name}_there")]
    surface = torch.ones(2, document.n_surface) if document.n_surface else None
    group = torch.zeros(2, dtype=torch.long) if document.own is not None else None
    shapes = [{0: anywhere, 1: anywhere} for _ in laid]
    names += ["surface"] * (surface is not None) + ["group"] * (group is not None)
    program = torch.onnx.export(
        Reading().eval(),
        (laid, surface, group),
        dynamic_shapes=(shapes, None if surface is None else {0: anywhere}, None if group is None else {0: anywhere}),
        input_names=names,
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None, "it is so where a path is given"
    _save(program.model, path)


def _save(graph: Any, path: Path) -> None:
    """One file, in which is nothing of this machine. Raises RunError for one of 2 GB and more, which cannot be."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(graph)
    try:
        onnx_ir.save(graph, path)
    except ValueError as error:
        raise RunError(f"the model does not fit into one file of ONNX: {error}") from None


# ---- the certificate


def _compared(before: Predictor, after: Predictor, rows: Dataset) -> dict[str, Any]:
    """How the answers to rows differ, and what that does to the main metric."""
    task = before.task
    if len(rows) > _MOST_ROWS:
        rows = rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:_MOST_ROWS]))
    values = references(task, rows)
    outputs = [_inferred(each, values) for each in (before, after)]
    answers = [each.task.decode(theirs, values, None) for each, theirs in zip((before, after), outputs, strict=True)]
    numbers = [
        [_numbers(answer, output) for answer, output in zip(one, theirs, strict=True)]
        for one, theirs in zip(answers, outputs, strict=True)
    ]
    gaps = [np.abs(ours - theirs).max(initial=0.0) for ours, theirs in zip(*numbers, strict=True)]
    size = max(1.0, *(float(np.abs(one).max(initial=0.0)) for one in numbers[0]))
    same = [_answer(one) == _answer(other) for one, other in zip(*answers, strict=True)]
    scores = [task.score(one, values)[task.main_metric] for one in answers]
    return {
        "rows": len(rows),
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
    read = {name: theirs for name, theirs in values.items() if name != "target"}
    return predictor.infer(Columns(predictor.task.encode(read, predictor.tokenizer)))


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
    return "points" if isinstance(answer, Scores) else "logit"


def _answer(answer: Prediction) -> Any:
    """What a person is told."""
    if isinstance(answer, Label):
        return answer.label
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
