"""How far two people give the same texts the same labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tl_nlp.metrics import Measured, indicators


@dataclass(frozen=True)
class Agreement:
    """How far two labellers agree on the `n_texts` both have labelled: the share of equal labels, and Cohen's kappa,
    each a value with the low and high of its 95 % interval. Of few texts the intervals are too narrow."""

    labellers: tuple[str, str]
    n_texts: int
    equal: dict[str, float]
    kappa: dict[str, float]


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> Measured:
    """Cohen's kappa (1960) of two lists of labels: 1 is agreement, 0 what chance would give, where both are constant
    and equal 1."""
    names = sorted({*one, *other})
    n_names = len(names)
    mine, theirs = indicators(one, names), indicators(other, names)
    equal = (mine & theirs).sum(axis=1)

    def kappa(sums: np.ndarray) -> np.ndarray:
        n, both = sums[:, 0], sums[:, 1]
        by_chance = (sums[:, 2 : 2 + n_names] * sums[:, 2 + n_names :]).sum(axis=1) / n**2
        is_varied = by_chance < 1 - 1e-12
        return np.where(is_varied, (both / n - by_chance) / np.where(is_varied, 1 - by_chance, 1), 1.0)

    return Measured.from_sums(np.column_stack([np.ones(len(equal)), equal, mine, theirs]).astype(float), kappa)
