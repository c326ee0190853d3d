"""Bottleneck adapters inside frozen blocks."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from tl_nlp.adapters import refuse_other_weights, refuse_unknown_family
from tl_nlp.errors import CheckpointError
from tl_nlp.families import FAMILIES, head_modules, in_head, pattern
from tl_nlp.recipe import ANY_FORMAT, Method
from tl_nlp.untrusted import weights_bytes

FILE = "adapter.safetensors"


class Adapter(Method):
    """Bottleneck adapters: x + up(gelu(down(x))) on what a sublayer gives to the residual stream.

    houlsby puts one after the attention and one after the feed-forward layer of every block (Houlsby et al. 2019,
    https://arxiv.org/abs/1902.00751), pfeiffer only the latter (Pfeiffer et al. 2021,
    https://arxiv.org/abs/2005.00247). Both stand before the residual sum, and the norms stay as pretrained. They
    compute what the checkpoint's own layers cannot, so they merge into nothing: the artifact is a small safetensors
    file with the recipe's JSON, and needs this package.
    """

    opens_with: ClassVar[Literal["tl_nlp"]] = "tl_nlp"
    is_mergeable: ClassVar[bool] = False
    moves: ClassVar[Literal["blocks"]] = "blocks"

    size: int = Field(32, ge=1)  # width of the bottleneck
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"

    @property
    def loads_in(self) -> tuple[str, ...]:
        return ANY_FORMAT

    def check(self, model: Any, head: list[str]) -> None:
        refuse_unknown_family(self, model, "method=lora with method.target_modules=all fits most others")

    def apply(self, model: Any, head: list[str]) -> Any:
        from tl_nlp.bottleneck import insert

        family = FAMILIES[model.config.model_type]
        paths = family.feedforward_out + (family.attention_out if self.placement == "houlsby" else ())
        insert(model, pattern(paths), self.size)
        return model

    def learning(self, weights: list[str], head: list[str], epoch: float) -> set[str]:
        return {name for name in weights if ".adapter." in name or in_head(name, head)}

    def save(self, model: Any, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: weight.detach().contiguous() for name, weight in self._own(model).items()}, folder / FILE)

    def _own(self, model: Any) -> dict[str, Any]:
        weights = dict(model.named_parameters())
        return {name: weights[name] for name in self.learning(list(weights), head_modules(model), 0.0)}

    def load(self, model: Any, folder: Path) -> Any:
        import torch
        from safetensors.torch import load_file

        file = folder / FILE
        if not file.is_file():
            raise CheckpointError(f"{folder} holds no {FILE}")
        weights_bytes([file])
        tensors = load_file(file)
        if not any(self.size in tensor.shape for tensor in tensors.values()):  # before memory is taken for it
            raise CheckpointError(f"the adapter {file} does not fit its recipe: no weight in it is {self.size} wide")
        model = self.apply(model, head_modules(model))
        own = self._own(model)
        refuse_other_weights(file, set(tensors), set(own))
        for name, weight in own.items():
            if weight.shape != tensors[name].shape:
                raise CheckpointError(
                    f"the adapter {file} does not fit its checkpoint: {name} has the shape "
                    f"{tuple(tensors[name].shape)}, not {tuple(weight.shape)}"
                )
            with torch.no_grad():
                weight.copy_(tensors[name])
        return model
