"""Export of a trained network to a file, whatever its task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

from convnext.deploy import export as deployment
from convnext.deploy.export import ExportResult, ExportSettings
from convnext.tasks import task_class
from convnext.tasks.trained import Opened, opened
from convnext.weights.open import is_exported


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
    """Export a run, a checkpoint or published weights, and prove the file on real images.

    Args:
        source: A run folder, a file in any layout, a hub id, or an open network.
        settings: What is in the file.
        output: Its path; by default beside the checkpoint, named by network and precision.
        images: Files and folders to prove it on; by default the validation set of the run.
        num_images: How many of them at most.
        force: Keep a file that fails its proof.
        note: Called with progress, a line at a time.

    Raises:
        ValueError: If the source cannot be read or is an exported file, a format lacks its
            library, there is no image, or a setting does not fit the network.
        ArithmeticError: If the file does not compute what the network does; it is not kept.
    """
    name = source if isinstance(source, str) else source.source
    if is_exported(name):
        raise ValueError(f"{name} is an exported file; export the network that it was written from")
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
