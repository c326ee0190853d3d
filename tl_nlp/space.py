"""A Gradio Space that serves a model of the Hub: its script, what it needs, and this package itself."""

from __future__ import annotations

import re
import shutil
from importlib import metadata
from pathlib import Path

from tl_nlp.card import Made

_APP = '''"""The page of {repo_id}."""

from tl_nlp.demo.server import serve
from tl_nlp.hub import local

if __name__ == "__main__":
    serve([local("{repo_id}")], is_public=True)
'''


def write_space(folder: Path, made: Made) -> None:
    """Writes the Space of a published model into `folder`."""
    import tl_nlp

    source = Path(tl_nlp.__file__).parent
    shutil.copytree(source, folder / "tl_nlp", ignore=shutil.ignore_patterns("__pycache__", "samples"))
    (folder / "app.py").write_text(_APP.format(repo_id=made.repo_id), "utf-8")
    (folder / "requirements.txt").write_text("".join(f"{one}\n" for one in _requirements(made)), "utf-8")
    (folder / "README.md").write_text(_readme(made), "utf-8")


def _requirements(made: Made) -> list[str]:
    """What the package needs, at the versions that are installed here; and what ships the checkpoint, if one does."""
    extras = {"demo"}
    if made.recipe.checkpoint.load_in in ("int8", "nf4"):
        extras.add("gpu")
    needed = []
    for line in metadata.requires("tl-nlp") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if extra is None or extra[1] in extras:
            needed.append(_installed(requirement.strip()))
    base = made.recipe.checkpoint.name
    if made.recipe.method.is_adapter and base.startswith("package:"):
        for distribution in metadata.packages_distributions().get(base.removeprefix("package:"), []):
            needed.append(f"{distribution}=={metadata.version(distribution)}")
    return sorted(needed)


def _installed(requirement: str) -> str:
    """The requirement at the version that is installed, so that the Space answers as it did here."""
    (name,) = re.findall(r"^[\w.-]+", requirement)
    return f"{name}=={metadata.version(name).partition('+')[0]}"


def _readme(made: Made) -> str:
    from huggingface_hub import SpaceCardData

    version = metadata.version("gradio")
    about = SpaceCardData(
        title=made.recipe.name,
        sdk="gradio",
        sdk_version=version,
        python_version="3.11",
        app_file="app.py",
        license=made.ruling.licence,
        models=[made.repo_id],
    )
    return (
        f"---\n{about.to_yaml()}\n---\n\n# {made.recipe.name}\n\nTry [{made.repo_id}]"
        f"(https://huggingface.co/{made.repo_id}), which says what it is good for. A private model needs the secret "
        "HF_TOKEN, with a token that may read it.\n"
    )
