"""Grades for essays, with ModernBERT of the Hub, which reads 2,000 words in one piece.

Command   python recipes/essays_modernbert.py data.path=essays.csv data.target=grade
Cost      not measured here: the checkpoint comes from the Hugging Face Hub
Expect    not measured here
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.files import Files
from tl_nlp.methods.full import Full
from tl_nlp.tasks.grading import Grading

recipe = Recipe(
    name="essays_modernbert",
    checkpoint=Checkpoint(name="answerdotai/ModernBERT-base"),
    data=Files(path="essays.csv"),
    task=Grading(max_length=2560, max_windows=1, pooling="mean"),
    method=Full(),
    training=Training(
        epochs=4, batch_size=16, device_batch_size="auto", lr=3e-5, head_lr=3e-4, gradient_checkpointing=True
    ),
)

if __name__ == "__main__":
    main("train", __file__)
