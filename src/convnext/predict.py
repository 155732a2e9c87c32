"""`predict`: what is on images, with the preprocessing that the checkpoint carries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from convnext.data.images import image_files
from convnext.tasks import task_class
from convnext.tasks.trained import task_of


def predict(source: str, images: Iterable[str | Path], **options: Any) -> Any:
    """Predict image files, and all images in folders, by the task of the network.

    The options are those of `predict` in the folder of the task. The result has `to_dict()`,
    `print(console)` and `write(folder)`.

    Raises:
        ValueError: If there is no image, or too many cannot be read.
    """
    paths = image_files(images)  # Before a network is fetched in vain.
    return task_class(task_of(source)).predict(source, paths, **options)
