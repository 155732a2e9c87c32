"""`export`: a trained network as a file for another runtime, proven on real images.

A file says what it is: it carries the card of its checkpoint (classes, preprocessing, recipe) and
what it computes beside the network. It is written under another name, run in its own runtime,
compared with the network that it came from, and only then given its name.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import convnext
from convnext.atomic import write_text
from convnext.deploy.blueprints import blueprint_of, facts_of
from convnext.deploy.export_settings import LIBRARIES, SUFFIX, ExportSettings
from convnext.deploy.quiet import quiet
from convnext.deploy.runtimes import need
from convnext.deploy.verify import Proof, Proofs, collect, prove
from convnext.deploy.writers import WRITERS, Given
from convnext.weights.checkpoint import Card
from convnext.weights.open import open_model

__all__ = ["ExportResult", "ExportSettings", "export", "write"]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A file and what proves it."""

    path: Path
    bytes: int
    """With the weights beside it, where the format keeps them apart."""
    proof: Proof
    proof_path: Path

    def print(self, console: Console) -> None:
        """Print how the file compares with its network, and what to do with it."""
        proof, table = self.proof, Table(box=None, show_header=False)
        for row in proof.rows():
            table.add_row(*row)
        console.print(table)
        if proof.failure:
            console.print(f"kept by --force although {proof.failure}", markup=False)
        size = f"{self.bytes / 1e6:,.1f} MB"
        console.print(f"written: {self.path} ({size}), {self.proof_path.name}", soft_wrap=True)
        console.print(f"next: convnext predict {self.path} IMAGE", soft_wrap=True, markup=False)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "proof": self.proof.to_dict(),
            "proof_path": str(self.proof_path),
        }


