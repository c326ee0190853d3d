"""The command line: what can be asked, and how its errors are told."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from tl_nlp import signals, verbs
from tl_nlp.errors import TLError
from tl_nlp.run import runs_root


def main(*words: str) -> NoReturn:
    """Runs the command line of `words` followed by the process's arguments, and exits with its status."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    gc.set_threshold(_NEW_OBJECTS)
    atexit.register(gc.freeze)  # or a second goes into looking once more through all that imports have made
    arguments = _parser().parse_args([*words, *sys.argv[1:]])
    try:
        with signals.stopping() if arguments.verb in _TRAINING else nullcontext():
            arguments.verb(arguments)
        sys.stdout.flush()
        sys.exit(0)
    except TLError as error:
        _complain(str(error), arguments.debug)
        sys.exit(error.exit_status)
    except signals.Stopped as stopped:
        _complain(f"{stopped}, before there was anything to save", arguments.debug)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        _complain(f"{type(error).__name__}: {error} (a fault of tl-nlp; --debug shows where)", arguments.debug)
        sys.exit(1)


_TRAINING = (verbs.train, verbs.learning_curve, verbs.reproduce)

_NEW_OBJECTS = 10_000  # between two looks for cycles; at 700 these are a sixth of the time that imports take

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "true",
}


