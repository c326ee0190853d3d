"""What a recipe is: five choices (checkpoint, data, task, method, training) in one frozen value.

Every abstraction of the package is on this page. A component (a task, a kind of data, a method) is one class in one
file, and the file's name is its kind: `lora` is class `Lora` in `methods/lora.py`.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import runpy
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_serializer,
    model_validator,
)

from tl_nlp.errors import RecipeError
from tl_nlp.types import COLUMNS, Metrics, Prediction

if TYPE_CHECKING:
    import numpy as np
    from datasets import DatasetDict

    Rows = dict[str, list[Any]]  # column name to values, all of one length

Pooling = Literal["checkpoint", "mean"]
"""How an encoder's states become one answer: as the checkpoint's own classification class does (BERT: the first token
through its pooler), or as the mean over all tokens, which sentence encoders were trained for."""
TestSplit = Annotated[str, Field(pattern="^test_[A-Za-z0-9_-]+$")]
"""The name of a further test split, which is also a file's name."""
LoadIn = Literal["float32", "bfloat16", "float16", "int8", "nf4"]


class Value(BaseModel):
    """A frozen value that knows all its keys; what does not fit raises one RecipeError with the key in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise translated(error, type(self)) from None


def translated(error: ValidationError, model: type[BaseModel]) -> RecipeError:
    """The first complaint of pydantic as one sentence that names the key and what there is instead."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RecipeError):
        return RecipeError(cause.message, ".".join(part for part in (key, cause.key) if part))
    if first["type"] == "extra_forbidden":
        return RecipeError(f"no such key; there are: {', '.join(model.model_fields)}", key)
    if first["type"] == "missing":
        return RecipeError("is required", key)
    hint = ' (a list is written as JSON: ["a", "b"])' if first["type"] in ("tuple_type", "list_type") else ""
    message = str(cause) if cause else first["msg"][0].lower() + first["msg"][1:]
    return RecipeError(f"{first['input']!r} does not fit: {message}{hint}", key)


class Component(Value):
    """A choice among kinds; serialized with the kind that finds its class again."""

    @property
    def kind(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: Any) -> dict[str, Any]:
        return {"kind": self.kind, **handler(self)}


def kinds(axis: str) -> list[str]:
    """The kinds of an axis (`tasks`, `data` or `methods`): the names of the files in its folder."""
    folder = Path(__file__).parent / axis
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]))


def find_kind(axis: str, kind: str) -> type[Component]:
    """The class of a kind; raises RecipeError with the kinds there are."""
    if kind not in kinds(axis):
        raise RecipeError(f"no {kind!r} in tl_nlp.{axis}; there are: {', '.join(kinds(axis))}")
    module = importlib.import_module(f"tl_nlp.{axis}.{kind}")
    return getattr(module, "".join(part.capitalize() for part in kind.split("_")))


_NAMED_BY = {"checkpoint": "name", "data": "kind", "task": "kind", "method": "kind"}
"""Which of their keys a plain text sets: `method=lora` is `{"kind": "lora"}`."""


def _as_component(axis: str, value: Any) -> Component:
    if isinstance(value, str):
        value = {"kind": value}
    if isinstance(value, dict):
        values = dict(value)
        kind = values.pop("kind", None)
        if kind is None:
            raise RecipeError(f"its kind is missing; there are: {', '.join(kinds(axis))}")
        return find_kind(axis, str(kind))(**values)
    if not isinstance(value, Component) or type(value).__module__ != f"tl_nlp.{axis}.{value.kind}":
        raise RecipeError(f"{value!r} is none of tl_nlp.{axis}; there are: {', '.join(kinds(axis))}")
    return value


