"""A data set of the Hugging Face Hub, or a local folder in its layout."""

from typing import Any

from tl_nlp.errors import DataError, HubError
from tl_nlp.recipe import Data


class Hub(Data):
    """Read by the datasets library, which runs no code of the data set's own."""

    name: str
    config: str | None = None
    revision: str | None = None  # branch, tag or commit
    train: str = "train"  # names of the splits there, slices such as train[:10%] too
    validation: str | None = None
    test: str | None = None
    tests: dict[str, str] = {}

    def load(self) -> Any:
        import datasets

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
            tables[split] = named_classes(rows).data.table.combine_chunks()
        return prepare(tables, self)


def named_classes(rows: Any) -> Any:
    """With the names of class labels in the place of their numbers."""
    from datasets import ClassLabel, Value

    features = {name: Value("string") for name, feature in rows.features.items() if isinstance(feature, ClassLabel)}
    names = {name: rows.features[name].int2str for name in features}
    if not features:
        return rows.flatten_indices()
    return rows.map(
        lambda batch: {
            name: [None if value is None or value < 0 else to_name(value) for value in batch[name]]
            for name, to_name in names.items()
        },
        batched=True,
        features=type(rows.features)({**rows.features, **features}),
        load_from_cache_file=False,
    )
