"""Learned keys and values in front of what is written, in every block of the decoder."""

from typing import Any

from tl_nlp.adapters import PromptMethod


class Prefix(PromptMethod):
    """Prefix tuning (Li & Liang 2021, https://arxiv.org/abs/2101.00190) through PEFT, in the decoder alone."""

    def apply(self, model: Any, head: list[str]) -> Any:
        from peft import PrefixTuningConfig, get_peft_model

        return get_peft_model(model, PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=self.n_tokens))
