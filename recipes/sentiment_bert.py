"""Sentiment of sentences from movie reviews, with BERT of the Hub and LoRA.

Command   python recipes/sentiment_bert.py
Cost      not measured here: the checkpoint and the data set come from the Hugging Face Hub
Expect    not measured here
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.hub import Hub
from tl_nlp.methods.lora import Lora
from tl_nlp.tasks.classification import Classification

recipe = Recipe(
    name="sentiment_bert",
    checkpoint=Checkpoint(name="google-bert/bert-base-uncased"),
    data=Hub(
        name="cornell-movie-review-data/rotten_tomatoes",
        validation="validation",
        test="test",
        target="label",
        values={"neg": "negative", "pos": "positive"},
    ),
    task=Classification(labels=("negative", "positive"), max_length=128),
    method=Lora(rank=16, alpha=32),
    training=Training(epochs=3, lr=5e-4),
)

if __name__ == "__main__":
    main("train", __file__)
