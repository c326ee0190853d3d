"""Learned embeddings in front of the text, for models that write."""

from typing import Any

from tl_nlp.adapters import PromptMethod


class Prompt(PromptMethod):
    """Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691) through PEFT."""

    @property
    def n_positions(self) -> int:
        return self.n_tokens

    def apply(self, model: Any, head: list[str]) -> Any:
        from peft import PromptTuningConfig, get_peft_model

        return get_peft_model(model, PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=self.n_tokens))
