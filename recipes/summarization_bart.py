"""Summaries of conversations, written by BART-base of the Hub.

Command   python recipes/summarization_bart.py
Cost      not measured here: the checkpoint and the data set come from the Hugging Face Hub
Expect    not measured here
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.hub import Hub
from tl_nlp.methods.full import Full
from tl_nlp.tasks.summarization import Summarization

recipe = Recipe(
    name="summarization_bart",
    checkpoint=Checkpoint(name="facebook/bart-base"),
    data=Hub(
        name="knkarthick/dialogsum", validation="validation", test="test", text="dialogue", target="summary", id="id"
    ),
    task=Summarization(max_length=512, max_new_tokens=96, beams=4, no_repeat_ngrams=3),
    method=Full(),
    training=Training(epochs=3, batch_size=32, device_batch_size=8, lr=3e-5, label_smoothing=0.1),
)

if __name__ == "__main__":
    main("train", __file__)
