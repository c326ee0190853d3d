"""What a recipe is: five choices (checkpoint, data, task, method, training) in one frozen value.

Every abstraction of the package is on this page. A component (a task, a kind of data, a method) is one class in one
file, and the file's name is its kind: `lora` is class `Lora` in `methods/lora.py`.
"""

from __future__ import annotations

import json
import runpy
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from tl_nlp.combinations import impossible
from tl_nlp.components import Component, Value, as_component
from tl_nlp.errors import DataError, RecipeError
from tl_nlp.types import COLUMNS, Metrics, Prediction

if TYPE_CHECKING:
    import numpy as np
    from datasets import DatasetDict

    from tl_nlp.rejects import Rejects

    Rows = dict[str, list[Any]]  # column name to values, all of one length

Pooling = Literal["checkpoint", "mean", "attention", "transformer"]
"""How an encoder's states become one answer: as the checkpoint's own classification class does (BERT: the first token
through its pooler), or as the mean over all tokens, which sentence encoders were trained for."""
TestSplit = Annotated[str, Field(pattern="^test_[A-Za-z0-9_-]+$")]
"""The name of a further test split, which is also a file's name."""
LoadIn = Literal["float32", "bfloat16", "float16", "int8", "nf4"]
ANY_FORMAT: tuple[str, ...] = get_args(LoadIn)
"""What frozen weights may load in."""
CountOrAuto = Annotated[int, Field(ge=1)] | Literal["auto"]
ClassWeights = Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]
ENCODER_HEADS = ("classify", "multilabel", "regress", "select")
"""The heads that stand on an encoder and are new weights; `generate` writes through the checkpoint's embeddings."""

_NAMED_BY = {"checkpoint": "name", "data": "kind", "task": "kind", "method": "kind"}
"""Which of their keys a plain text sets: `method=lora` is `{"kind": "lora"}`."""


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
    def faults(self, rows: Rows) -> dict[int, str]:
        """Which rows have a target it cannot use, by their place, and why."""

    def refuse_faults(self, rows: Rows) -> None:
        """Raises DataError for the first row that `faults` finds."""
        for number, reason in sorted(self.faults(rows).items())[:1]:
            raise DataError(f"row {rows['id'][number]}: {reason}")

    @property
    def head_kind(self) -> str:
        """The entry of `heads.HEADS` that learns this task; a task may have several for the same outputs."""
        return self.head

    @abstractmethod
    def outputs(self) -> list[str]:
        """Names of the head's outputs; [] where the head writes text."""

    @abstractmethod
    def labels_of(self, rows: Rows) -> list[Any]:
        """The rows' targets as the head learns them, where it learns numbers. Raises DataError for one with a fault."""

    def terms(self) -> dict[str, Any]:
        """What its answers are given in; a student's are its teacher's."""
        return {"labels": self.outputs()}

    def sentences_of(self, rows: Rows) -> list[list[str]]:
        """The sentences of each row's text."""
        from sentencex import segment

        return [[one.strip() for one in segment("en", text) if one.strip()] or [text] for text in rows["text"]]

    @abstractmethod
    def encode(self, rows: Rows, tokenizer: Any) -> Rows:
        """Rows as windows of token ids: `input_ids` is a list of windows for each row. Adds `labels` when the rows have
        targets, and `cut`, the tokens of each row that no window holds. Raises DataError for a target with a fault."""

    @abstractmethod
    def decode(self, outputs: list[np.ndarray], rows: Rows, tokenizer: Any) -> list[Prediction]:
        """What the head's inference gave for each row, in the words of the task."""

    def glance(self) -> tuple[Task, int | None]:
        """This task as it is scored on validation while training goes on, and on how many rows at most: less, where
        answers are costly."""
        return self, None

    def calibrated(self, outputs: list[np.ndarray], rows: Rows) -> Task:
        """This task with what validation teaches about its decisions (a temperature, thresholds) written in. `outputs`
        are what the head inferred for the validation rows."""
        return self

    @abstractmethod
    def score(self, predictions: list[Prediction], rows: Rows) -> Metrics:
        """The metrics of predictions against the rows' targets."""

    def caution(self, metrics: Metrics) -> str | None:
        """What to know of such scores that the recipe could mend."""
        return None


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
    similarity: float = Field(0.8, ge=0.7, le=1)  # of words, from which on two texts are duplicates; 1: only equal ones
    validation_share: float = Field(0.15, gt=0, lt=0.5)  # of the rows, where there is no validation split
    test_share: float = Field(0.15, gt=0, lt=0.5)
    overlap: Literal["refuse", "drop", "keep"] = "refuse"  # of given splits; refuse: beyond 1 % of a test, else drop
    max_rejects: float = Field(0.01, ge=0, lt=1)  # share of rows that may be unusable and left out
    folds: int | None = Field(None, ge=2)  # runs, each tested on another part of the rows: for small sets
    fold: int | None = Field(None, ge=0)  # the part that a run of `folds` is tested on; default: the first
    train_rows: int | None = Field(None, ge=1)  # learns from at most this many rows
    rows: int | None = Field(None, ge=1)  # at most this many of each split, for a quick try
    seed: int = 0  # splits and `rows` depend on it alone

    @model_validator(mode="after")
    def _folded(self) -> Data:
        if self.fold is not None and (self.folds is None or self.fold >= self.folds):
            raise RecipeError(f"there is no fold {self.fold} of data.folds={self.folds}; they count from 0", "fold")
        return self

    @property
    def origin(self) -> tuple[str, str]:
        """Where its licence may be stated (`package`, `hub`; `files` for files of one's own), and under which name."""
        return "files", self.kind

    @abstractmethod
    def load(self, rejects: Rejects | None = None) -> DatasetDict:
        """The splits train, validation and test (and further tests) of rows with the columns of `types.COLUMNS`.

        Rows that are left out are added to `rejects`. Raises DataError where they are too many."""


