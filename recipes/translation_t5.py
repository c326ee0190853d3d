"""English into French: the task that writes, with another prefix and other data.

Command   python recipes/translation_t5.py
Cost      not measured here: the checkpoint and the data set come from the Hugging Face Hub
Expect    not measured here
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.hub import Hub
from tl_nlp.methods.lora import Lora
from tl_nlp.tasks.summarization import Summarization

recipe = Recipe(
    name="translation_t5",
    checkpoint=Checkpoint(name="google-t5/t5-small"),
    data=Hub(
        name="sentence-transformers/parallel-sentences-talks", config="en-fr", text="english", target="non_english"
    ),
    task=Summarization(prefix="translate English to French: ", max_length=128, max_new_tokens=128, beams=4),
    method=Lora(rank=16, alpha=32),
    training=Training(epochs=1, batch_size=64, device_batch_size=16, lr=1e-3),
)

if __name__ == "__main__":
    main("train", __file__)
