"""Run the predictor of a network's task, as the command line does, and return its summary."""

from __future__ import annotations

from typing import Any

from convnext.api.model import Model, predict
from convnext.tasks.trained import Opened


def run_predictor(source: Any, images: Any, *, progress: Any = False, **options: Any) -> Any:
    """Return the summary to print and write; the options are those of `convnext.predict`."""
    own = Model(source) if isinstance(source, Opened) else str(source)
    return predict(own, images, stream=True, progress=progress, **options).summary()
