"""A data set of the Hugging Face Hub, or a local folder in its layout."""

from functools import partial
from typing import Any

from tl_nlp.errors import DataError, HubError
from tl_nlp.recipe import Data, TestSplit


class Hub(Data):
    """Read by the datasets library, which runs no code of the data set's own."""

    name: str
    config: str | None = None
    revision: str | None = None  # branch, tag or commit
    train: str = "train"  # names of the splits there, slices such as train[:10%] too
    validation: str | None = None
    test: str | None = None
    tests: dict[TestSplit, str] = {}

    @property
    def origin(self) -> tuple[str, str]:
        return "hub", self.name

    def load(self, rejects: Any = None) -> Any:
        import datasets

        from tl_nlp.rejects import Rejects
        from tl_nlp.rows import prepare

        wanted = {"train": self.train, "validation": self.validation, "test": self.test, **self.tests}
        tables = {}
        for split, theirs in wanted.items():
            if theirs is None:
                continue
            try:
                rows = datasets.load_dataset(self.name, self.config, split=theirs, revision=self.revision)
            except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
                raise HubError(
                    f"data set {self.name!r} is neither cached here nor reachable on the Hub "
                    f"({type(error).__name__}); use files of your own: data=files data.path=FILE"
                ) from None
            except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
                raise DataError(f"data set {self.name!r}, split {theirs!r}: {str(error).splitlines()[0]}") from None
            tables[split] = named_classes(rows)
        return prepare(tables, self, Rejects() if rejects is None else rejects)


def named_classes(rows: Any) -> Any:
    """The Arrow table of a Dataset, with the names of class labels in the place of their numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import ClassLabel

    from tl_nlp.rows import with_members

    table = rows.data.table
    for place, (name, feature) in enumerate(rows.features.items()):
        if isinstance(feature, ClassLabel):
            numbers = pc.if_else(pc.less(table[name], 0), None, table[name])  # -1 is "no label"
            table = table.set_column(place, name, pc.take(pa.array(feature.names), numbers))
        elif isinstance(getattr(feature, "feature", None), ClassLabel):
            names = pa.array(feature.feature.names)
            table = table.set_column(place, name, with_members(table[name], partial(pc.take, names)))
    return table
