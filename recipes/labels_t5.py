"""The subject of a news text, written as a word: the task that writes in the place of a head that classifies.

Command   python recipes/labels_t5.py
Cost      not measured here: the checkpoint and the data set come from the Hugging Face Hub
Expect    not measured here; exact_match is the accuracy
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.hub import Hub
from tl_nlp.methods.lora import Lora
from tl_nlp.tasks.summarization import Summarization

recipe = Recipe(
    name="labels_t5",
    checkpoint=Checkpoint(name="google/flan-t5-small"),
    data=Hub(name="fancyzhx/ag_news", test="test", target="label", values={"Sci/Tech": "Science"}),
    task=Summarization(prefix="Subject of the news: ", max_length=128, max_new_tokens=4),
    method=Lora(rank=16, alpha=32),
    training=Training(epochs=1, batch_size=64, device_batch_size=16, lr=1e-3),
)

if __name__ == "__main__":
    main("train", __file__)
