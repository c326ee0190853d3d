"""Logistic regression, as baselines and the data check use it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_WIDE = 2000  # features of a row


def logistic_regression(strength: float, features: Any, n_labels: int = 2, **more: Any) -> Any:
    """One of scikit-learn, not fitted yet, by the solver that is fastest for such features, of shape (examples,
    features): Newton's method, whose matrix has features x features numbers for two labels, is two to three times as
    fast as L-BFGS on dense states of a model."""
    from scipy.sparse import issparse
    from sklearn.linear_model import LogisticRegression

    is_small = n_labels == 2 and not issparse(features) and features.shape[1] <= _WIDE
    solver = "newton-cholesky" if is_small else "lbfgs"
    return LogisticRegression(C=strength, solver=solver, max_iter=300, **more)


@contextmanager
def falling_back() -> Iterator[None]:
    """Within the block it is no warning that a regression goes on by L-BFGS where Newton's method finds no step."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Line search of Newton solver", ConvergenceWarning)
        yield
