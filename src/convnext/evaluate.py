"""`evaluate`: a trained network on a labelled data set, with the preprocessing it carries."""

from __future__ import annotations

from typing import Any

from convnext.tasks import task_class
from convnext.tasks.trained import task_of


def evaluate(source: str, **options: Any) -> Any:
    """Evaluate a run, a checkpoint or published weights by the task they were trained for.

    The options are those of `evaluate` in the folder of the task. The result has `to_dict()`,
    `print(console)` and `write(folder)`.

    Raises:
        ValueError: If source or data cannot be read, or their classes do not match.
    """
    return task_class(task_of(source)).evaluate(source, **options)
