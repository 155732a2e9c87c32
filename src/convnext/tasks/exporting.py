"""Export of a trained network to a file, whatever its task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

from convnext.deploy import export as deployment
from convnext.deploy.export import ExportResult, ExportSettings
from convnext.tasks import task_class
from convnext.tasks.trained import Opened, opened
from convnext.weights.checkpoint import is_exported


def export(
    source: str | Opened,
    *,
    settings: ExportSettings,
    output: str | Path | None = None,
    images: Sequence[str | Path] = (),
    num_images: int = 32,
    force: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> ExportResult:
    """Export a run, a checkpoint or published weights, and verify the file on real images.

    Args:
        source: A run folder, a file in any layout, a hub id, or an open network.
        settings: The export settings.
        output: Path of the file; by default next to the checkpoint, named by network and precision.
        images: Files and folders to verify the file on; by default the run's validation set.
        num_images: Maximum number of these images.
        force: Keep a file that fails verification.
        note: Called with one line of progress at a time.

    Raises:
        ValueError: If the source cannot be read or is an exported file, the library of a format is
            missing, there are no images, or a setting does not fit the network.
        ArithmeticError: If the outputs of the file differ from the network's; it is deleted.
    """
    name = source if isinstance(source, str) else source.source
    if is_exported(name):
        raise ValueError(f"{name} is an exported file; export the network that it came from")
    deployment.check_request(settings, output)
    trained = opened(source, "cpu")
    model = trained.model
    if trained.device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    spec = task_class(trained.card.task).export_spec(
        *(model, trained.card, name, settings),
        images=images,
        num_images=num_images,
        note=note,
    )
    return deployment.export(spec, output=output, force=force, note=note)
