"""Files of your own: csv, tsv, jsonl or parquet."""

from pathlib import Path
from typing import Any

from pydantic import model_validator

from tl_nlp.errors import RecipeError
from tl_nlp.recipe import Data, TestSplit


class Files(Data):
    """One file that is split here (`path`), or a file for each split; paths count from the working directory."""

    path: Path | None = None
    train: Path | None = None
    validation: Path | None = None
    test: Path | None = None
    tests: dict[TestSplit, Path] = {}  # further test splits: {"test_unseen": "unseen.csv"}

    @model_validator(mode="after")
    def _one_way(self) -> "Files":
        if self.path and (self.train or self.validation or self.test):
            raise RecipeError("it is one file to be split here; data.path=null where data.train names a file", "path")
        if not self.path and not self.train:
            raise RecipeError("name one file to be split here, or data.train", "path")
        return self

    @property
    def origin(self) -> tuple[str, str]:
        named = (self.path, self.train, self.validation, self.test, *self.tests.values())
        return "files", ", ".join(path.name for path in named if path is not None)

    def locate(self, path: Path) -> Path:
        """Where a path of the recipe leads."""
        return path

    def load(self, rejects: Any = None) -> Any:
        from tl_nlp.rejects import Rejects
        from tl_nlp.rows import prepare
        from tl_nlp.tables import read_table

        rejects = Rejects() if rejects is None else rejects
        paths = {"train": self.path or self.train, "validation": self.validation, "test": self.test, **self.tests}
        files = {split: self.locate(path) for split, path in paths.items() if path is not None}
        tables = {split: read_table(file, rejects, numbered=True) for split, file in files.items()}
        rejects.refuse_many(self.max_rejects)
        return prepare(tables, self, rejects, {split: str(file) for split, file in files.items()})
