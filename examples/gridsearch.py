"""scikit-learn on this library: a grid search over the digits, in one process and in two workers.

    pip install 'loky[joblib]' scikit-learn
    python examples/gridsearch.py

Exits with an error if the scores are not the same to the last bit, or if not every fit of the
second search was made by this library's workers.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from loky.integrations.joblib import register

FOLDS = 3


def evaluate(classifier: Any, images: Any, digits: Any) -> dict[str, float]:
    """The classifier's score, and next to it whether this is a worker of this library."""
    return {
        "accuracy": classifier.score(images, digits),
        "in_our_worker": float("loky.worker.loop" in sys.modules),
    }


def find(n_jobs: int) -> dict[str, Any]:
    images, digits = load_digits(return_X_y=True)
    grid = {"C": [0.1, 1, 10], "gamma": [5e-4, 1e-3, 5e-3]}
    search = GridSearchCV(SVC(), grid, cv=FOLDS, n_jobs=n_jobs, scoring=evaluate, refit="accuracy")
    begin = time.perf_counter()
    search.fit(images, digits)
    seconds = time.perf_counter() - begin
    results: dict[str, Any] = search.cv_results_
    share = results["mean_test_in_our_worker"].mean()
    print(
        f"n_jobs={n_jobs}: {len(results['params'])} x {FOLDS} fits in {seconds:.1f} s, "
        f"{share:.0%} of them in our workers; "
        f"best: {search.best_params_}, accuracy {search.best_score_:.4f}"
    )
    return results


def main() -> int:
    register(make_default=True)
    alone, together = find(n_jobs=1), find(n_jobs=2)
    names = [f"split{number}_test_accuracy" for number in range(FOLDS)]
    same = all(np.array_equal(alone[name], together[name]) for name in names)
    ours = bool(together["mean_test_in_our_worker"].all())
    print(f"the same scores: {same}; all fits in our workers: {ours}")
    return 0 if same and ours else 1


if __name__ == "__main__":
    sys.exit(main())
