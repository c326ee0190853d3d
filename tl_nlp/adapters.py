"""What methods of PEFT have in common: saving and loading what was added to a checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from tl_nlp.errors import CheckpointError, RecipeError
from tl_nlp.families import FAMILIES, in_head
from tl_nlp.recipe import ANY_FORMAT, Method
from tl_nlp.untrusted import refuse_config, weights_bytes

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The name that PEFT gives to an adapter's weights."""


class PeftMethod(Method):
    """Base of the methods that PEFT adds to frozen weights; the head learns in full and is saved with them."""

    opens_with: ClassVar[Literal["peft"]] = "peft"
    moves: ClassVar[Literal["blocks", "prompt"]] = "blocks"
    added: ClassVar[str]
    """What the names of the added weights contain."""

    @property
    def loads_in(self) -> tuple[str, ...]:
        return ANY_FORMAT

    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        return {name for name in weights if self.added in name or in_head(name, head)}

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(str(folder), save_embedding_layers=False)

    def load(self, model: Any, folder: Path) -> Any:
        return self._load(model, folder, "default")

    def load_beside(self, model: Any, folder: Path, name: str) -> None:
        """Adds the adapter in `folder`, under a name, to a model that has others of the same shape of head.

        Raises CheckpointError.
        """
        self._load(model, folder, name)

    def _load(self, model: Any, folder: Path, name: str) -> Any:
        from peft import PeftModel, get_peft_model_state_dict
        from safetensors import safe_open

        file = folder / ADAPTER_WEIGHTS
        if not file.is_file():
            raise CheckpointError(f"{folder} holds no {ADAPTER_WEIGHTS}, the only adapter format that is read")
        refuse_config(folder / "adapter_config.json")
        weights_bytes([file])
        try:
            with safe_open(file, "pt") as tensors:
                saved = set(tensors.keys())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of missing keys, which are an error below
                if isinstance(model, PeftModel):
                    model.load_adapter(str(folder), name, torch_device=str(model.device))
                else:
                    model = PeftModel.from_pretrained(model, str(folder), name)
        except KeyError as error:
            raise CheckpointError(f"the adapter {file} does not fit its checkpoint: it lacks {error}") from None
        except Exception as error:  # a stranger's file can raise anything
            told = str(error).splitlines() or [type(error).__name__]
            raise CheckpointError(f"the adapter {file} cannot be loaded: {told[0]}") from None
        there = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        refuse_other_weights(file, saved, set(there))
        return model


class PromptMethod(PeftMethod):
    """Base of the methods that learn `n_tokens` virtual tokens for a model that writes."""

    heads: ClassVar[tuple[str, ...]] = ("generate",)
    moves: ClassVar[Literal["prompt"]] = "prompt"
    added: ClassVar[str] = "prompt_encoder."
    is_mergeable: ClassVar[bool] = False

    n_tokens: int = Field(20, ge=1)


def saved_modules(model: Any, head: list[str]) -> list[str] | None:
    """The layers of the head, which PEFT copies, trains and saves whole; layers and not the modules around them, which
    IA3 cannot merge."""
    layers = [
        f"{name}.{inner}".rstrip(".")
        for name in head
        for inner, part in model.get_submodule(name).named_modules()
        if any(True for _ in part.parameters(recurse=False))
    ]
    return layers or None


def refuse_other_weights(file: Path, saved: set[str], wanted: set[str]) -> None:
    """Raises CheckpointError where an adapter's file does not hold exactly the weights its model has."""
    if saved != wanted:
        raise CheckpointError(
            f"the adapter {file} does not fit its checkpoint: it lacks {len(wanted - saved)} weights and has "
            f"{len(saved - wanted)} too many, {min(saved ^ wanted)} among them"
        )


def refuse_unknown_family(method: Method, model: Any, without: str) -> None:
    """Raises RecipeError where the places to add to are not known for this family; `without` tells what else fits."""
    family = model.config.model_type
    if family not in FAMILIES:
        raise RecipeError(
            f"{method.kind} knows no place for its weights in the family {family!r}; there are: "
            f"{', '.join(sorted(FAMILIES))}; {without}",
            "method",
        )
