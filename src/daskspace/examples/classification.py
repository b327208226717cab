"""What one process of classification.yaml does."""

from __future__ import annotations

from typing import Any

from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

DATA_SETS = {"breast_cancer": load_breast_cancer, "wine": load_wine, "digits": load_digits}
"""They come with scikit-learn; nothing is downloaded."""


def benchmark(dataset: str, kernel: str, C: float, seed: int) -> dict[str, Any]:
    """Train a support vector machine on a part of a data set, and return its scores on the rest.

    The parameters come from the YAML file, by name. `seed` comes from daskspace, for the asking: it
    depends on the parameters and the run alone, so that the same call gives the same scores.
    What is returned becomes the columns of the table.
    """
    samples, labels = DATA_SETS[dataset](return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        samples, labels, test_size=0.3, stratify=labels, random_state=seed
    )
    model = make_pipeline(StandardScaler(), SVC(kernel=kernel, C=C))
    model.fit(train, train_labels)
    predicted = model.predict(test)
    return {
        "accuracy": accuracy_score(test_labels, predicted),
        "f1": f1_score(test_labels, predicted, average="macro"),
        "support_vectors": int(model[-1].n_support_.sum()),
    }
