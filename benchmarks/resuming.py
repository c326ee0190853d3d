"""Runs of a benchmark that are begun once: called again, a benchmark goes on where it stopped."""

from pathlib import Path

from tl_nlp import Recipe, Run, train


def trained(name: str, recipe: Recipe, folder: Path) -> Run:
    """The run of that name under a folder, trained or gone on with unless it is finished."""
    pointer = folder / f"{name}.txt"
    if pointer.is_file() and Run.find(Path(pointer.read_text())):
        return train(Run(Path(pointer.read_text())))
    run = Run.create(recipe.model_copy(update={"name": name}), folder)
    pointer.write_text(str(run.folder))
    return train(run)
