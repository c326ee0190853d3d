"""Which choices of a recipe do not go together, told before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from tl_nlp.components import find_kind, kinds

if TYPE_CHECKING:
    from tl_nlp.recipe import Distillation, Recipe, Training


def impossible(recipe: Recipe) -> Iterator[tuple[str, bool, str]]:
    """What does not go together or would do nothing: key, whether it is so here, and the sentence for it."""
    task, method, training = recipe.task, recipe.method, recipe.training
    tasks: dict[str, Any] = {kind: find_kind("tasks", kind) for kind in kinds("tasks")}
    methods: dict[str, Any] = {kind: find_kind("methods", kind)() for kind in kinds("methods")}
    load_in = recipe.checkpoint.load_in
    fit = [kind for kind, other in methods.items() if task.head in other.heads and load_in in other.loads_in]
    fitting = f"methods that fit: {', '.join(fit)}"
    yield "method", task.head not in method.heads, f"{method.kind} does not go with task {task.kind}; {fitting}"
    yield (
        "checkpoint.load_in",
        load_in not in method.loads_in,
        f"method {method.kind} works on {', '.join(method.loads_in)}, and {load_in} is for weights that stay as they "
        f"are; {fitting}; training.precision=bfloat16 is for fast arithmetic",
    )

    moves_all = method.kind == "full" and load_in == "float32"
    for field in ("random", "warm_start"):
        is_set = getattr(recipe.checkpoint, field)
        drawn = "weights that are drawn must all learn: method=full, in float32"
        yield f"checkpoint.{field}", is_set and not moves_all, drawn
    yield (
        "checkpoint.warm_start",
        recipe.checkpoint.warm_start and task.head != "generate",
        f"is for tasks that write, and task {task.kind} does not; without it the checkpoint is read as it is",
    )

    yield (
        "checkpoint.share_blocks",
        recipe.checkpoint.share_blocks and not recipe.checkpoint.warm_start,
        "is of an encoder and a decoder that checkpoint.warm_start=true makes of one checkpoint",
    )

    for field, heads in _LOSSES.items():
        names = [kind for kind, other in tasks.items() if other.head in heads]
        is_set = bool(attrgetter(field)(training))
        told = f"is for {', '.join(names)} and not for task {task.kind}"
        yield f"training.{field}", is_set and task.head not in heads, told

    writes = task.head == "generate"
    dropout = getattr(task, "dropout", 0.0)
    yield (
        "task.dropout",
        dropout > 0 and task.pooling == "checkpoint",  # type: ignore[attr-defined]
        "is of states that are pooled here; task.pooling=mean, or training.dropout for the checkpoint's own",
    )
    apart = getattr(task, "reading", "together") == "apart"
    alike = "would make what task.reading=apart compares less alike in training than it is later"
    yield "training.dropout", apart and training.dropout != 0, f"{alike}; training.dropout=0"
    yield "method.dropout", apart and getattr(method, "dropout", 0.0) > 0, f"{alike}; method.dropout=0"
    no_head = f"task {task.kind} writes through the checkpoint's embeddings and has no head of its own"
    has_head = not writes or recipe.checkpoint.warm_start
    yield "training.head_lr", not has_head and training.head_lr is not None, no_head
    yield "method.head_epochs", not has_head and method.head_epochs > 0, f"{no_head}; method.head_epochs=0"
    yield "method.head_epochs", method.moves == "head" and method.head_epochs > 0, "the head learns alone at all times"
    yield (
        "method.head_epochs",
        method.head_epochs >= training.epochs,
        f"the head would learn alone for {method.head_epochs:g} of training.epochs={training.epochs:g}; "
        "method=head is for that",
    )
    yield (
        "training.first_lr",
        training.first_lr is not None and method.head_epochs == 0,
        "is the rate of a first stage; method.head_epochs says how long that is",
    )
    for field in ("l2_sp", "mixout", "reinit_blocks"):
        movers = [kind for kind in fit if methods[kind].moves == "backbone"]
        is_still = bool(getattr(training, field)) and method.moves != "backbone"
        yield (
            f"training.{field}",
            is_still,
            f"acts on pretrained matrices that learn, and under method {method.kind} none does; it goes with "
            f"{', '.join(movers) or 'none of the methods here'}",
        )
    in_one = method.moves in ("head", "prompt")
    yield "training.layer_decay", in_one and training.layer_decay < 1, f"method {method.kind} moves no block"
    yield (
        "training.gradient_checkpointing",
        method.moves == "head" and training.gradient_checkpointing,
        "nothing is kept of a backbone that does not learn",
    )
    yield (
        "training.gradient_checkpointing",
        method.kind == "prefix" and training.gradient_checkpointing,
        "does not go with method prefix, whose keys and values are a cache",
    )
    no_dropout = training.dropout == 0 and not getattr(method, "dropout", 0.0) and not dropout
    yield "training.r_drop", training.r_drop > 0 and no_dropout, "compares dropouts, and training.dropout=0"
    yield (
        "training.reinit_blocks",
        training.reinit_blocks > 0 and max(training.l2_sp, training.mixout) > 0,
        "what is drawn anew has no pretrained weights that training.l2_sp or training.mixout could hold it to",
    )
    n_evaluations = math.ceil(training.epochs / training.eval_every)
    told = f"training.epochs={training.epochs:g} and training.eval_every={training.eval_every:g} make {n_evaluations}"
    yield "training.average_last", training.average_last > n_evaluations, f"there are fewer evaluations: {told}"
    yield (
        "training.patience",
        training.patience is not None and training.patience >= n_evaluations,
        f"so many evaluations without a better one cannot be: {told}",
    )
    yield (
        "training.average_last",
        training.ema is not None and training.average_last > 1,
        "training.ema is an average already; one of the two",
    )
    why = uncompilable(recipe)
    yield "training.compute.compile", training.compute.compile == "always" and why is not None, str(why)
    if training.distillation is not None:
        yield from _impossible_distillation(recipe, training.distillation)
    size = training.device_batch_size
    for key, verb in needs_whole_steps(training).items():
        is_split = isinstance(size, int) and size < training.batch_size
        one = f"{verb} the rows of a step, which must be in one pass; training.device_batch_size={training.batch_size}"
        yield key, is_split, one
        is_limited = training.compute.pass_scores != "auto"
        yield "training.compute.pass_scores", is_limited, f"splits steps, and {key} {verb} the rows of one"


def uncompilable(recipe: Recipe) -> str | None:
    """Why torch.compile is not for the steps of a recipe."""
    training, load_in = recipe.training, recipe.checkpoint.load_in
    method, chosen = recipe.method, training.distillation
    reasons = [
        (recipe.task.head == "generate", f"task {recipe.task.kind} writes, and its steps differ from one to the next"),
        (method.kind == "gradual", "method gradual lets others learn every few steps, which would compile each time"),
        (method.moves == "head", f"nothing of what method {method.kind} moves reads texts"),
        (load_in in ("int8", "nf4"), f"products with {load_in} weights are not torch's own"),
        (training.gradient_checkpointing, "training.gradient_checkpointing=true computes in an order of its own"),
        (chosen is not None and chosen.looks_inside, "a teacher looks inside the model"),
    ]
    return next((reason for is_so, reason in reasons if is_so), None)


def _impossible_distillation(recipe: Recipe, chosen: Distillation) -> Iterator[tuple[str, bool, str]]:
    """What does not go with a teacher, or would do nothing beside it."""
    training, key = recipe.training, "training.distillation"
    yield (
        f"{key}.weight",
        chosen.weight == 0 and not chosen.looks_inside,
        f"leaves the teacher nothing to say; a higher one, or {key}.hidden for its states",
    )
    is_warm = chosen.temperature != type(chosen).model_fields["temperature"].default
    yield (
        f"{key}.temperature",
        is_warm and (recipe.task.head == "regress" or chosen.weight == 0),
        "softens the probabilities of labels, and none are learned from the teacher here",
    )
    for field in ("label_smoothing", "class_weights", "focal_gamma", "logit_adjustment", "ranking"):
        yield (
            f"training.{field}",
            bool(getattr(training, field)) and chosen.weight == 1,
            f"is of the labels' loss, and {key}.weight=1 looks at no label",
        )
    for field in ("hidden", "relations"):
        yield (
            f"{key}.{field}",
            getattr(chosen, field) > 0 and recipe.method.moves == "head",
            f"is of states below the head, and method {recipe.method.kind} moves none of them",
        )


def needs_whole_steps(training: Training) -> dict[str, str]:
    """The keys whose loss is of all rows of a step together, each with what it does to them."""
    asked = {
        "training.augmentation.mixup": ("mixes", training.augmentation.mixup),
        "training.ranking": ("orders", training.ranking),
    }
    return {key: verb for key, (verb, weight) in asked.items() if weight}


_LOSSES = {
    "label_smoothing": ("classify", "multilabel", "generate"),
    "class_weights": ("classify", "multilabel"),
    "focal_gamma": ("classify", "multilabel"),
    "logit_adjustment": ("classify",),
    "augmentation.word_dropout": ("classify", "multilabel", "regress", "generate"),
    "augmentation.word_swap": ("classify", "multilabel", "regress", "generate"),
    "augmentation.word_replacement": ("classify", "multilabel", "regress", "generate"),
    "ranking": ("regress",),
    "distillation": ("classify", "multilabel", "regress"),
    "augmentation.mixup": ("classify", "multilabel", "regress"),
}
"""Keys of `Training` that not every head takes."""