class Method(Component):
    """How the pretrained weights are carried over: what is added to the model, and which weights learn when."""

    heads: ClassVar[tuple[str, ...]] = (*ENCODER_HEADS, "generate")
    """The heads of tasks that it goes with."""
    moves: ClassVar[Literal["backbone", "biases", "head", "blocks", "prompt"]] = "backbone"
    """What learns beside the head: pretrained matrices, pretrained biases and norms, nothing, weights added to blocks,
    or weights added in front of the input."""
    opens_with: ClassVar[Literal["transformers", "peft", "tl_nlp"]] = "transformers"
    """What loads the artifact: all weights (transformers), or only those added, which need the checkpoint."""
    is_mergeable: ClassVar[bool] = True
    """Whether what was trained can become plain weights of the checkpoint's own shape."""

    head_epochs: float = Field(0.0, ge=0)  # the head learns alone for these first epochs (Kumar et al. 2022)

    @property
    def is_adapter(self) -> bool:
        """Whether the artifact holds only what was added, so that loading it needs the checkpoint."""
        return self.opens_with != "transformers"

    @property
    def n_positions(self) -> int:
        """How many of the checkpoint's positions what it adds takes."""
        return 0

    @property
    def loads_in(self) -> tuple[str, ...]:
        """The `checkpoint.load_in` it can work on."""
        return ("float32",)

    def check(self, model: Any, head: list[str]) -> None:
        """Raises RecipeError where it cannot go on such a model, which has its shapes and no weights yet."""
        return

    def apply(self, model: Any, head: list[str]) -> Any:
        """The model with what this method adds to it; `head` names the modules of its head."""
        return model

    @abstractmethod
    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        """Which of the applied model's weights learn at this epoch after `head_epochs`, all by name; `head` are the
        modules of the head. What has begun to learn goes on: the set never shrinks."""

    def save(self, model: Any, folder: Path) -> None:
        """Writes what was trained, as safetensors and JSON."""
        from tl_nlp.families import unshared

        model.save_pretrained(str(folder), state_dict=unshared(model))

    def load(self, model: Any, folder: Path) -> Any:
        """For adapters: the checkpoint's model with what `save` wrote on it. Raises CheckpointError."""
        raise RecipeError(f"method {self.kind} saves whole models")


