"""Fine-tune pretrained language models with recipes, and measure whether it helped."""

from typing import TYPE_CHECKING, Any

from tl_nlp.recipe import Checkpoint, Licence, Recipe, Training, load_recipe
from tl_nlp.run import Run

if TYPE_CHECKING:
    from tl_nlp.evaluation import evaluate
    from tl_nlp.prediction import Predictor
    from tl_nlp.studies import train

__all__ = ["Checkpoint", "Licence", "Predictor", "Recipe", "Run", "Training", "evaluate", "load_recipe", "train"]

_HEAVY = {"train": "tl_nlp.studies", "evaluate": "tl_nlp.evaluation", "Predictor": "tl_nlp.prediction"}


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is first asked for, so that `tl-nlp list` answers at once."""
    if name not in _HEAVY:
        raise AttributeError(f"module 'tl_nlp' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HEAVY[name]), name)
