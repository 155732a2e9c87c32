"""`evaluate`: a trained network on a labelled data set, with the preprocessing it carries."""

from __future__ import annotations

from typing import Any

from convnext.tasks import home
from convnext.weights.open import task_of


def evaluate(source: str, **options: Any) -> Any:
    """Evaluate a run, a checkpoint or published weights by the task they were trained for.

    The options are those of `evaluate` in the folder of the task. The result has `to_dict()`,
    `print(console)` and `write(folder)`.

    Raises:
        ValueError: If source or data cannot be read, or their classes do not match.
    """
    return home(task_of(source), "evaluate").evaluate(source, **options)
