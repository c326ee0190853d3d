"""Labels and grades that a linear model on frozen features doubts, each asked of folds that have not seen the row."""

from __future__ import annotations

import numpy as np

from tl_nlp.logistic import falling_back, logistic_regression


def first_of(ranked: list[np.ndarray]) -> np.ndarray:
    """Rows of several rankings in the order of their best place in any."""
    places = sorted((place, row) for rows in ranked for place, row in enumerate(rows.tolist()))
    return np.asarray(list(dict.fromkeys(row for _, row in places)), int)


def doubtful_grades(features: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Which rows have a grade far from what a ridge regression on `features` that has not seen them (five folds) gives,
    the farthest first.

    `grades` of shape (examples, traits), NaN where there is none. Far is over `_FAR` standard deviations of the
    trait's residuals, from their median absolute deviation, which outliers do not widen (Rousseeuw & Croux 1993).
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    distance = np.zeros(len(features))
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=[10.0, 100.0, 1000.0, 10000.0]))
    for column in grades.T:
        rows = np.flatnonzero(~np.isnan(column))
        if len(rows) < _FEWEST_GRADES:
            continue
        folds = KFold(_N_FOLDS, shuffle=True, random_state=0)
        residuals = np.abs(column[rows] - cross_val_predict(model, features[rows], column[rows], cv=folds))
        deviation = 1.4826 * np.median(residuals)
        if deviation > 0:
            distance[rows] = np.maximum(distance[rows], residuals / deviation)
    order = np.argsort(-distance, kind="stable")
    return order[distance[order] > _FAR]


def doubtful_labels(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which rows may be mislabelled, the most doubtful first, by confident learning (Northcutt et al. 2021).

    Probabilities are those of a logistic regression on `features` that has not seen the row (five folds). Rows that
    reach a label's mean confidence are counted under it; from these counts follows how many rows of each label belong
    to each other one, and as many are taken as doubtful, those first for which the other label is ahead the most.
    Labels of fewer than five rows are left out: each fold needs one.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kept = np.flatnonzero(np.bincount(labels)[labels] >= _N_FOLDS)
    names, labels = np.unique(labels[kept], return_inverse=True)
    if len(names) < 2:
        return np.empty(0, int)
    features, n_labels = features[kept], len(names)
    folds = StratifiedKFold(_N_FOLDS, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), logistic_regression(0.01, features, n_labels))
    with falling_back():
        probabilities = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    own = probabilities[np.arange(len(labels)), labels]
    usual = np.asarray([own[labels == label].mean() for label in range(n_labels)])
    reached = np.where(probabilities >= usual, probabilities, -np.inf)
    is_sure, likely = np.isfinite(reached.max(axis=1)), reached.argmax(axis=1)
    lead = np.full(len(labels), -np.inf)  # of the other label over the given one, for the rows that are taken
    for label in range(n_labels):
        rows = np.flatnonzero(labels == label)
        counts = np.bincount(likely[rows][is_sure[rows]], minlength=n_labels)
        for other in np.flatnonzero(counts):
            if other == label:
                continue
            ahead = probabilities[rows, other] - own[rows]
            taken = np.argsort(-ahead, kind="stable")[: round(len(rows) * counts[other] / counts.sum())]
            lead[rows[taken]] = np.maximum(lead[rows[taken]], ahead[taken])
    order = np.argsort(-lead, kind="stable")
    return kept[order[lead[order] > 0]]


_N_FOLDS = 5
_FAR = 3.5  # of a normal distribution's rows 1 in 2,000 is farther
_FEWEST_GRADES = 50