def _as_checkpoint(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Task(Component):
    """Text in, predictions out. Knows labels, scales and sentences, and no tensor."""

    head: ClassVar[str]
    """Which entry of `heads.HEADS` turns the encoder's states into numbers."""
    main_metric: ClassVar[str]
    """Picks the best checkpoint; higher is better."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns it reads beside `COLUMNS`, where the rows have them."""

    max_length: int = Field(256, ge=8)  # tokens in one window

    def resolve(self, rows: DatasetDict) -> Task:
        """This task with what only the data can tell (its labels) written in."""
        return self

    def head_settings(self) -> dict[str, Any]:
        """Keyword arguments for the head's class."""
        return {}

    @abstractmethod
    def outputs(self) -> list[str]:
        """Names of the head's outputs; [] where the head writes text."""

    @abstractmethod
    def encode(self, rows: Rows, tokenizer: Any) -> Rows:
        """Rows as windows of token ids: `input_ids` is a list of windows for each row. Adds `labels` when the rows have
        targets, and `cut`, the tokens of each row that no window holds."""

    @abstractmethod
    def decode(self, outputs: list[np.ndarray], rows: Rows, tokenizer: Any) -> list[Prediction]:
        """What the head's inference gave for each row, in the words of the task."""

    @abstractmethod
    def score(self, predictions: list[Prediction], rows: Rows) -> Metrics:
        """The metrics of predictions against the rows' targets."""


class Data(Component):
    """Where rows come from. The fields below say which columns hold what, for every kind."""

    text: str = "text"
    target: str = "target"
    pair: str | None = None  # default: the column "pair", where there is one; so for group and id
    group: str | None = None  # for reporting and scales: the prompt, the domain
    id: str | None = None
    columns: dict[str, str] = {}  # a task's further columns: {"low": "min_score"}
    values: dict[str, str] = {}  # replaces targets: {"0": "negative"}
    where: dict[str, str] = {}  # keeps the rows with these values: {"source": "rotten_tomatoes"}
    keep_together: str | None = None  # rows that share this column's value (author, source) stay in one split
    validation_share: float = Field(0.15, gt=0, lt=0.5)  # of the rows, where there is no validation split
    test_share: float = Field(0.15, gt=0, lt=0.5)
    rows: int | None = Field(None, ge=1)  # at most this many of each split, for a quick try
    seed: int = 0  # splits and `rows` depend on it alone

    @abstractmethod
    def load(self) -> DatasetDict:
        """The splits train, validation and test (and further tests) of rows with the columns of `types.COLUMNS`.
        Raises DataError."""


class Method(Component):
    """How the pretrained weights are carried over: what is added to the model, and which weights learn."""

    loads_in: ClassVar[tuple[str, ...]] = ("float32",)
    """The `checkpoint.load_in` it can work on."""
    is_adapter: ClassVar[bool] = False
    """Whether the artifact holds only what was added, so that loading it needs the checkpoint."""

    def apply(self, model: Any, head: list[str]) -> Any:
        """The model with what this method adds to it; `head` names the modules of its head. Raises RecipeError."""
        return model

    @abstractmethod
    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        """Which of the applied model's weights learn in this epoch, all by name; `head` are the modules of the head."""

    def load(self, model: Any, folder: Path) -> Any:
        """For adapters: the checkpoint's model with the adapter in `folder` on it."""
        raise RecipeError(f"method {self.kind} saves whole models")


class Checkpoint(Value):
    """The pretrained weights: a Hub id, a local directory, a run, or `package:MODULE` that ships one."""

    name: str = Field(min_length=1)
    revision: str | None = None  # on the Hub: branch, tag or commit; elsewhere: sha256 of model.safetensors
    load_in: LoadIn = "float32"  # of frozen weights; what is trained stays float32


class Training(Value):
    """How fast the weights learn, for how long, and what is kept on the way."""

    epochs: float = Field(3.0, gt=0)
    batch_size: int = Field(32, ge=1)  # rows a step, over all devices
    device_batch_size: int = Field(32, ge=1)  # sequences (windows) in one forward pass
    lr: float = Field(1e-4, gt=0, lt=1)
    head_lr: float | None = Field(None, gt=0, lt=1)  # default: lr
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.1, ge=0, lt=1)  # share of the steps
    weight_decay: float = Field(0.01, ge=0)  # not on norms and biases
    max_grad_norm: float | None = Field(1.0, gt=0)  # null: no clipping
    dropout: float | None = Field(None, ge=0, lt=1)  # default: the checkpoint's
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the hardware has it
    eval_every: float = Field(1.0, gt=0)  # epochs
    save_every: float = Field(1.0, gt=0)  # epochs
    patience: int | None = Field(None, ge=1)  # stop after this many evaluations without a better main metric
    seed: int = 0  # data order, head and adapter init, dropout


