"""What choices of how the machine is used are worth: rows a second of sentiment's training, one changed at a time.

Command   python benchmarks/choices.py [TIMES]

Rows a second of the training itself, from the difference between 3 epochs and 1 on a fifth of the rows, as in
against_trainer.py; TIMES (5) turns, all in turn, and the ratio of the medians is what to quote.
"""

import sys
from statistics import median

from against_trainer import DEVICE, ours, part_of, sentiment
from transformers.utils import logging

from tl_nlp.hardware import device_name
from tl_nlp.rows import resolved

AS_CHOSEN = "as chosen"
CHOICES: dict[str, tuple[str, ...]] = {
    AS_CHOSEN: (),
    "precision=float32": ("training.precision=float32",),
    "compute.attention=sdpa": ("training.compute.attention=sdpa",),
    "compute.optimizer=foreach": ("training.compute.optimizer=foreach",),
    "compute.threads=1": ("training.compute.threads=1",),
    "all blocks learn": ("method=full", "method.embeddings=false"),
    "all weights learn": ("method=full",),
    "dropout=0.1": ("training.dropout=0.1",),
    "dropout=0.1 compute.dropout=torch": ("training.dropout=0.1", "training.compute.dropout=torch"),
}


def main(times: int) -> None:
    logging.set_verbosity_error()
    few = part_of(sentiment(), 5)
    n_rows = len(resolved(few)[1]["train"])
    rates: dict[str, list[float]] = {name: [] for name in CHOICES}
    for _ in range(times):
        for name, rate in rates.items():
            recipe = few.override(*CHOICES[name])
            one, three = (ours(recipe, float(epochs), seed=0).seconds for epochs in (1, 3))
            rate.append(2 * n_rows / (three - one))
            print(f"{name:40} {rate[-1]:7.1f} rows a second", file=sys.stderr, flush=True)
    usual = median(rates[AS_CHOSEN])
    print(device_name(DEVICE))
    print(f"{'':40} {'rows/s':>7} {'lowest':>7} {'highest':>8} {'of chosen':>9}")
    for name, rate in rates.items():
        print(f"{name:40} {median(rate):7.1f} {min(rate):7.1f} {max(rate):8.1f} {median(rate) / usual:9.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
