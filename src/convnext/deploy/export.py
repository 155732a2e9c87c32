"""`export`: write a trained network as a file for another runtime, and verify it on real images.

The file carries the card of its checkpoint (classes, preprocessing, recipe) and a description of
its inputs and outputs. It is written under a temporary name, run in its own runtime and compared
with the network, and only then renamed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import convnext
from convnext.atomic import draft_beside, write_text
from convnext.deploy.formats import LIBRARIES, SUFFIX, WRITERS, Blueprint, ExportSettings
from convnext.deploy.quantize import NUM_KEPT, Calibration, calibrate, write_int8
from convnext.deploy.runtimes import Exported, need, open_exported, quiet
from convnext.deploy.verify import Comparison, Proof, ProofImages, S, collect_images, prove
from convnext.weights.checkpoint import Card

# A disk with fewer bytes is full.
LEAST_SPACE = 100_000

__all__ = ["ExportRequest", "ExportResult", "ExportSettings", "ExportSpec", "export", "write"]


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """A trained network, and how to export it."""

    model: nn.Module
    """The network, in evaluation mode, on the CPU, in fp32; it is not changed."""
    card: Card
    source: str
    """The user's name for the network: a run folder, a file or a hub id."""
    settings: ExportSettings
    images: Sequence[str | Path] = ()
    """Files and folders to verify the file on; by default the run's validation set."""
    num_images: int = 32
    """Maximum number of these images."""
    note: Callable[[str], None] = lambda _: None
    """Called with one line of progress at a time."""

    def proofs(self, open_split: Callable[[str], S], truth: Callable[[S, int], Any]) -> ProofImages:
        """Return the images to verify the file on.

        Args:
            open_split: Opens "val" or "train" of the run's data set.
            truth: Returns the ground truth of an image of a split.

        Raises:
            ValueError: If there are no images.
        """
        return collect_images(
            *(self.card, self.source, self.images, self.num_images),
            open_split=open_split,
            truth=truth,
        )


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """A network to export, with everything that depends on its task."""

    source: str
    """The user's name for the network: a run folder, a file or a hub id."""
    card: Card
    """The card to write into the file; the file is used with its preprocessing."""
    settings: ExportSettings
    facts: Mapping[str, Any]
    """Facts about the graph to write in addition to `inside` and `precision`: `batch` and `size`
    (None for any), and what the task needs to interpret the outputs."""
    blueprint: Callable[[], Blueprint]
    """Builds the graph around a folded copy of the network, as the format needs it."""
    images: ProofImages
    compare: Callable[[Exported], Comparison[Any]]
    """Compares the written file with the network."""
    calibration: Calibration
    """Calibration for int8."""

    def metadata(self) -> dict[str, str]:
        """Return the metadata to write next to the graph."""
        settings = self.settings
        facts = {"inside": settings.inside, "precision": settings.precision, **self.facts}
        return {
            **self.card.to_metadata(),
            "convnext": convnext.__version__,
            "license": license_of(self.card),
            "graph": json.dumps(facts),
        }


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """An exported file and its proof."""

    path: Path
    bytes: int
    """Size, including a separate weights file if the format has one."""
    proof: Proof
    proof_path: Path

    def print(self, console: Console) -> None:
        """Print how the file compares with its network, and the next command."""
        proof, table = self.proof, Table(box=None, show_header=False)
        for row in proof.rows():
            table.add_row(*row)
        console.print(table)
        if proof.failure:
            console.print(f"failed verification, kept by --force: {proof.failure}", markup=False)
        size = f"{self.bytes / 1e6:,.1f} MB"
        console.print(
            f"written: {self.path} ({size}), {self.proof_path.name}", markup=False, soft_wrap=True
        )
        console.print(f"next: convnext predict {self.path} IMAGE", soft_wrap=True, markup=False)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "proof": self.proof.to_dict(),
            "proof_path": str(self.proof_path),
        }


def check_request(settings: ExportSettings, output: str | Path | None) -> None:
    """Check the settings that depend on neither the network nor its data.

    Raises:
        ValueError: If a library is not installed, or the path has the suffix of another format.
    """
    need(*LIBRARIES[settings.format], *(["nncf"] if settings.precision == "int8" else []))
    suffix = SUFFIX[settings.format]
    if output is not None and Path(output).suffix != suffix:
        raise ValueError(f"{output} must end in {suffix} for {settings.format}")


