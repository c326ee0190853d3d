"""Plain words for hard ones: the task that writes, learning from a file of sentences with simpler ones.

Command   python recipes/simplification_t5.py data.path=pairs.csv data.text=hard data.target=plain
Cost      not measured here: the checkpoint comes from the Hugging Face Hub
Expect    not measured here; read novel_bigrams and compression beside ROUGE, a copy of the text scores high
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.files import Files
from tl_nlp.methods.lora import Lora
from tl_nlp.tasks.summarization import Summarization

recipe = Recipe(
    name="simplification_t5",
    checkpoint=Checkpoint(name="google-t5/t5-small"),
    data=Files(path="pairs.csv"),
    task=Summarization(prefix="simplify: ", max_length=128, max_new_tokens=128, beams=4),
    method=Lora(rank=16, alpha=32),
    training=Training(epochs=3, batch_size=32, device_batch_size=16, lr=1e-3),
)

if __name__ == "__main__":
    main("train", __file__)
