"""What a model sees while it is trained: rows that it learns from and is asked, as tokens or as kept states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tl_nlp import features
from tl_nlp.batches import Encoded
from tl_nlp.checking import sampled
from tl_nlp.cost import Costs, measure
from tl_nlp.feature_cache import FeatureCache
from tl_nlp.prediction import Predictor
from tl_nlp.preparation import Prepared
from tl_nlp.recipe import Task
from tl_nlp.states import reads_states
from tl_nlp.steps import Steps


@dataclass
class Watched:
    """The rows that it learns from, and those of validation, all or a sample, that it answers as `task` says."""

    task: Task
    places: np.ndarray  # of the validation rows
    encoded: dict[str, Encoded]
    alone: FeatureCache | None  # of what the encoder gives, in the epochs in which a head learns alone
    later: FeatureCache | None  # of what the lowest block that ever learns reads
    is_frozen: bool  # whether the head learns alone to the end, so that states tell all answers

    @classmethod
    def of(cls, prepared: Prepared, steps: Steps, predictor: Predictor) -> Watched:
        task, most = prepared.recipe.task.glance()
        n_rows = len(prepared.encoded["validation"])
        places = sampled(n_rows, n_rows if most is None else most)
        shown = {"train": prepared.encoded["train"], "validation": prepared.encoded["validation"].select(places)}
        alone = later = None
        model, precision = predictor.model, predictor.precision
        if reads_states(model) and not prepared.recipe.training.augmentation.changes_rows:
            if steps.epochs_alone and features.head_is_outside(model):
                kind = features.kind_of(model, predictor.head)
                if features.fits(model, list(shown.values()), kind):
                    alone = features.cache_of(model, precision, kind)
            # a teacher looks at the states of all blocks, and compiled ones are left as they are
            reads_all = steps.teacher is not None or steps.training.compute.compile == "always"
            if steps.n_above is not None and not reads_all and features.fits(model, list(shown.values()), "tokens"):
                later = features.cache_of(model, precision, "tokens", steps.n_above)
        is_to_end = steps.epochs_alone >= prepared.recipe.training.epochs
        frozen = alone is not None and alone.kind != "tokens" and is_to_end
        return cls(task, places, shown, alone, later, frozen)

    def source(self, is_alone: bool) -> FeatureCache | None:
        """What stands for tokens while the head learns alone or later; None where nothing does."""
        return self.alone if is_alone and self.alone is not None else self.later

    def read(self, predictor: Predictor) -> dict[FeatureCache | None, dict[str, Encoded]]:
        """The rows of each split as each source has them."""
        return {
            source: {
                split: rows if source is None else _states(predictor, rows, split, source)
                for split, rows in self.encoded.items()
            }
            for source in dict.fromkeys((None, self.alone, self.later))
        }

    def infer(self, predictor: Predictor, encoded: Encoded, split: str) -> list[np.ndarray]:
        """What a predictor infers of rows: of a backbone that has not moved from the states that are kept."""
        if self.alone is None or not self.is_frozen:
            return predictor.infer(encoded)
        # by its own weights, which may have been written and read since
        cache = features.cache_of(predictor.model, predictor.precision, self.alone.kind)
        return predictor.infer(_states(predictor, encoded, split, cache))


def _states(predictor: Predictor, encoded: Encoded, split: str, cache: FeatureCache) -> Encoded:
    return features.compute(
        predictor.model, encoded, predictor.pad_id, predictor.precision, f"features of {split}", cache
    )


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
    if watched.is_frozen and watched.alone is not None:
        cache = watched.alone
        scored = {split: rows.select(features.unread(rows, cache)) for split, rows in scored.items()}
    return measure(
        steps,
        Predictor(predictor.model, prepared.tokenizer, watched.task, predictor.precision),
        predictor,
        watched.encoded,
        scored,
        alone=watched.alone,
        later=watched.later,
        compared=compared,
        loading=loading,
        start=start,
    )