def export(
    spec: ExportSpec,
    *,
    output: str | Path | None = None,
    force: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> ExportResult:
    """Write a network as a file, and verify the file on real images.

    Args:
        spec: The network and the details of its task.
        output: The path; by default next to the checkpoint, named by network and precision.
        force: Keep a file that fails verification.
        note: Called with each line of progress.

    Raises:
        ValueError: If the format's library is missing, no image can be read, or a setting does not
            fit the network.
        ArithmeticError: If the outputs do not match the network's; the file is not kept.
        OSError: If the disk is full.
    """
    check_request(spec.settings, output)
    path = Path(output) if output is not None else default_path(spec)
    note(f"folding {spec.card.model}; {len(spec.images.files):,} images to verify it on")
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_beside(Path(os.path.abspath(path))) as folder:
        draft = folder / path.name
        with _full_disk_named(path):
            proof = _write_proven(spec, draft, note)
        if not proof.passed and not force:
            raise ArithmeticError(
                f"the exported file of {spec.card.model} failed verification: {proof.failure}; it "
                "was deleted (use --force to keep it)"
            )
        written = sorted(file for file in folder.iterdir() if file.suffix in (path.suffix, ".bin"))
        if len(written) > 1:
            # Moved last, it names the others: an old one must not be read with new weights.
            path.unlink(missing_ok=True)
            written.sort(key=draft.__eq__)
        proof_path = path.with_name(path.name + ".proof.json")
        proof_path.unlink(missing_ok=True)  # An old one must not be read with a new file.
        write_text(folder / proof_path.name, json.dumps(proof.to_dict(), indent=1) + "\n")
        for file in (*written, folder / proof_path.name):
            file.replace(path.parent / file.name)
    size = sum((path.parent / file.name).stat().st_size for file in written)
    return ExportResult(path=path, bytes=size, proof=proof, proof_path=proof_path)


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    """Raise an OSError instead of what the writer of a format raises on a full disk.

    Raises:
        OSError: If the disk is full; what was at the path is kept.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        free = shutil.disk_usage(path.parent).free
        # OpenVINO removes what it has written, so that the disk is not full any more.
        if "iostream error" in str(error) and free >= LEAST_SPACE:
            raise OSError(
                f"{path} could not be written; is the disk full? {free / 1e6:,.1f} MB are free"
            ) from error
        if free >= LEAST_SPACE:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def _write_proven(spec: ExportSpec, draft: Path, note: Callable[[str], None]) -> Proof:
    """Write a file and verify it; if int8 fails, retry with the most sensitive layers in fp32."""
    settings = spec.settings

    def proven() -> Proof:
        comparison = spec.compare(open_exported(draft))
        return prove(comparison, spec.images, precision=settings.precision)

    if settings.precision != "int8":
        note(f"writing {settings.format} in {settings.precision}")
        write(spec, draft)
        note("running the file in its own runtime")
        return proven()
    given, layers = calibrate(spec.calibration, spec.images, note)
    for layer in layers[:5]:
        note(f"  {layer.name}: in int8 alone, changes the outputs by {100 * layer.error:.1f} %")
    for num_kept in NUM_KEPT:
        kept = tuple(layer.name for layer in layers[:num_kept])
        note(
            f"writing {settings.format} in int8, calibrated on {len(given):,} images"
            + (f", {num_kept} layers in float" if kept else "")
        )
        blueprint = spec.blueprint()
        with torch.no_grad(), quiet():
            slower = write_int8(blueprint, draft, spec.metadata(), given, settings, kept)
        proof = replace(proven(), sensitivity=tuple(map(asdict, layers)), keep_float=kept)
        if slower and proof.passed:
            return replace(proof, failure=slower)
        if proof.passed:
            return proof
        note(f"  {proof.failure}")
    return proof


def write(spec: ExportSpec, path: Path) -> None:
    """Write a file in any precision except int8, without verification.

    Raises:
        ValueError: If a library is not installed, or a setting does not fit the network.
    """
    with torch.no_grad(), quiet():
        WRITERS[spec.settings.format](spec.blueprint(), path, spec.metadata(), spec.settings)


def license_of(card: Card) -> str:
    """Return the license of published weights; empty for weights that a user trained."""
    from convnext.weights.published import find_published

    known = find_published(card.model) if not card.metrics else None
    return known.license if known else ""


def default_path(spec: ExportSpec) -> Path:
    """Return the default path of a file: in the run folder, or else in the working directory."""
    suffix = SUFFIX[spec.settings.format]
    name = f"{spec.card.model.replace('/', '-')}_{spec.settings.precision}{suffix}"
    folder = Path(spec.source)
    return (folder if folder.is_dir() else Path()) / name
