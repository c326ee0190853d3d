"""What a model sees while it is trained: rows that it learns from and is asked, as tokens or as kept states."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tl_nlp import features
from tl_nlp.batches import Encoded
from tl_nlp.checking import sampled
from tl_nlp.cost import Costs, measure
from tl_nlp.feature_cache import FeatureCache
from tl_nlp.prediction import Predictor
from tl_nlp.preparation import Prepared
from tl_nlp.recipe import Task
from tl_nlp.steps import Steps


@dataclass
class Watched:
    """The rows that it learns from, and those of validation, all or a sample, that it answers as `task` says."""

    task: Task
    places: np.ndarray  # of the validation rows
    encoded: dict[str, Encoded]
    is_cached: bool  # whether the head learns alone from states that are computed once
    cache: FeatureCache | None  # of these states, where it reads one of each window
    is_frozen: bool  # whether the head learns alone to the end, so that states tell all answers

    @classmethod
    def of(cls, prepared: Prepared, steps: Steps, predictor: Predictor) -> Watched:
        task, most = prepared.recipe.task.glance()
        n_rows = len(prepared.encoded["validation"])
        places = sampled(n_rows, n_rows if most is None else most)
        shown = {"train": prepared.encoded["train"], "validation": prepared.encoded["validation"].select(places)}
        cached = bool(steps.epochs_alone) and not prepared.recipe.training.augmentation.changes_rows
        kind = features.kind_of(predictor.model, predictor.head) if cached else None
        in_head = steps.weights.in_head & steps.weights.of_model.keys()
        cached = cached and features.is_cacheable(predictor.model, in_head, list(shown.values()), kind)
        cache = features.cache_of(predictor.model, predictor.precision, kind) if cached and kind else None
        frozen = cache is not None and steps.epochs_alone >= prepared.recipe.training.epochs
        return cls(task, places, shown, cached, cache, frozen)

    def states(self, predictor: Predictor, encoded: Encoded, split: str) -> Encoded:
        """What the head reads of rows, from the cache where it has them."""
        description = f"features of {split}"
        return features.compute(
            predictor.model, encoded, predictor.pad_id, predictor.precision, description, self.cache
        )

    def infer(self, predictor: Predictor, encoded: Encoded, split: str) -> list[np.ndarray]:
        """What a predictor infers of rows: of a backbone that has not moved from the states that are kept."""
        if self.cache is None or not self.is_frozen:
            return predictor.infer(encoded)
        # by its own weights, which may have been written and read since
        own = replace(self, cache=features.cache_of(predictor.model, predictor.precision, self.cache.kind))
        states = own.states(predictor, encoded, split)
        with features.reading_features(predictor.model):
            return predictor.infer(states)


def costs_of(
    prepared: Prepared,
    steps: Steps,
    predictor: Predictor,
    watched: Watched,
    compared: int,
    loading: float,
    start: int = 0,
) -> Costs:
    """What training costs from step `start` on, by a probe; baselines learn from or answer `compared` rows, and the
    model took `loading` seconds to load."""
    is_calibrated = type(prepared.recipe.task).calibrated is not Task.calibrated
    learned = {"train"} if is_calibrated and not watched.is_frozen else {"train", "validation"}
    scored = {split: rows for split, rows in prepared.encoded.items() if split not in learned}
    if watched.is_frozen:
        scored = {split: rows.select(features.unread(rows, watched.cache)) for split, rows in scored.items()}
    return measure(
        steps,
        Predictor(predictor.model, prepared.tokenizer, watched.task, predictor.precision),
        predictor,
        watched.encoded,
        scored,
        cached=watched.is_cached,
        cache=watched.cache,
        compared=compared,
        loading=loading,
        start=start,
    )