def export(
    source: str,
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
        source: A run folder, a file in any layout, or a hub id; a classifier or a segmentor.
        settings: What is in the file.
        output: Its path; by default beside the checkpoint, named by network and precision.
        images: Files and folders to prove it on; by default the validation set of the run.
        num_images: How many of them at most.
        force: Keep a file that fails its proof.
        note: Told of progress, a line at a time.

    Raises:
        ValueError: If the source cannot be read, a format lacks its library, no image is at hand,
            or a setting does not fit the network.
        ArithmeticError: If the file does not compute what the network does; it is not kept.
    """
    model, card = open_model(source, torch.device("cpu"))
    settings.check_task(card.task)
    if card.task == "detect":
        from convnext.tasks.detection.export.file import check_detector

        check_detector(model, settings)
    need(*LIBRARIES[settings.format], *(["nncf"] if settings.precision == "int8" else []))
    if card.task == "classify" and isinstance(settings.size, tuple):
        # The file, what it is calibrated on and what proves it are all of this size.
        resized = replace(card.preprocessing, image_size=settings.size[0])
        card = replace(card, preprocessing=resized)
    path = _target(source, card, settings, output)
    proofs = collect(card, source, images, num_images)
    settings = _sized(model, card, settings, proofs, note)
    note(f"folding {card.model}; {len(proofs.files):,} images to prove it on")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / path.name
        proof = _write_proven(model, card, settings, draft, proofs, note)
        if not proof.passed and not force:
            raise ArithmeticError(
                f"the exported file is not what {card.model} is: {proof.failure}; it was not kept "
                "(--force keeps it)"
            )
        written = sorted(Path(folder).iterdir())
        for file in written:
            file.replace(path.parent / file.name)
    proof_path = path.with_name(path.name + ".proof.json")
    write_text(proof_path, json.dumps(proof.to_dict(), indent=1) + "\n")
    size = sum((path.parent / file.name).stat().st_size for file in written)
    return ExportResult(path=path, bytes=size, proof=proof, proof_path=proof_path)


def _write_proven(
    model: nn.Module,
    card: Card,
    settings: ExportSettings,
    draft: Path,
    proofs: Proofs,
    note: Callable[[str], None],
) -> Proof:
    """Write a file and prove it; int8 again with the most sensitive layers in float if it fails."""
    if settings.precision != "int8":
        note(f"writing {settings.format} in {settings.precision}")
        write(model, card, settings, draft)
        note("running the file in its own runtime")
        return prove(model, card, draft, proofs, precision=settings.precision)
    from convnext.deploy.calibration import calibrate
    from convnext.deploy.quantize import NUM_KEPT

    calibration = calibrate(model, card, settings, proofs, note)
    layers = calibration.layers
    for layer in layers[:5]:
        note(f"  {layer.name}: outputs change by {100 * layer.error:.1f} % with it alone in int8")
    for num_kept in NUM_KEPT:
        kept = tuple(layer.name for layer in layers[:num_kept])
        note(
            f"writing {settings.format} in int8, calibrated on {len(calibration.given):,} images"
            + (f", {num_kept} layers in float" if kept else "")
        )
        given = calibration.given
        slower = write(model, card, settings, draft, calibration=given, keep_float=kept)
        proof = prove(model, card, draft, proofs, precision="int8")
        proof = replace(proof, sensitivity=tuple(map(asdict, layers)), keep_float=kept)
        if slower and proof.passed:
            return replace(proof, failure=slower)
        if proof.passed:
            return proof
        note(f"  {proof.failure}")
    return proof


def write(
    model: nn.Module,
    card: Card,
    settings: ExportSettings,
    path: Path,
    *,
    calibration: Sequence[Given] = (),
    keep_float: Sequence[str] = (),
) -> str:
    """Write a file without proving it.

    Args:
        model: In evaluation mode, on the CPU, in fp32.
        card: Of its checkpoint.
        settings: What is in the file.
        path: With the suffix of the format.
        calibration: For int8: images as the graph takes them.
        keep_float: For int8: names of layers of the folded network that stay in fp32.

    Returns:
        For int8, what is wrong with its speed; empty if nothing is.

    Raises:
        ValueError: If a library is not installed, or a setting does not fit the network.
    """
    blueprint = blueprint_of(model, card, settings)
    metadata = {
        **card.to_metadata(),
        "convnext": convnext.__version__,
        "licence": licence_of(card),
        "graph": json.dumps(facts_of(model, card, settings)),
    }
    with torch.no_grad(), quiet():
        if settings.precision == "int8":
            from convnext.deploy.quantize import write_int8

            return write_int8(blueprint, path, metadata, calibration, settings, keep_float)
        WRITERS[settings.format](blueprint, path, metadata, settings)
    return ""


def _sized(
    model: nn.Module,
    card: Card,
    settings: ExportSettings,
    proofs: Proofs,
    note: Callable[[str], None],
) -> ExportSettings:
    """Return settings with the size of a detector's file, which follows from images of its own."""
    if card.task != "detect" or settings.size is not None:
        return settings
    from convnext.tasks.detection.export.file import default_canvas, last_stride

    sizes = [image.size for image in proofs.images()]
    size = default_canvas(card.preprocessing, sizes, last_stride(model))
    note(
        f"the file takes images of up to {size[0]} x {size[1]} pixels, which the largest of "
        f"{len(sizes):,} images needs; larger ones are shrunk (--size HxW for another)"
    )
    return replace(settings, size=size)


def licence_of(card: Card) -> str:
    """Return the licence of published weights; empty for those that somebody trained."""
    from convnext.weights.published import find_published

    known = find_published(card.model) if not card.metrics else None
    return known.licence if known else ""


def _target(source: str, card: Card, settings: ExportSettings, output: str | Path | None) -> Path:
    suffix = SUFFIX[settings.format]
    if output is not None:
        path = Path(output)
        if path.suffix != suffix:
            raise ValueError(f"{path} must end in {suffix} for {settings.format}")
        return path
    name = f"{card.model.replace('/', '-')}_{settings.precision}{suffix}"
    folder = Path(source)
    return (folder if folder.is_dir() else Path()) / name
