"""Summaries of United States bills, written by T5 of the Hub with LoRA.

Command   python recipes/summarization_t5.py
Cost      not measured here: the checkpoint and the data set come from the Hugging Face Hub
Expect    not measured here
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.hub import Hub
from tl_nlp.methods.lora import Lora
from tl_nlp.tasks.summarization import Summarization

recipe = Recipe(
    name="summarization_t5",
    checkpoint=Checkpoint(name="google-t5/t5-small"),
    data=Hub(name="FiscalNote/billsum", test="test", target="summary"),
    task=Summarization(prefix="summarize: ", max_length=512, max_new_tokens=128, beams=4),
    method=Lora(rank=16, alpha=32),
    training=Training(epochs=3, batch_size=32, device_batch_size=8, lr=1e-3),
)

if __name__ == "__main__":
    main("train", __file__)
