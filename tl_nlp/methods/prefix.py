"""Learned keys and values in front of what is written, in every block of the decoder."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from tl_nlp.adapters import PeftMethod


class Prefix(PeftMethod):
    """Prefix tuning (Li & Liang 2021, https://arxiv.org/abs/2101.00190) through PEFT, in the decoder alone."""

    heads: ClassVar[tuple[str, ...]] = ("generate",)
    moves: ClassVar[Literal["prompt"]] = "prompt"
    added: ClassVar[str] = "prompt_encoder."
    is_mergeable: ClassVar[bool] = False

    n_tokens: int = Field(20, ge=1)

    def apply(self, model: Any, head: list[str]) -> Any:
        from peft import PrefixTuningConfig, get_peft_model

        return get_peft_model(model, PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=self.n_tokens))
