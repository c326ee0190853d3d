"""Where installed packages lie, found without importing them, so that none of their code runs."""

import importlib.util
from pathlib import Path

from tl_nlp.errors import TLError


def package_folder(module: str, error: type[TLError]) -> Path:
    """The folder of an installed package. Raises `error` with the command that installs it."""
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise error(f"no package {module!r} is installed; pip install {module.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])