def _complain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"tl-nlp: {' '.join(message.split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(prog="tl-nlp", description="Fine-tune pretrained language models with recipes.")
    names = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, verb: Any, text: str) -> argparse.ArgumentParser:
        sub = names.add_parser(name, help=text, description=text, parents=[common])
        sub.set_defaults(verb=verb)
        return sub

    add("list", verbs.list_all, "the recipes in ./recipes, and the kinds of tasks, data and methods")
    sub = add("show", verbs.show, "a recipe with overrides applied, as JSON")
    _add_recipe(sub, "RECIPE", "a .py file, or a name in ./recipes")
    sub = add("train", verbs.train, "fine-tune a recipe into a new run, or go on with an unfinished run")
    _add_recipe(sub, "RECIPE|RUN", "a recipe (.py file or name), or a run directory")
    told = "go on with a run whose checkpoint has lost its optimizer's state; other weights come out"
    sub.add_argument("--weights-only", action="store_true", help=told)
    told = "as 5m or 1h30m: fewer epochs, the head alone or fewer training rows, so that it ends in that time"
    sub.add_argument("--budget", metavar="TIME", help=told)
    sub = add("reproduce", verbs.reproduce, "train a run's recipe again, and say whether the scores are the same")
    sub.add_argument("run", metavar="RUN")
    sub = add(
        "check",
        verbs.check,
        "what is wrong with a recipe's data: duplicates, leaks, doubtful labels, personal data ...",
    )
    _add_recipe(sub, "RECIPE", "a .py file, or a name in ./recipes")
    sub.add_argument("--fix", type=Path, metavar="DIR", help="write a cleaned copy of each split into this folder")
    sub.add_argument("--json", action="store_true", help="the findings as JSON")
    sub = add(
        "find-lr", verbs.find_lr, "try rising learning rates on a throw-away copy, draw the losses and suggest rates"
    )
    _add_recipe(sub, "RECIPE", "a .py file, or a name in ./recipes")
    sub.add_argument("--output", type=Path, help="the drawing, a .png file; default: find-lr-RECIPE.png")
    sub = add(
        "learning-curve", verbs.learning_curve, "train on parts of the training rows, and tell what more would give"
    )
    _add_recipe(sub, "RECIPE|RUN", "a recipe (.py file or name), or the run of a curve that was cut off")
    sub = add("evaluate", verbs.evaluate, "score a run on a split of its data or on a file, as JSON")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--split", default="test", help="default: test")
    sub.add_argument("--file", type=Path, help="rows with targets: csv, tsv, jsonl or parquet")
    sub = add("compare", verbs.compare, "which of several runs is better on the same test rows, with intervals")
    sub.add_argument("runs", metavar="RUN", nargs="+", help="the first is compared with each of the others")
    sub.add_argument("--split", default="test", help="default: test")
    sub.add_argument("--json", action="store_true")
    sub = add("report", verbs.report, "write the report of a run again, and print where it is")
    sub.add_argument("run", metavar="RUN")
    sub = add("predict", verbs.predict, "predictions for texts, as JSON lines")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("texts", metavar="TEXT", nargs="*", help="default: the lines of stdin")
    sub.add_argument("--pair", help="what goes with every TEXT: a question, a prompt, an aspect")
    sub.add_argument("--group", help="the prompt or domain of every TEXT, where each has a scale of its own")
    sub.add_argument("--input", type=Path, help="rows to predict: csv, tsv, jsonl or parquet")
    sub.add_argument("--output", type=Path, help="a .jsonl or .csv file in the place of stdout")
    sub = add("explain", verbs.explain, "which words and sentences moved an answer, and how far to trust that, as JSON")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("text", metavar="TEXT")
    sub.add_argument("--pair", help="what goes with it: a question, a prompt, an aspect")
    sub.add_argument("--group", help="its prompt or domain, where each has a scale of its own")
    sub.add_argument("--method", default="integrated_gradients", help="or occlusion; default: integrated_gradients")
    sub.add_argument("--target", help="a label, a trait or a written word; default: the answer it gave")
    sub.add_argument("--nearest", type=int, default=0, metavar="N", help="so many training rows most like it, too")
    sub = add("demo", verbs.demo, "a page to try runs in")
    sub.add_argument(
        "runs", metavar="RUN", nargs="*", help=f"default: the newest finished of each recipe in {runs_root()}"
    )
    sub = add(
        "export", verbs.export, "write a run as a folder that answers fast and without torch; prints what it lost"
    )
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--to", type=Path, metavar="DIR", required=True, help="a folder that is not there yet")
    sub.add_argument("--format", choices=["onnx", "openvino"], default="onnx", help="what reads it; default: onnx")
    sub.add_argument("--quantize", choices=["int8"], help="weights in a quarter of the room, products in less time")
    sub.add_argument(
        "--tolerance", type=float, default=0.01, help="loss of the main metric from which on nothing is written; 0.01"
    )
    sub.add_argument("--split", default="test", help="whose rows are answered before and after; default: test")
    sub = add("push", verbs.push, "publish a run on the Hugging Face Hub: model, scores and a card; prints where it is")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("repo_id", metavar="OWNER/NAME")
    said = "what you know of licences, as data=own; may be given again: source=WHERE, base=mit, model=cc-by-4.0"
    sub.add_argument("--licence", metavar="KEY=VALUE", action="append", default=[], help=said)
    sub.add_argument("--private", action="store_true", help="a repository that only you see")
    sub.add_argument("--merge", action="store_true", help="an adapter as whole weights, which need no checkpoint")
    sub.add_argument("--revision", help="a branch of the repository; default: main")
    sub.add_argument("--space", action="store_true", help="a page that serves it too, as the Space of the same name")
    sub.add_argument("--dry-run", action="store_true", help="list what would go")
    sub = add("pull", verbs.pull, "fetch a published run; prints the folder it is in, which is named after its commit")
    sub.add_argument("repo_id", metavar="OWNER/NAME")
    sub.add_argument("--revision", help="a branch, tag or commit; default: main")
    sub = add("push-data", verbs.push_data, "publish a cleaned copy of a recipe's data on the Hub; prints where it is")
    sub.add_argument("recipe", metavar="RECIPE", help="a .py file, or a name in ./recipes")
    sub.add_argument("repo_id", metavar="OWNER/NAME")
    sub.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as licence.data=own")
    sub.add_argument("--private", action="store_true", help="a repository that only you see")
    sub.add_argument("--dry-run", action="store_true", help="list what would go")
    add("runs", verbs.runs, f"the runs under {runs_root()}")
    return parser


def _add_recipe(sub: argparse.ArgumentParser, metavar: str, text: str) -> None:
    sub.add_argument("recipe", metavar=metavar, help=text)
    sub.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as training.lr=1e-4 or method=lora")
