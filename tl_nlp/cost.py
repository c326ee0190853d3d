"""How long a training takes: measured on a few of its own steps and passes, which leave no trace, before it begins."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from tl_nlp import features
from tl_nlp.batches import Encoded, budgeted, epoch_order, window_lengths
from tl_nlp.errors import NotFiniteError
from tl_nlp.feature_cache import FeatureCache
from tl_nlp.hardware import pass_budget
from tl_nlp.memory import optimizer_bytes
from tl_nlp.prediction import Predictor
from tl_nlp.schedule import Plan, Rates
from tl_nlp.steps import Steps

PROBE = 2.0  # seconds in which a probe begins its last step, and in a quarter of it the last pass
_SHARE = 0.05  # of what it foresees, which a probe takes at most, so that it costs little where there is little to do
_MOST = 1000  # steps of an epoch whose sizes are looked at
_LARGER = 4  # times the rows of the pass before
_BYTE, _ROW, _FIXED = 4e-9, 3e-4, 1.0  # seconds, as `sentiment` took: see docs/performance.md
_AT_REST = Rates(0.0, 0.0)  # at these a step moves nothing


@dataclass(frozen=True)
class Estimate:
    """Seconds of training steps, with the features they are taken on; of evaluations, with the answers that are scored
    at last; and of the rest: what is written, loaded, compared with and drawn."""

    training: float
    evaluation: float
    rest: float

    @property
    def total(self) -> float:
        return self.training + self.evaluation + self.rest

    def __str__(self) -> str:
        parts = [
            f"{spoken(self.training)} of training steps",
            f"{spoken(self.evaluation)} of evaluations and final answers",
            f"{spoken(self.rest)} for the rest",
        ]
        return f"about {spoken(self.total)}: {', '.join(parts)}"

    def against(self, seconds: float) -> str:
        """How long it took in the end, and how far off that is."""
        off = 100 * (seconds / self.total - 1)
        told = f"{abs(off):.0f} % {'more' if off > 0 else 'less'} than was estimated"
        return f"it took {spoken(seconds)}, {told}, which was {spoken(self.total)}"


def spoken(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    if seconds < 599.5:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else "{} h {} min".format(*divmod(minutes, 60))


@dataclass(frozen=True)
class Stage:
    """A stretch of steps of one speed: the same weights learn, the head alone from states that are kept or not."""

    steps: range
    n_learning: int  # weights, by name
    on_states: bool


@dataclass(frozen=True)
class Costs:
    """Seconds that the parts of a training take here, from which those of any number of its epochs or rows follow."""

    weights: list[str]
    head: list[str]  # modules
    alone: float  # first epochs in which the head learns from states that are kept for it
    steps: dict[tuple[int, bool], float]  # a step of a stage: (weights that learn, on those states)
    features: dict[str, float]  # states read for a head alone, for each split
    below: dict[str, float]  # and by blocks that never learn
    evaluation: float
    evaluation_on_states: float
    answers: float  # once more for validation, and for the tests
    save: float  # of a checkpoint
    rest: float
    reading: float  # a token, padding included, that is read and not learned from

    def stages(self, plan: Plan) -> Iterator[Stage]:
        """The stages of a plan, which need not be the one that was measured."""
        kept = min(plan.steps, self.alone * plan.steps_per_epoch)
        for steps in plan.stages(self.weights, self.head):
            n_learning = len(plan.learning(self.weights, self.head, steps.start))
            border = int(min(max(kept, steps.start), steps.stop))
            for part, on_states in ((range(steps.start, border), True), (range(border, steps.stop), False)):
                if part:
                    yield Stage(part, n_learning, on_states)

    def of(self, plan: Plan, start: int = 0, share: float = 1.0) -> Estimate:
        """What is left of a plan after `start` steps, with a `share` of the training rows that were measured."""
        training = 0.0
        for split in self.below:
            training += (self.features[split] + self.below[split]) * (share if split == "train" else 1)
        evaluated = {*range(plan.eval_every, plan.steps + 1, plan.eval_every), plan.steps}
        saved = evaluated | set(range(plan.save_every, plan.steps + 1, plan.save_every))  # each may be the best
        evaluation = self.answers
        for stage in self.stages(plan):
            left = range(max(start, stage.steps.start), stage.steps.stop)
            if not left:
                continue
            training += len(left) * self._step(stage)
            n_evaluations = sum(step - 1 in left for step in evaluated)
            evaluation += n_evaluations * (self.evaluation_on_states if stage.on_states else self.evaluation)
        return Estimate(training, evaluation, self.rest + self.save * sum(step > start for step in saved))

    def _step(self, stage: Stage) -> float:
        """Of a stage that was not measured as that of the likest one."""
        near = min(self.steps, key=lambda key: (key[1] != stage.on_states, abs(key[0] - stage.n_learning)))
        return self.steps[near]


def measure(
    steps: Steps,
    glancing: Predictor,
    predictor: Predictor,
    watched: dict[str, Encoded],
    scored: dict[str, Encoded],
    *,
    alone: FeatureCache | None,
    later: FeatureCache | None,
    compared: int,
    loading: float,
    start: int = 0,
) -> Costs:
    """Probes a training, of which all is afterwards as it was before. Under several processes all call this together,
    and get what the first has measured.

    `watched` are the rows that are learned from and those that `glancing` answers while training goes on, `scored`
    those that `predictor` answers at last; states that are computed once, of which there may be some, are kept in
    `alone` for a head that learns alone and in `later` for blocks that learn; `compared` rows are those that baselines
    learn from or answer; `loading` the model took so many seconds. Raises HardwareError for a step that does not fit in
    memory.
    """
    model, accelerator = steps.model, steps.accelerator
    share = 1 / accelerator.num_processes  # of what is answered while training goes on
    written = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    n_scored = sum(padded(window_lengths(encoded), model) for encoded in scored.values())
    rows = watched["validation"]
    n_watched = padded(window_lengths(rows), model)
    n_evaluations = 1 + steps.plan.steps // steps.plan.eval_every
    with untouched(steps):
        rate = _answering(glancing, rows, n_evaluations * n_watched)
        last = rate if glancing.task == predictor.task else _answering(predictor, rows, n_scored)
        blank = {
            cache: {split: features.Blank(model, each, cache) for split, each in watched.items()}
            for cache in (alone, later)
            if cache is not None
        }
        writes = glancing.task.head == "generate"  # which takes the most, and of zeros it would write another text
        from_states = {
            cache: rate if writes else _answering(glancing, zeros["validation"], n_evaluations * n_watched)
            for cache, zeros in blank.items()
        }
        costs = Costs(
            weights=steps.names,
            head=steps.head_modules,
            alone=steps.epochs_alone if alone is not None else 0,
            steps={},
            features=_filling(alone, predictor, watched),
            below=_filling(later, predictor, watched),
            evaluation=(rate if later is None else from_states[later]) * n_watched * share,
            evaluation_on_states=(0.0 if alone is None else from_states[alone]) * n_watched * share,
            answers=last * n_scored,
            save=_BYTE * optimizer_bytes(steps.weights.by_name),
            rest=loading + _BYTE * written + _ROW * compared + _FIXED,
            reading=rate,
        )
        ahead = [stage for stage in costs.stages(steps.plan) if stage.steps.stop > start]
        sources = {True: alone, False: later}
        kept = {on_states: blank[cache]["train"] for on_states, cache in sources.items() if cache is not None}
        costs.steps.update(_stepping(steps, ahead, kept))
    return broadcast_object_list([costs])[0]


@contextmanager
def untouched(steps: Steps) -> Iterator[None]:
    """Steps may be taken within the block; after it weights, moments and chance are what they were."""
    own = {name: weight.detach().to("cpu", copy=True) for name, weight in steps.weights.by_name.items()}
    size, examples, was_training = steps.device_batch_size, steps.examples, steps.model.training
    with torch.random.fork_rng([steps.device] if steps.device.type == "cuda" else []):
        try:
            yield
        finally:
            steps.weights.load(own)
            steps.optimizer.zero_grad(set_to_none=True)
            steps.optimizer.state.clear()
            steps.device_batch_size, steps.examples = size, examples
            steps.model.train(was_training)
            steps.forget()


def _stepping(steps: Steps, stages: list[Stage], states: dict[bool, Encoded]) -> dict[tuple[int, bool], float]:
    """Seconds of a mean step of each stage: those on states first, which are fast, then those that learn most; from
    `states` where there are any for a head alone, or not alone."""
    ends = time.perf_counter() + PROBE
    found: dict[tuple[int, bool], float] = {}
    ordered = sorted(stages, key=lambda stage: (not stage.on_states, -stage.n_learning))
    of_tokens = steps.examples
    for place, stage in enumerate(ordered):
        key = stage.n_learning, stage.on_states
        left = _together(steps, ends - time.perf_counter())
        if key in found or (left < 0 and any(not on_states for _, on_states in found)):
            continue
        if stage.on_states in states:
            steps.examples = partial(_same, states[stage.on_states])
        found[key] = _mean_step(steps, stage, left / (len(ordered) - place))
        steps.examples = of_tokens
    return found


def _same(rows: Encoded, epoch: int) -> Encoded:
    return rows


def _mean_step(steps: Steps, stage: Stage, limit: float) -> float:
    """Seconds of the stage's mean step, from some of them, of all sizes, in proportion to their tokens."""
    epoch = (stage.steps.start + stage.steps.stop) // 2 // steps.plan.steps_per_epoch
    first = epoch * steps.plan.steps_per_epoch
    order = epoch_order(steps.lengths, steps.training.batch_size, steps.training.seed, epoch)
    here = [place for place in range(len(order)) if first + place in stage.steps]
    steps.unfreeze(stage.steps.start)
    sizes = {place: _size(steps, first + place, order[place]) for place in here[:: -(-len(here) // _MOST)]}
    ordered = sorted(sizes, key=lambda place: sizes[place])
    seconds_of_step(steps, first + ordered[0])  # what is made ready once
    spent = done = 0.0
    for at in _spread(len(ordered)):
        place = ordered[at]
        spent += seconds_of_step(steps, first + place)
        done += sizes[place]
        mean = spent / done * sum(sizes.values()) / len(sizes)
        if spent > min(limit, _SHARE * mean * len(stage.steps)):
            break
    return mean


def seconds_of_step(steps: Steps, step: int) -> float:
    """Of one step that moves nothing, over all processes together."""
    started = time.perf_counter()
    with suppress(NotFiniteError):  # the training will say so, and it took no less time
        steps.take(step, _AT_REST)
    return _together(steps, time.perf_counter() - started)


def _together(steps: Steps, seconds: float) -> float:
    """The mean over all processes, which so decide the same."""
    return float(steps.accelerator.reduce(torch.tensor(seconds, device=steps.device), "mean"))


def _size(steps: Steps, step: int, rows: list[int]) -> int:
    """The tokens of a step, padding included."""
    return sum(_padded(steps.lengths, part) for part in steps.passes(step, rows))


def _answering(predictor: Predictor, encoded: Encoded, n_tokens: float) -> float:
    """Seconds for a token of rows that are answered; see `_a_token`."""
    return _a_token(predictor.infer, encoded, predictor.passes(window_lengths(encoded)), n_tokens)


def _filling(cache: FeatureCache | None, predictor: Predictor, splits: dict[str, Encoded]) -> dict[str, float]:
    """Seconds in which a cache gets what it does not have of each split."""
    if cache is None:
        return dict.fromkeys(splits, 0.0)
    model, pad_id, precision, n_above = predictor.model, predictor.pad_id, predictor.precision, cache.n_above

    def read(rows: Encoded) -> None:
        deque(features.last_states(model, rows, pad_id, precision, "", n_above), maxlen=0)

    new = {split: rows.select(features.unread(rows, cache)) for split, rows in splits.items()}
    n_tokens = {split: padded(window_lengths(rows), model) for split, rows in new.items()}
    rows = max(new.values(), key=len)
    if not len(rows):
        return dict.fromkeys(splits, 0.0)
    parts = list(budgeted(window_lengths(rows), pass_budget(model)))
    a_token = _a_token(read, rows, parts, sum(n_tokens.values()))
    return {split: a_token * n for split, n in n_tokens.items()}


def _a_token(use: Callable[[Encoded], object], encoded: Encoded, parts: list[list[int]], n_tokens: float) -> float:
    """Seconds for a token, padding included, of which `n_tokens` will be used: from passes, one of the `parts`, that
    grow until one is whole or they take long, after one that makes ready."""
    lengths = window_lengths(encoded)
    rows = parts[len(parts) // 2]

    def timed(some: list[int]) -> float:
        started = time.perf_counter()
        use(encoded.select(some))
        return time.perf_counter() - started

    spent, some = 0.0, rows[:1]
    if (seconds := timed(some)) < PROBE:
        while True:
            some = rows[: _LARGER * len(some)]
            seconds = timed(some)
            spent += seconds
            foreseen = seconds / _padded(lengths, some) * n_tokens
            if len(some) == len(rows) or spent > min(PROBE / 4, _SHARE * foreseen):
                break
    return seconds / _padded(lengths, some)


def padded(lengths: Sequence[list[int]], model: Any) -> int:
    """The tokens of all rows, padding included, as a model reads them."""
    return sum(_padded(lengths, rows) for rows in budgeted(lengths, pass_budget(model)))


def _padded(lengths: Sequence[list[int]], rows: list[int]) -> int:
    """The tokens of rows in one pass, padding included."""
    return sum(len(lengths[row]) for row in rows) * max(max(lengths[row]) for row in rows)


def _spread(n: int) -> Iterator[int]:
    """All places of `n`, the middle first, then those that halve the gaps."""
    gaps = [(0, n)]
    for start, end in gaps:
        if start < end:
            middle = (start + end) // 2
            yield middle
            gaps += [(start, middle), (middle + 1, end)]
