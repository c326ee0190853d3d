"""Summaries against published figures, with the packaged MiniLM: what docs/summarization.md shows.

Command   python benchmarks/summaries.py DATA FOLDER [highlights] [tldr] [subjects]

DATA holds papers/scitldr/{train,validation}.jsonl and emails/aeslc/{train,validation}.jsonl, with the columns id,
text, target and others. Runs go under FOLDER; called again, it goes on where it stopped, and what is finished is only
read. Highlights are those of ACLSum, from its package. Subject lines are scored against the one that the e-mail was
sent with, and not against those that people wrote for it later.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from resuming import trained

from tl_nlp import Recipe, load_recipe

RECIPES = Path(__file__).parent.parent / "recipes"
SHOWN = ("rouge1", "rouge2", "rougeL", "chrf", "invented", "novel_bigrams", "coverage", "density", "repetition")
MORE = ("compression", "unfinished")


def highlights(data: Path) -> Iterator[Recipe]:
    yield load_recipe(RECIPES / "summary_highlights.py")


def tldr(data: Path) -> Iterator[Recipe]:
    yield load_recipe(RECIPES / "tldr.py", *_files(data / "papers" / "scitldr", "validation.jsonl"))


def subjects(data: Path) -> Iterator[Recipe]:
    folder = data / "emails" / "aeslc"
    alone = WORK / "subjects.jsonl"
    rows = [json.loads(line) for line in (folder / "validation.jsonl").open(encoding="utf-8")]
    alone.write_text("".join(json.dumps({**row, "others": None}) + "\n" for row in rows), "utf-8")
    yield load_recipe(RECIPES / "subjects.py", *_files(folder, str(alone)), "data.validation_share=0.035")


def _files(folder: Path, test: str) -> tuple[str, ...]:
    """Nothing is left out as a duplicate: the splits are those of the papers."""
    splits = (f"data.train={folder / 'train.jsonl'}", f"data.test={folder / test}")
    return ("data.path=null", *splits, "data.overlap=keep", "data.similarity=1")


def main(data: Path, chosen: list[str]) -> None:
    studies = {one.__name__: one for one in (highlights, tldr, subjects)}
    for name in chosen or studies:
        for recipe in studies[name](data):
            run = trained(name, recipe, WORK)
            results = run.results()
            for model, scores in {name: results["splits"]["test"]["metrics"], **results["baselines"]}.items():
                told = (f"{metric} {_told(scores[metric])}" for metric in (*SHOWN, *MORE) if metric in scores)
                print(f"{model:12}", *told, sep="  ")
            print(f"  {results['verdict']}; {results['train']['seconds'] / 60:.1f} minutes of training; {run.folder}")


def _told(value: dict[str, float]) -> str:
    interval = f" [{value['low']:.3g}, {value['high']:.3g}]" if "low" in value else ""
    return f"{value['value']:.3g}{interval}"


if __name__ == "__main__":
    WORK = Path(sys.argv[2]).resolve()
    WORK.mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]).resolve(), sys.argv[3:])
