"""Low-rank adapters beside frozen weights."""

import copy
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from tl_nlp.adapters import ADAPTER_WEIGHTS, PeftMethod, refuse_unknown_family, saved_modules
from tl_nlp.errors import RecipeError
from tl_nlp.families import FAMILIES, pattern, within_block


class Lora(PeftMethod):
    """LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) through PEFT; the head learns in full and goes with it.

    An update of a frozen matrix W is (alpha / rank) B A, with A of shape (rank, in) and B of shape (out, rank).
    Variants: rslora scales by alpha / sqrt(rank) (Kalajdzievski 2023); dora learns the norm of each of W's rows apart
    (Liu et al. 2024); pissa begins with W's largest singular vectors and takes them out of W (Meng et al. 2024), so it
    needs W in float32, and it is saved as a plain LoRA of twice the rank, which fits the checkpoint as published. PEFT
    cannot read the norms that dora needs from int8 weights.
    """

    added: ClassVar[str] = ".lora_"

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all"] | None = None  # default: queries and values; all: of every block
    variant: Literal["lora", "rslora", "dora", "pissa"] = "lora"

    @property
    def loads_in(self) -> tuple[str, ...]:
        fitting = {"pissa": ("float32",), "dora": ("float32", "bfloat16", "float16", "nf4")}
        return fitting.get(self.variant, super().loads_in)

    def check(self, model: Any, head: list[str]) -> None:
        if self.target_modules is None:
            refuse_unknown_family(self, model, 'or name linear layers: method.target_modules=["..."], or all')
            return
        there = {name.rpartition(".")[2] for name in _linear(model) if within_block(name)}
        wanted = there if self.target_modules == "all" else self.target_modules
        missing = [name for name in wanted if name not in there]
        if missing or not wanted:
            raise RecipeError(
                f"{missing[0] if missing else self.target_modules!r} is no linear layer in this checkpoint's blocks; "
                f"there are: {', '.join(sorted(there)) or 'none that are known by name'}",
                "method.target_modules",
            )

    def apply(self, model: Any, head: list[str]) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_rslora=self.variant == "rslora",
            use_dora=self.variant == "dora",
            init_lora_weights="pissa" if self.variant == "pissa" else True,
            target_modules=pattern(self._targets(model)),
            modules_to_save=saved_modules(model, head),
        )
        adapted = get_peft_model(model, config)
        if self.variant == "pissa":
            adapted.pissa_start = {name: weight.clone() for name, weight in _lora_weights(adapted).items()}
        return adapted

    def _targets(self, model: Any) -> tuple[str, ...]:
        if self.target_modules is None:
            return FAMILIES[model.config.model_type].query_value
        paths = {within[1] for name in _linear(model) if (within := within_block(name))}
        return tuple(
            path
            for path in sorted(paths)
            if self.target_modules == "all" or path.rpartition(".")[2] in self.target_modules
        )

    def save(self, model: Any, folder: Path) -> None:
        if self.variant != "pissa":
            return super().save(model, folder)
        import torch
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        # what was learned is B A - B0 A0, a product of rank 2 r
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        for name, start in model.pissa_start.items():
            is_a, start = ".lora_A." in name, start.to(tensors[name].device)
            tensors[name] = torch.cat([tensors[name], start if is_a else -start], 0 if is_a else 1)
        save_file({name: weight.contiguous() for name, weight in tensors.items()}, folder / ADAPTER_WEIGHTS)
        config = copy.deepcopy(model.peft_config["default"])
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
        config.init_lora_weights, config.inference_mode = True, True
        config.save_pretrained(str(folder))


def _lora_weights(model: Any) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: weight for name, weight in weights.items() if ".lora_" in name}


def _linear(model: Any) -> list[str]:
    return [name for name, part in model.named_modules() if hasattr(part, "in_features") and hasattr(part, "weight")]
