"""What a smaller model keeps of a larger one: size, latency and score of a run and of students of fewer blocks.

Command   python benchmarks/distilling.py RUN [SEEDS] [BLOCKS ...]

RUN is a finished run of labels or grades whose method saves whole models, such as one of recipes/sentiment.py. For
each number of BLOCKS (3) and each of SEEDS (1) its recipe is trained again on that many of the checkpoint's blocks, all
of which learn: plainly, with the run's answers, and with its answers and states. These runs go under $TL_NLP_RUNS;
called again, it goes on where it stopped, and what is finished is only read. Latency is the median over the first 200
test texts, one at a time, the models taking turns, three times round. A verdict is the student's against RUN on the
same test rows, as tl-nlp compare gives it. The table is printed as Markdown.
"""

import sys
import time
from statistics import median

import torch
from resuming import trained
from safetensors.numpy import load_file
from transformers.utils import logging

from tl_nlp import Predictor, Run
from tl_nlp.evaluation import compare, read_predictions
from tl_nlp.hardware import device_name
from tl_nlp.run import runs_root

N_TEXTS = 200
ROUNDS = 3
VARIANTS = {
    "plain": (),
    "answers": ("training.distillation.weight=0.5",),
    "answers and states": ("training.distillation.weight=0.5", "training.distillation.hidden=1"),
}


def main() -> None:
    logging.disable_progress_bar()
    teacher = Run.open(sys.argv[1])
    folder = runs_root() / f"distilling-{teacher.folder.name}"
    n_seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    runs = {("the run itself", ""): teacher}
    for blocks in map(int, sys.argv[3:] or ["3"]):
        for variant, overrides in VARIANTS.items():
            taught = [f"training.distillation.teacher={teacher.folder}", *overrides] if overrides else []
            for seed in range(n_seeds):
                student = ["method=full", "method.embeddings=false", f"checkpoint.blocks={blocks}"]
                recipe = teacher.recipe().override(*student, f"training.seed={seed}", *taught)
                name = "-".join([f"blocks{blocks}", *variant.split(), f"seed{seed}"])
                runs[f"{blocks} blocks, {variant}", str(seed)] = trained(name, recipe, folder)
    waits = latencies(list(runs.values()))
    metric = teacher.results()["main_metric"]
    print(f"{device_name(torch.device('cpu'))}\n")
    print(f"| model | seed | weights, millions | artifact, MB | p50, ms | {metric} on test | against the run |")
    print("|---|---|---|---|---|---|---|")
    for ((name, seed), run), wait in zip(runs.items(), waits, strict=True):
        found = run.results()["splits"]["test"]["metrics"][metric]
        score = f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
        size = f"{n_weights(run) / 1e6:.2f} | {n_bytes(run) / 1e6:.1f}"
        against = "" if run is teacher else verdict(run, teacher)
        print(f"| {name} | {seed} | {size} | {1000 * wait:.2f} | {score} | {against} |")


def verdict(run: Run, teacher: Run) -> str:
    (gap,) = compare([run, teacher])["differences"]
    return f"{gap['verdict']}: {gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"


def n_weights(run: Run) -> int:
    return sum(weight.size for file in run.artifact.glob("*.safetensors") for weight in load_file(file).values())


def n_bytes(run: Run) -> int:
    return sum(path.stat().st_size for path in run.artifact.iterdir())


def latencies(runs: list[Run]) -> list[float]:
    """The median time of one text, in seconds, of each run."""
    predictors = [Predictor.load(run) for run in runs]
    _, rows = read_predictions(runs[0].predictions_file("test"), predictors[0].task)
    names = [name for name in ("text", "pair", "group", *predictors[0].task.columns) if name in rows]
    requests = [
        {"pairs" if name == "pair" else name: [value] for name, value in zip(names, values, strict=True)}
        for values in list(zip(*(rows[name] for name in names), strict=True))[:N_TEXTS]
    ]
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for request in requests:
            texts, more = request["text"], {name: value for name, value in request.items() if name != "text"}
            for predictor, own in zip(predictors, times, strict=True):
                start = time.perf_counter()
                predictor(texts, **more)
                own.append(time.perf_counter() - start)
    return [median(own) for own in times]


if __name__ == "__main__":
    main()
