"""ACLSum: 250 papers of the ACL with a human one-sentence summary and highlights for each of three aspects.

Takeshita et al. 2024, https://arxiv.org/abs/2403.05303; read from the installed package `aclsum`.
"""

from typing import Any, Literal

from tl_nlp.errors import DataError
from tl_nlp.packages import package_folder
from tl_nlp.recipe import Data


class Aclsum(Data):
    """A row is a paper and an aspect: abstract, introduction and conclusion as sentences, the aspect as the pair."""

    aspects: tuple[Literal["challenge", "approach", "outcome"], ...] = ("challenge", "approach", "outcome")

    @property
    def origin(self) -> tuple[str, str]:
        return "package", "aclsum"

    def load(self, rejects: Any = None) -> Any:
        import json

        import pyarrow as pa

        from tl_nlp.rejects import Rejects
        from tl_nlp.rows import prepare

        folder = package_folder("aclsum", DataError) / "dataset"
        tables = {}
        for split, file in (("train", "train"), ("validation", "val"), ("test", "test")):
            papers = [json.loads(line) for line in (folder / f"{file}.jsonl").read_text("utf-8").splitlines()]
            rows = [self._row(paper, aspect) for paper in papers for aspect in self.aspects]
            tables[split] = pa.Table.from_pylist(rows)
        return prepare(tables, self, Rejects() if rejects is None else rejects)

    @staticmethod
    def _row(paper: dict[str, Any], aspect: str) -> dict[str, Any]:
        names = ("abstract", "introduction", "conclusion")
        sentences = [sentence for name in names for sentence in paper["sentences"][name]]
        return {
            "id": f"{paper['id']}-{aspect}",
            "text": " ".join(sentences),
            "target": paper["summary"][aspect],
            "pair": aspect,
            "group": aspect,
            "sentences": sentences,
            "sections": [name for name in names for _ in paper["sentences"][name]],
            "highlights": [mark for name in names for mark in paper["highlights"][aspect][name]],
        }
