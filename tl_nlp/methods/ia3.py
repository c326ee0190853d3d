"""Learned scales of keys, values and feed-forward states."""

from typing import Any, ClassVar

from tl_nlp.adapters import PeftMethod, refuse_unknown_family, saved_modules
from tl_nlp.families import FAMILIES, pattern


class Ia3(PeftMethod):
    """(IA)^3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638) through PEFT: the fewest weights of all adapters.

    Where one layer projects queries, keys and values together (ModernBERT, DeBERTa), queries are scaled too.
    """

    added: ClassVar[str] = ".ia3_"

    def check(self, model: Any, head: list[str]) -> None:
        refuse_unknown_family(self, model, "method=lora with method.target_modules=all fits most others")

    def apply(self, model: Any, head: list[str]) -> Any:
        from peft import IA3Config, get_peft_model

        family = FAMILIES[model.config.model_type]
        config = IA3Config(
            target_modules=pattern((*family.key_value, *family.feedforward_out)),
            feedforward_modules=pattern(family.feedforward_out),
            modules_to_save=saved_modules(model, head),
        )
        return get_peft_model(model, config)
