"""Rows that are left out of a data set: which, why, and how many may be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tl_nlp.errors import DataError


@dataclass(frozen=True)
class Reject:
    """A row that is left out: of which file or split, its line or row there, why, and what it holds.

    It is no fault of a row that another split has it too.
    """

    source: str
    place: str
    reason: str
    content: str = ""
    is_fault: bool = True

    def __str__(self) -> str:
        return f"{self.source}, {self.place}: {self.reason}"


class Rejects(list[Reject]):
    """The rows that are left out of a data set. `n_rows` counts the rows of each source; `source_of` names each
    split's."""

    def __init__(self) -> None:
        super().__init__()
        self.n_rows: Counter[str] = Counter()
        self.source_of: dict[str, str] = {}

    def refuse_many(self, most: float) -> None:
        """Raises DataError for a source of whose rows more than the share `most` are at fault."""
        for source, n_rows in self.n_rows.items():
            found = [one for one in self if one.source == source and one.is_fault]
            if len(found) > most * n_rows:
                told = f" ({len(found)} of {n_rows} rows are rejected)" if len(found) > 1 else ""
                raise DataError(
                    f"{found[0]}{told}; at most {100 * most:g} % may be: mend them, or raise data.max_rejects"
                )
