"""kill -9 inside saves: one training, killed again and again while it writes a checkpoint, until it is done.

    python benchmarks/crash.py [KILLS INSIDE A SAVE] [SEED]

Every session is killed at a random moment of one of its first saves, which the folder that is being written tells.
Survived is a kill after which each checkpoint that is there is whole, none that was there is lost, and the next session
goes on from the newest one. At the end the weights must be those of a training that nobody has disturbed.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from conftest import TINY, review_rows, write_jsonl

from tl_nlp import Checkpoint, Recipe, Run, checkpoints, train
from tl_nlp.data.files import Files
from tl_nlp.errors import RunError

LONGEST = 0.04  # seconds from the beginning of a save to the kill; a save takes about that here


def small_checkpoint(folder: Path) -> Path:
    """A BERT of 2 layers with random weights, large enough that a save takes a while: 12 MB in a checkpoint."""
    import torch
    from conftest import _tokenizer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = _tokenizer(
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=192, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=768, max_position_embeddings=128,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def killed_in_a_save(run: Run, draw: random.Random) -> str:
    """One session; where it was killed: "inside", "between" saves, or "finished" before that."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tl_nlp", "train", str(run.folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    folder, n_saves, was_writing = run.folder / "checkpoints", draw.randint(1, 3), False
    while process.poll() is None:
        writes = folder.is_dir() and any(name.startswith(".step-") for name in os.listdir(folder))
        n_saves -= writes and not was_writing
        was_writing = writes
        if not n_saves:
            time.sleep(draw.uniform(0, LONGEST))
            process.kill()
            process.wait()
            return "inside" if any(folder.glob(".step-*")) else "between"
        time.sleep(0.0005)
    return "finished"


def survived(run: Run, before: list[int]) -> bool:
    """Whether all checkpoints that are there are whole, and the newest is no older than it was."""
    steps = run.checkpoint_steps()
    try:
        for step in steps:
            checkpoints.check(run.checkpoint_dir(step))
    except RunError as error:
        print(error)
        return False
    return not before or steps[-1] >= before[-1]


def main(n_kills: int = 50, seed: int = 0) -> None:
    draw = random.Random(seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"TL_NLP_RUNS": str(folder / "runs"), "TL_NLP_CACHE": str(folder / "cache")}
        recipe = Recipe(
            name="crash",
            checkpoint=Checkpoint(name=str(small_checkpoint(folder / "checkpoint"))),
            data=Files(path=write_jsonl(folder / "rows.jsonl", review_rows(300))),
            task={"kind": "classification", "max_length": 64},
            training=TINY.model_copy(update={"epochs": n_kills / 3, "save_every": 0.1, "dropout": 0.1}),
        )
        run = Run.create(recipe)
        places = {"inside": 0, "between": 0}
        n_survived = 0
        while places["inside"] < n_kills:
            before = run.checkpoint_steps()
            place = killed_in_a_save(run, draw)
            if place == "finished":
                break
            places[place] += 1
            n_survived += survived(run, before)
        n = sum(places.values())
        print(
            f"{n} kills, {places['inside']} of them inside a save; survived {n_survived} ({100 * n_survived / n:.1f} %)"
        )
        run, whole = train(run), train(recipe)
        files = [next(one.model_dir.glob("*.safetensors")).read_bytes() for one in (run, whole)]
        same = "the same bytes as" if files[0] == files[1] else "OTHER BYTES THAN"
        print(f"at the end, after {n + 1} sessions: {same} an undisturbed training")
        if n_survived < n or files[0] != files[1]:
            sys.exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