class Checkpoint(Value):
    """The pretrained weights: a Hub id, a local directory, a run, or `package:MODULE` that ships one."""

    name: str = Field(min_length=1)
    revision: str | None = None  # on the Hub: branch, tag or commit; elsewhere: sha256 of model.safetensors
    load_in: LoadIn = "float32"  # of frozen weights; what is trained stays float32
    blocks: int | None = Field(None, ge=1)  # keeps so many of the lowest ones, for speed (Sajjad et al. 2020)
    warm_start: bool = False  # an encoder begins encoder and decoder of a model that writes (Rothe et al. 2020)
    share_blocks: bool = False  # after a warm start both have one set of blocks, what looks at the encoder aside
    random: bool = False  # the architecture alone, all weights drawn from training.seed: what pretraining is worth


class Augmentation(Value):
    """Training texts changed on the fly, anew in every epoch; what changes depends on seed, epoch and row alone."""

    word_dropout: float = Field(0.0, ge=0, lt=1)  # share of words left out
    word_swap: float = Field(0.0, ge=0, lt=1)  # share of words that change places with the next one
    word_replacement: float = Field(0.0, ge=0, lt=1)  # share replaced by a neighbour in the checkpoint's embeddings
    token_cutoff: float = Field(0.0, ge=0, lt=1)  # share of tokens hidden from attention (Shen et al. 2020)
    mixup: float = Field(0.0, ge=0)  # alpha of Beta(alpha, alpha): shares of two rows' last states (Guo et al. 2019)

    @property
    def changes_words(self) -> bool:
        return max(self.word_dropout, self.word_swap, self.word_replacement) > 0

    @property
    def changes_rows(self) -> bool:
        """Whether a row is another in every epoch, so that nothing computed from it can be kept."""
        return self.changes_words or self.token_cutoff > 0


class Compute(Value):
    """How the machine is used; by default as was fastest where it was measured (docs/performance.md)."""

    attention: Literal["auto", "eager", "sdpa"] = "auto"  # auto: sdpa on a GPU; on a CPU its backward pass is slow
    dropout: Literal["auto", "torch"] = "auto"  # auto: on a CPU drawn for four numbers at a time
    optimizer: Literal["fused", "foreach"] = "fused"  # AdamW as one operation for all weights, or as some for each kind
    compile: Literal["auto", "always", "never"] = "auto"  # torch.compile; auto: on a GPU, where it pays back in the run
    pass_scores: CountOrAuto = "auto"  # most attention scores of a layer in one pass; auto: 6 million or less on a CPU
    threads: int | None = Field(None, ge=1)  # of a CPU; default: one for each core


class Distillation(Value):
    """A student learns from a teacher too, which answers the unchanged text of each training row once (Hinton et al.
    2015)."""

    teacher: str = Field(min_length=1)  # a run or its artifact, here or owner/name on the Hub, of the same labels
    temperature: float = Field(2.0, gt=0)  # of both softmaxes; the loss is scaled by its square
    weight: float = Field(0.5, ge=0, le=1)  # of the teacher's targets; 1: no label is looked at
    hidden: float = Field(0.0, ge=0)  # weight of the states after each block (Jiao et al. 2020); one tokenizer for both
    relations: float = Field(0.0, ge=0)  # of how the top block's queries, keys and values are alike (Wang et al. 2021)

    @property
    def looks_inside(self) -> bool:
        """Whether the student is held to more of the teacher than its answers."""
        return self.hidden > 0 or self.relations > 0


