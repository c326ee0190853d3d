"""Low-rank adapters beside frozen weights."""

import warnings
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tl_nlp.errors import CheckpointError, RecipeError
from tl_nlp.recipe import Method


class Lora(Method):
    """LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) through PEFT; the head learns in full and goes with it.

    An update of a frozen matrix W is (alpha / rank) B A, with A of shape (rank, in) and B of shape (out, rank).
    """

    loads_in: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16", "int8", "nf4")
    is_adapter: ClassVar[bool] = True

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None  # default: the query and value projections of every block

    def apply(self, model: Any, head: list[str]) -> Any:
        from peft import LoraConfig, get_peft_model

        there = {name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)}
        targets = self.target_modules or _QUERY_VALUE.get(model.config.model_type, ())
        missing = [name for name in targets if name not in there]
        if missing or not targets:
            raise RecipeError(
                f"{missing[0]!r} is no linear layer of this checkpoint"
                if missing
                else f"no default for the family {model.config.model_type!r}; name linear layers of this checkpoint"
                + f"; there are: {', '.join(sorted(there - {module.rpartition('.')[2] for module in head}))}",
                "method.target_modules",
            )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(targets),
            modules_to_save=list(head) or None,
        )
        return get_peft_model(model, config)

    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        return {name for name in weights if ".lora_" in name or ".modules_to_save." in name}

    def load(self, model: Any, folder: Path) -> Any:
        from peft import PeftModel, get_peft_model_state_dict
        from safetensors import SafetensorError, safe_open

        file = folder / "adapter_model.safetensors"
        if not file.is_file():
            raise CheckpointError(f"{folder} holds no adapter_model.safetensors, the only adapter format that is read")
        try:
            with safe_open(file, "pt") as tensors:
                saved = set(tensors.keys())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of missing keys, which are an error below
                model = PeftModel.from_pretrained(model, str(folder))
        except KeyError as error:
            raise CheckpointError(f"the adapter {file} does not fit its checkpoint: it lacks {error}") from None
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the adapter {file} cannot be loaded: {str(error).splitlines()[0]}") from None
        wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        if saved != wanted:
            raise CheckpointError(
                f"the adapter {file} does not fit its checkpoint: it lacks {len(wanted - saved)} weights and has "
                f"{len(saved - wanted)} too many, {min(saved ^ wanted)} among them"
            )
        return model


_QUERY_VALUE = {
    "albert": ("query", "value"),
    "bart": ("q_proj", "v_proj"),
    "bert": ("query", "value"),
    "camembert": ("query", "value"),
    "deberta": ("in_proj",),
    "deberta-v2": ("query_proj", "value_proj"),
    "distilbert": ("q_lin", "v_lin"),
    "electra": ("query", "value"),
    "mbart": ("q_proj", "v_proj"),
    "modernbert": ("Wqkv",),
    "mpnet": ("q", "v"),
    "mt5": ("q", "v"),
    "pegasus": ("q_proj", "v_proj"),
    "roberta": ("query", "value"),
    "t5": ("q", "v"),
    "xlm-roberta": ("query", "value"),
}


def _is_linear(module: Any) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")