class Recipe(Value):
    """Five choices and a name."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    checkpoint: Annotated[Checkpoint, BeforeValidator(_as_checkpoint)]
    data: Annotated[SerializeAsAny[Data], BeforeValidator(partial(_as_component, "data"))]
    task: Annotated[SerializeAsAny[Task], BeforeValidator(partial(_as_component, "tasks"))]
    method: Annotated[SerializeAsAny[Method], BeforeValidator(partial(_as_component, "methods"))] = Field(
        "full", validate_default=True
    )
    training: Training = Training()
    note: str | None = None  # what a reader of its scores must know; shown on the page

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.checkpoint.load_in not in self.method.loads_in:
            raise RecipeError(
                f"{self.checkpoint.load_in} is for frozen weights, and method {self.method.kind} works on "
                f"{', '.join(self.method.loads_in)}; choose another method (lora, head) or "
                "training.precision=bfloat16 for fast arithmetic",
                "checkpoint.load_in",
            )
        unknown = [name for name in self.data.columns if name not in self.task.columns]
        if unknown:
            raise RecipeError(
                f"task {self.task.kind} reads no column {unknown[0]!r}; beside {', '.join(COLUMNS)} it reads: "
                f"{', '.join(self.task.columns) or 'none'}",
                "data.columns",
            )
        return self

    def override(self, *assignments: str) -> Recipe:
        """This recipe with `KEY=VALUE` assignments applied in order, validated once.

        A component is replaced by the defaults of a kind (`method=lora`), a checkpoint by its name. Values that begin
        with `[` or `{`, and `null`, are JSON; everything else is text that the field's type parses.
        """
        values = self.model_dump(mode="json")
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals or not key:
                raise RecipeError(f"{assignment!r} is not KEY=VALUE, as in training.lr=1e-4")
            *parents, last = key.split(".")
            node = values
            for parent in parents:
                node = node.setdefault(parent, {})
                if not isinstance(node, dict):
                    raise RecipeError(f"{parent!r} holds no keys", key)
            value = _parse(text, key)
            if not parents and isinstance(value, str) and last in _NAMED_BY:
                value = {_NAMED_BY[last]: value}
            node[last] = value
        return Recipe(**values)


def _parse(text: str, key: str) -> Any:
    if text != "null" and not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{text!r} begins like JSON and is none: {error.msg}", key) from None


def recipe_files(folder: Path | None = None) -> dict[str, Path]:
    """The recipes in `folder` (default: ./recipes) by name."""
    folder = Path("recipes") if folder is None else folder
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}


def load_recipe(name: str | Path, *overrides: str) -> Recipe:
    """The recipe of a .py file, or of that name in ./recipes, with overrides applied. Raises RecipeError."""
    path = Path(name)
    if path.suffix != ".py":
        files = recipe_files()
        if str(name) not in files:
            there = f"there are: {', '.join(files)}" if files else "there is no folder ./recipes with recipes here"
            raise RecipeError(f"no recipe {str(name)!r}; {there}; or name a .py file")
        path = files[str(name)]
    if not path.is_file():
        raise RecipeError(f"no file {str(path)!r}; a recipe is a .py file or a name in ./recipes (see tl-nlp list)")
    try:
        recipe = runpy.run_path(str(path)).get("recipe")
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    except Exception as error:
        raise RecipeError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{path} defines no `recipe`, a tl_nlp.Recipe")
    return recipe.override(*overrides)