class Training(Value):
    """How fast the weights learn, for how long, under which loss, and what is kept on the way."""

    epochs: float = Field(3.0, gt=0)
    batch_size: int = Field(32, ge=1)  # rows a step, over all devices
    device_batch_size: CountOrAuto = 32  # most sequences in one pass; auto: what fits

    lr: float = Field(1e-4, gt=0, lt=1)  # of the top block, and of what a method adds
    head_lr: float | None = Field(None, gt=0, lt=1)  # default: lr
    first_lr: float | None = Field(None, gt=0, lt=1)  # of the head alone, in method.head_epochs; default: 1e-3
    layer_decay: float = Field(1.0, gt=0, le=1)  # each block's lr is this times the one above it
    schedule: Literal["linear", "cosine", "constant", "one_cycle"] = "linear"  # after method.head_epochs
    warmup: float = Field(0.1, ge=0, lt=1)  # share of its steps

    weight_decay: float = Field(0.01, ge=0)  # not on norms and biases
    l2_sp: float = Field(0.0, ge=0)  # pull of pretrained weights to where they were, in place of decay (Li et al. 2018)
    mixout: float = Field(0.0, ge=0, lt=1)  # share of pretrained weights put back in a step (Lee et al. 2020)
    reinit_blocks: int = Field(0, ge=0)  # top blocks drawn anew before training (Zhang et al. 2021)
    dropout: float | None = Field(None, ge=0, lt=1)  # default: the checkpoint's
    r_drop: float = Field(0.0, ge=0)  # alpha: two passes of unlike dropout shall agree (Wu et al. 2021)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["balanced"] | ClassWeights | None = None  # {"rare": 3.0}; labels not named: 1.0
    focal_gamma: float = Field(0.0, ge=0)  # less weight on what is already right (Lin et al. 2017)
    logit_adjustment: float = Field(0.0, ge=0)  # tau: rare labels need a wider margin (Menon et al. 2021)
    ema: float | None = Field(None, gt=0, lt=1)  # decay a step of a moving average, which is what is kept
    average_last: int = Field(1, ge=1)  # keep the mean of the weights at this many last evaluations
    ranking: float = Field(0.0, ge=0)  # weight of the order of a step's grades beside their size (Cao et al. 2007)
    augmentation: Augmentation = Augmentation()
    compute: Compute = Compute()
    distillation: Distillation | None = None

    max_grad_norm: float | None = Field(1.0, gt=0)  # null: no clipping
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the hardware has it
    gradient_checkpointing: bool = False  # states inside blocks are computed twice and not kept: slower, smaller
    eval_every: float = Field(1.0, gt=0)  # epochs
    save_every: float = Field(1.0, gt=0)  # epochs
    patience: int | None = Field(None, ge=1)  # stop after this many evaluations without a better main metric
    skip_bad_steps: int = Field(0, ge=0)  # so many steps of no finite loss or gradient may be left out, and are counted
    scratch: bool = False  # trains the same architecture from random weights too, as a baseline
    seeds: int = Field(1, ge=1)  # runs, each with a seed of its own from `seed` on; the best on validation is kept
    seed: int = 0  # data order, head and adapter init, dropout, augmentation


class Licence(Value):
    """What is known of licences that no card or package states; each is a name of `licences.LICENCES`."""

    base: str | None = None  # of the checkpoint
    data: str | None = None  # of the rows; own: they are the publisher's
    model: str | None = None  # of what is published; default: what the base and the data ask for
    source: str | None = None  # where that is stated: an address, or who says so

    @model_validator(mode="after")
    def _known(self) -> Licence:
        from tl_nlp.licences import LICENCES

        for part in ("base", "data", "model"):
            name = getattr(self, part)
            if name is not None and name not in LICENCES:
                raise RecipeError(f"no licence {name!r} is known here; there are: {', '.join(LICENCES)}", part)
        if (self.base or self.data) and not self.source:
            raise RecipeError("says where a licence is stated, which must be known to rely on it", "source")
        return self


class Recipe(Value):
    """Five choices and a name."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    checkpoint: Annotated[Checkpoint, BeforeValidator(_as_checkpoint)]
    data: Annotated[SerializeAsAny[Data], BeforeValidator(partial(as_component, "data"))]
    task: Annotated[SerializeAsAny[Task], BeforeValidator(partial(as_component, "tasks"))]
    method: Annotated[SerializeAsAny[Method], BeforeValidator(partial(as_component, "methods"))] = Field(
        "full", validate_default=True
    )
    training: Training = Training()
    licence: Licence = Licence()
    note: str | None = None  # what a reader of its scores must know; shown on the page

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        unknown = [name for name in self.data.columns if name not in self.task.columns]
        if unknown:
            raise RecipeError(
                f"task {self.task.kind} reads no column {unknown[0]!r}; beside {', '.join(COLUMNS)} it reads: "
                f"{', '.join(self.task.columns) or 'none'}",
                "data.columns",
            )
        for key, is_impossible, why in impossible(self):
            if is_impossible:
                raise RecipeError(why, key)
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
                if node.get(parent) is None:
                    node[parent] = {}
                node = node[parent]
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
