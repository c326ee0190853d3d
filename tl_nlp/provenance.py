"""What a model was made from, under which licences, and where each is stated."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from tl_nlp.errors import TLError
from tl_nlp.hub import Kind, is_id, licence_of, local
from tl_nlp.licences import Stated, identified
from tl_nlp.packages import package_folder
from tl_nlp.recipe import Checkpoint, Recipe
from tl_nlp.run import Run, artifact_folder, read_recipe

UPSTREAM = {
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db": (
        "sentence-transformers/all-MiniLM-L6-v2",
        "apache-2.0",
    ),
}
"""The repositories on the Hub that weights of a package are from, byte for byte, and their licences, by sha256."""


def base_on_hub(checkpoint: Checkpoint) -> str | None:
    """The name on the Hub of the repository whose weights a checkpoint has."""
    if checkpoint.name.startswith("package:"):
        return UPSTREAM.get(checkpoint.revision or "", (None, None))[0]
    return checkpoint.name if is_id(checkpoint.name) else None


def licences(recipe: Recipe) -> list[Stated]:
    """The licences of what a recipe is published as, begins with and learns from, as far as they are stated anywhere,
    and of what its teacher was made from.

    What the recipe says stands beside what cards and packages say, and takes the place of an unknown one.
    """
    said, found = recipe.licence, [*_of_base(recipe), *_of_data(recipe), *_of_teacher(recipe)]
    parts = [Stated("model", recipe.name, said.model, "its publisher")] if said.model else []
    for part in ("base", "data"):
        theirs = [one for one in found if one.part == part]
        licence = getattr(said, part)
        if licence and theirs:
            known = [one for one in theirs if one.licence != "unknown"]
            theirs = [*known, Stated(part, theirs[0].work, licence, str(said.source))]
        parts += theirs
    return list(dict.fromkeys([*parts, *(one for one in found if one.part not in ("base", "data"))]))


def _of_base(recipe: Recipe) -> list[Stated]:
    checkpoint = recipe.checkpoint
    if checkpoint.random:
        return []
    name = checkpoint.name
    if name.startswith("package:"):
        module = name.removeprefix("package:")
        if upstream := UPSTREAM.get(checkpoint.revision or ""):
            return [Stated("base", *upstream, f"its card, https://huggingface.co/{upstream[0]}")]
        return [Stated("base", module, *_of_package(module))]
    folder = Path(name)
    if not folder.is_dir():
        return [Stated("base", name, *_of_hub(name, "model", checkpoint.revision))]
    run = Run.find(folder)
    if run is not None:  # what the run was made from, this model is made from too
        return licences(run.recipe())
    return [Stated("base", folder.name, *_of_card(folder / "README.md"))]


def _of_data(recipe: Recipe) -> list[Stated]:
    where, name = recipe.data.origin
    if where == "package":
        return [Stated("data", name, *_of_package(name))]
    if where == "hub" and not Path(name).is_dir():
        return [Stated("data", name, *_of_hub(name, "dataset", getattr(recipe.data, "revision", None)))]
    if where == "hub":
        return [Stated("data", Path(name).name, *_of_card(Path(name) / "README.md"))]
    return [Stated("data", name, "unknown", "files say nothing of it")]


def _of_teacher(recipe: Recipe) -> list[Stated]:
    if recipe.training.distillation is None:
        return []
    name = recipe.training.distillation.teacher
    try:
        teachers = read_recipe(artifact_folder(local(name)))
    except TLError:
        work = name if is_id(name) else Path(name).name  # a path is nobody else's to know
        return [Stated("teacher", work, "unknown", "it is not where the recipe says")]
    return licences(teachers)


def _of_package(module: str) -> tuple[str, str]:
    """The licence that an installed package states, and where."""
    package_folder(module, TLError)
    for distribution in metadata.packages_distributions().get(module, []):
        about = metadata.metadata(distribution)
        for field in ("License-Expression", "License", "Classifier"):
            for value in about.get_all(field) or []:
                if (field != "Classifier" or value.startswith("License ::")) and identified(value) != "unknown":
                    return identified(value), f"the package {distribution} says {value}"
    return "unknown", f"the package of {module} says none"


def _of_hub(name: str, kind: Kind, revision: str | None) -> tuple[str, str]:
    licence = licence_of(name, kind, revision)
    return identified(licence), f"its card on the Hub says {licence or 'none'}"


def _of_card(path: Path) -> tuple[str, str]:
    from huggingface_hub import RepoCard

    if not path.is_file():
        return "unknown", "no card lies beside it"
    stated = RepoCard(path.read_text("utf-8"), ignore_metadata_errors=True).data.to_dict().get("license")
    return identified(stated if isinstance(stated, str) else None), f"its card says {stated or 'none'}"
