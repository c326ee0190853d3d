"""Labels for texts that have none: which to ask for first, what people said, how far they agree, the next run."""

from tl_nlp.labelling.agreement import Agreement, cohen_kappa
from tl_nlp.labelling.retraining import Retraining, retrain_recipe, retraining
from tl_nlp.labelling.store import Example, Labelling
from tl_nlp.labelling.strategies import STRATEGIES, order

__all__ = [
    "STRATEGIES",
    "Agreement",
    "Example",
    "Labelling",
    "Retraining",
    "cohen_kappa",
    "order",
    "retrain_recipe",
    "retraining",
]
