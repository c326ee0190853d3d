"""Exports read by ONNX Runtime or OpenVINO: what heads infer from a model of torch, without torch and transformers.

Of each head there is a twin in numpy, of its inference alone; what a `Document` does is in a graph of its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl_nlp.environment import n_cores
from tl_nlp.errors import RunError
from tl_nlp.generation import Decoder, Settings, highest, in_parts, written
from tl_nlp.recipe import Task
from tl_nlp.run import RECIPE, read_certificate
from tl_nlp.tokenization import FastTokenizer
from tl_nlp.types import PassBudget
from tl_nlp.windows import ASKED, STATED, TEXT

MODEL, DOCUMENT, TOKENIZER = "model.onnx", "document.onnx", "tokenizer.json"
ENCODER, DECODER, GENERATION = "encoder.onnx", "decoder.onnx", "generation.json"
"""Of a model that writes, in the place of `MODEL`; the last has the fields of `generation.Settings`."""
SIDES = {"text": TEXT, "stated": STATED, "asked": ASKED}
"""What a document that compares reads: of each side `NAME`, its tokens by example, and `NAME_there`, which of them
are."""
_ELSEWHERE = b"location"  # the key under which a tensor of ONNX names the file that it is in


class Exported:
    """A model that ONNX Runtime or OpenVINO computes: `infer` answers as a head does with a model of torch.

    A pass takes all cores; of `many` or more, each takes one and they go beside one another, and no core waits for
    another. Those have sessions of their own, begun when first there are so many. Raises RunError.
    """

    pass_budget = PassBudget(512)  # more take longer by the token, less no shorter (docs/lab.md)
    many: float = 16  # passes that take about as long as a session takes to begin

    def __init__(self, folder: Path, task: Task, runtime: str, graphs: Sequence[str]):
        self.folder, self.task, self.runtime, self.graphs = folder, task, runtime, graphs
        self._written = self._when_written()
        self.n_bytes = sum((folder / name).stat().st_size for name in graphs)
        self._model, self._above = self._sessions()
        self._inputs = {one.name for one in self._model.get_inputs()}
        self.tokenizer = FastTokenizer.load(folder / TOKENIZER, has_types="token_type_ids" in self._inputs)

    @classmethod
    def load(cls, folder: Path, task: Task) -> Exported:
        """The export in a folder, whose files must be those that its certificate is for. Raises RunError."""
        certificate = read_certificate(folder)
        certified = certificate.get("files")
        graphs = {ENCODER, DECODER, GENERATION} if task.head == "generate" else {MODEL}
        if not isinstance(certified, dict) or not {*graphs, TOKENIZER, RECIPE} <= set(certified):
            raise RunError(f"the certificate in {folder} does not tell which files it is for")
        for name in {*graphs, TOKENIZER, RECIPE, DOCUMENT} & set(certified):
            found = described(folder / name) if (folder / name).is_file() else None
            if found != certified[name]:
                raise RunError(f"{folder / name} is not the file that its certificate is for; export the run again")
        return cls.read(folder, task, DOCUMENT in certified, certificate.get("export", "onnx"))

    @classmethod
    def read(cls, folder: Path, task: Task, has_document: bool, runtime: str) -> Exported:
        """What is in a folder, whatever its certificate says, read by "onnx" (ONNX Runtime) or "openvino". Raises
        RunError."""
        if task.head == "generate":
            return ExportedWriter(folder, task, runtime, (ENCODER, DECODER))
        return cls(folder, task, runtime, (MODEL, DOCUMENT)[: 1 + has_document])

    @contextmanager
    def answering(self, n_passes: int) -> Iterator[Callable[..., Iterator[list[np.ndarray]]]]:
        """What maps the columns of so many passes to what `infer` gives for each, in their order."""
        n_threads = _n_threads() or n_cores()
        if n_passes < self.many or n_threads == 1:
            yield partial(map, self.infer)
            return
        pool = ThreadPoolExecutor(n_threads)
        try:
            yield partial(pool.map, self._on_one_core.infer)
        finally:
            pool.shutdown(cancel_futures=True)

    @cached_property
    def _on_one_core(self) -> Exported:
        if self._when_written() != self._written:
            raise RunError(f"{self.folder} has changed since it was loaded; load it again")
        other = copy.copy(self)
        other._model, other._above = self._sessions(one_core=True)
        return other

    def _sessions(self, one_core: bool = False) -> tuple[Any, Any]:
        """The model's, and where there is one that of what reads what the model gives: a document, a decoder."""
        model, *above = (_session(self.folder / name, self.runtime, one_core) for name in self.graphs)
        return model, above[0] if above else None

    def _when_written(self) -> list[float]:
        return [(self.folder / name).stat().st_mtime for name in self.graphs if (self.folder / name).exists()]

    def infer(self, columns: dict[str, list[Any]]) -> list[np.ndarray]:
        """For each row of encoded columns what the task decodes."""
        inputs, mask, rows = self._read(columns)
        lengths, n_rows = mask.sum(1), len(columns["input_ids"])
        (states,) = self._model.run(["logits"], inputs)
        if self.task.head_kind == "select":
            sentences = _padded(chain.from_iterable(columns["sentence_ids"]), mask, -1)
            return list(by_sentence(states[..., 0], sentences, rows, n_rows))
        if self._above is not None:
            logits = self._of_document(states, mask, lengths, rows, columns)
        elif states.ndim == 3:
            logits = pool((states * mask[..., None]).sum(1) / lengths[:, None], rows, lengths, n_rows)
        else:
            logits = pool(states, rows, lengths, n_rows)
        return list(_answers(self.task, logits))

    def _read(self, columns: dict[str, list[Any]]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """What the graph reads, of shape (windows, tokens), which of the tokens are there, and each window's row."""
        windows = list(chain.from_iterable(columns["input_ids"]))
        n_windows = [len(theirs) for theirs in columns["input_ids"]]
        lengths = np.fromiter(map(len, windows), np.int64, len(windows))
        mask = np.arange(lengths.max()) < lengths[:, None]
        inputs = {"input_ids": _padded(windows, mask, self.tokenizer.pad_token_id)}
        inputs["attention_mask"] = mask.astype(np.int64)
        if "token_type_ids" in self._inputs:
            inputs["token_type_ids"] = _padded(chain.from_iterable(columns["token_type_ids"]), mask, 0)
        return inputs, mask, np.repeat(np.arange(len(n_windows)), n_windows)

    def _of_document(
        self, states: np.ndarray, mask: np.ndarray, lengths: np.ndarray, rows: np.ndarray, columns: dict[str, list[Any]]
    ) -> np.ndarray:
        """Logits of shape (examples, outputs), from states of shape (windows, tokens, hidden)."""
        n_rows, inputs = len(columns["input_ids"]), {}
        if "sides" in columns:
            sides = _padded(chain.from_iterable(columns["sides"]), mask, 0)
            for name, side in SIDES.items():
                there = sides == side
                owners = np.broadcast_to(rows[:, None], there.shape)[there]
                inputs[name], sizes = laid_out(states[there], np.ones(len(owners), np.int64), owners, n_rows)
                inputs[f"{name}_there"] = sizes > 0
        else:
            means = (states * mask[..., None]).sum(1) / lengths[:, None]
            inputs["windows"], sizes = laid_out(means, lengths, rows, n_rows)
            inputs["lengths"] = sizes.astype(np.float32)
        if "surface" in columns:
            inputs["surface"] = np.asarray(columns["surface"], np.float32)
            inputs["group"] = np.asarray(columns["group"], np.int64)
        known = {one.name for one in self._above.get_inputs()}
        return self._above.run(["logits"], {name: value for name, value in inputs.items() if name in known})[0]


class ExportedWriter(Exported):
    """A model that writes. The encoder's graph gives what the decoder looks at; the decoder's reads a token for each
    text and keeps what it has read."""

    many = math.inf  # each has the caches of all of its texts

    def __init__(self, folder: Path, task: Task, runtime: str, graphs: Sequence[str]):
        super().__init__(folder, task, runtime, graphs)
        try:
            told = json.loads((folder / GENERATION).read_text("utf-8"))
            self.settings = Settings(**{**told, "ends": tuple(told["ends"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{folder / GENERATION} cannot be read: {error}") from None
        self.tokenizer.eos_token_id = self.settings.ends[0]

    def infer(self, columns: dict[str, list[Any]]) -> list[np.ndarray]:
        """For each row the token ids that are written for its windows, shaped (windows, tokens)."""
        inputs, _, rows = self._read(columns)

        def write(part: slice) -> np.ndarray:
            here = {name: values[part] for name, values in inputs.items()}
            decoder = self.decoding(here, self.settings.texts)
            return written(decoder, highest, len(here["input_ids"]), self.settings)

        texts = in_parts(write, len(rows), self.settings)
        return [texts[rows == row] for row in range(len(columns["input_ids"]))]

    def reading(self, columns: dict[str, list[Any]]) -> Decoder:
        """The decoder of one text for each window of encoded columns, before its first token."""
        return self.decoding(self._read(columns)[0], 1)

    def decoding(self, inputs: dict[str, np.ndarray], n_texts: int) -> Decoder:
        """The decoder of so many texts for each window, before their first token."""
        names = [one.name for one in self._model.get_outputs()]
        seen = dict(zip(names, self._model.run(names, inputs), strict=True))
        seen["attention_mask"] = inputs["attention_mask"]
        return _Decoding(self._above, {name: np.repeat(value, n_texts, 0) for name, value in seen.items()})


class _Decoding:
    """A step of a decoder after another, with its cache: see `generation.Decoder`."""

    def __init__(self, session: Any, seen: dict[str, np.ndarray]):
        self._session, self._seen = session, seen
        n_texts = len(seen["attention_mask"])
        shapes = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("own_")}
        self._own = {name: np.zeros((n_texts, n, 0, size), np.float32) for name, (_, n, _, size) in shapes.items()}

    def __call__(self, tokens: np.ndarray, origins: np.ndarray | None) -> np.ndarray:
        if origins is not None:
            self._own = {name: values[origins] for name, values in self._own.items()}
            if len(origins) < len(self._seen["attention_mask"]):
                self._seen = {name: values[origins] for name, values in self._seen.items()}
        inputs = {"decoder_input_ids": tokens[:, None], **self._seen, **self._own}
        logits, *own = self._session.run(["logits", *(f"new_{name}" for name in self._own)], inputs)
        self._own = dict(zip(self._own, own, strict=True))
        return logits


def described(path: Path) -> dict[str, Any]:
    """The size of a file and what it hashes to."""
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _session(path: Path, runtime: str, one_core: bool) -> Any:
    """What computes a graph, as ONNX Runtime's `InferenceSession` does: a run takes all cores, or one, where threads
    run it beside one another."""
    data = path.read_bytes()
    if _ELSEWHERE in data:  # nothing that we write has this word
        raise RunError(f"{path} reads weights from another file, and an export has its own in it")
    reader: tuple[Callable[[bytes, bool], Any], str] = _of_onnxruntime, "ONNX Runtime: pip install 'tl-nlp[serve]'"
    if runtime == "openvino":
        reader = _OpenVino, "OpenVINO: pip install 'tl-nlp[openvino]'"
    read, told = reader
    try:
        return read(data, one_core)
    except ImportError:
        raise RunError(f"this export is read by {told}") from None
    except Exception as error:  # ONNX Runtime has a class for each kind, and no base
        raise RunError(f"{path} cannot be read: {str(error).strip().splitlines()[0]}") from None


def _n_threads() -> int:
    """How many are asked for; 0: as the runtime chooses, which leaves the second thread of a core alone."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() else 0


def _of_onnxruntime(data: bytes, one_core: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = 1 if one_core else _n_threads()
    # its sum and norm in one operator takes five times as long as the two (onnxruntime 1.32: docs/lab.md)
    return onnxruntime.InferenceSession(
        data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )


@cache
def _openvino_core() -> Any:
    """One for the whole process: each gives signal handlers a stack of its own and, when it goes, puts back what was
    there before, so that two which go in the order they came leave one that is no more (openvino 2026.4)."""
    import openvino

    return openvino.Core()


class _Port(NamedTuple):
    name: str
    shape: list[int | None]  # None: of any size


class _OpenVino:
    """A graph of ONNX that OpenVINO computes, asked as ONNX Runtime is."""

    def __init__(self, data: bytes, one_core: bool):
        core, n_threads = _openvino_core(), _n_threads()
        model = core.read_model(data, b"")
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": n_threads}
        if one_core:
            options["NUM_STREAMS"] = n_threads or n_cores()
        self._compiled = core.compile_model(model, "CPU", options)
        self._of_thread = threading.local()
        self._inputs, self._outputs = map(_ports, (model.inputs, model.outputs))

    def get_inputs(self) -> list[_Port]:
        return self._inputs

    def get_outputs(self) -> list[_Port]:
        return self._outputs

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        results = self._of_thread.request.infer(inputs, share_inputs=True)
        return [results[name] for name in names]


def _ports(ports: Any) -> list[_Port]:
    return [
        _Port(one.any_name, [None if size.is_dynamic else size.get_length() for size in one.partial_shape])
        for one in ports
    ]


def _padded(windows: Any, mask: np.ndarray, fill: int) -> np.ndarray:
    """Lists of numbers as one array of the mask's shape, (windows, tokens)."""
    padded = np.full(mask.shape, fill, np.int64)
    padded[mask] = np.fromiter(chain.from_iterable(windows), np.int64, int(mask.sum()))
    return padded


def pool(values: np.ndarray, rows: np.ndarray, weights: np.ndarray, n_rows: int) -> np.ndarray:
    """Weighted means of `values`, shape (items, outputs), over the items of each row: shape (n_rows, outputs)."""
    sums = np.zeros((n_rows, values.shape[1]), np.float32)
    np.add.at(sums, rows, values * weights[:, None].astype(np.float32))
    totals = np.bincount(rows, weights, n_rows).astype(np.float32)
    return sums / np.maximum(totals, np.finfo(np.float32).tiny)[:, None]


def by_sentence(logits: np.ndarray, sentences: np.ndarray, rows: np.ndarray, n_rows: int) -> np.ndarray:
    """The mean of the logits of each sentence's tokens: shape (examples, sentences), -inf where no token was.

    Logits and the sentence of each token, -1 for none, are of shape (windows, tokens).
    """
    inside, n_sentences = sentences >= 0, int(sentences.max()) + 1
    places = (rows[:, None] * n_sentences + sentences)[inside]
    pooled = pool(logits[inside][:, None], places, np.ones(len(places), np.int64), n_rows * n_sentences)[:, 0]
    seen = np.bincount(places, minlength=n_rows * n_sentences) > 0
    return np.where(seen, pooled, -np.inf).reshape(n_rows, n_sentences)


def laid_out(items: np.ndarray, sizes: np.ndarray, rows: np.ndarray, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Items by example, those of one in their order: of shape (examples, items, hidden), one item at least; and their
    sizes, 0 where there is none."""
    counts = np.bincount(rows, minlength=n_rows)
    places = np.arange(len(rows)) - (counts.cumsum() - counts)[rows]
    laid = np.zeros((n_rows, max(1, int(counts.max())), items.shape[1]), np.float32)
    laid_sizes = np.zeros(laid.shape[:2], sizes.dtype)
    laid[rows, places], laid_sizes[rows, places] = items, sizes
    return laid, laid_sizes


def _answers(task: Task, logits: np.ndarray) -> np.ndarray:
    """What is inferred from the logits of the examples, by the head of the task."""
    if task.head_kind == "classify":
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)
    if task.head_kind == "multilabel":
        return _sigmoid(logits)
    if task.head_kind == "ordinal":
        n_steps = task.head_settings()["n_levels"] - 1
        return _sigmoid(logits).reshape(len(logits), -1, n_steps).cumprod(2).mean(2)
    return logits


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))
