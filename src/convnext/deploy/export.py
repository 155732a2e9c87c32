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
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import convnext
from convnext.atomic import write_text
from convnext.checkpoint import Card
from convnext.deploy.fold import fold
from convnext.deploy.graphs import (
    Graph,
    Half,
    Inside,
    Labels,
    Pixels,
    Probabilities,
    WholeImage,
)
from convnext.deploy.layers import spell_out
from convnext.deploy.prove import Proof, Proofs, collect, prove
from convnext.deploy.quiet import quiet
from convnext.deploy.runtimes import EXTRA, need
from convnext.device import AMP_DTYPES
from convnext.inference import open_model

Format = Literal["onnx", "openvino", "pt2"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
# LayerNormalization came with 17, antialiasing and fp16 casts of today's runtimes with 18.
OPSET = 18
MAX_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is in a file, and in which form."""

    format: Format = "onnx"
    precision: Precision = "fp32"
    inside: Inside = "normalize"
    answers: bool = True
    """Probabilities of a classifier, labels of a segmentor; else logits."""
    batch: int | None = None
    """Images at a time; None leaves it open."""
    size: tuple[int, int] | None = None
    """Height and width of the images; None for those of the checkpoint."""

    def __post_init__(self) -> None:
        """Check what goes together.

        Raises:
            ValueError: Naming the field, its value and what it can be.
        """
        for value, kinds, name in (
            (self.format, Format, "format"),
            (self.precision, Precision, "precision"),
            (self.inside, Inside, "preprocess"),
        ):
            if value not in get_args(kinds):
                raise ValueError(f"{name} is {value!r}; choose of {', '.join(get_args(kinds))}")
        if self.batch is not None and not 1 <= self.batch <= MAX_BATCH:
            raise ValueError(f"batch is {self.batch}, but must be from 1 to {MAX_BATCH:,}")
        if self.format == "onnx" and self.precision == "bf16":
            raise ValueError(
                "ONNX Runtime has no kernels for bf16 on CPUs: take fp16, or OpenVINO for bf16"
            )
        if self.format == "pt2" and self.precision == "int8":
            raise ValueError("int8 is for OpenVINO and ONNX: --format openvino --precision int8")


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
        rows = [
            ("images", f"{proof.num_images:,}"),
            ("largest difference of a probability", f"{proof.max_difference:.2g}"),
            ("same answers", f"{100 * proof.agreement:.2f} %"),
        ]
        if proof.before is not None and proof.after is not None:
            change = f"{proof.before:.2f} % before, {proof.after:.2f} % after"
            rows.append((f"{proof.metric} on them", change))
        rows.append(("speed, one image at a time", f"{proof.speed_ratio:.2f} times eager"))
        for row in rows:
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
    if card.task == "detect":
        raise ValueError(
            f"{source} is a detector, which this verb does not export yet: "
            "convnext.deploy.detector_graph.DetectorGraph is its graph of fixed size"
        )
    path = _target(source, card, settings, output)
    proofs = collect(card, source, images, num_images)
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
    from convnext.deploy.quantize import NUM_KEPT, sensitivity

    pixels = list(proofs.calibration())
    note(f"measuring how sensitive each layer is to int8, on {min(8, len(pixels))} images")
    normalized = card.preprocessing.normalize(torch.cat(pixels[:8]))
    layers = sensitivity(fold(model, form="conv"), normalized)
    for layer in layers[:5]:
        note(f"  {layer.name}: outputs change by {100 * layer.error:.1f} % with it alone in int8")
    for num_kept in NUM_KEPT:
        kept = tuple(layer.name for layer in layers[:num_kept])
        note(
            f"writing {settings.format} in int8, calibrated on {len(pixels):,} images"
            + (f", {num_kept} layers in float" if kept else "")
        )
        slower = write(model, card, settings, draft, calibration=pixels, keep_float=kept)
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
    calibration: Sequence[Tensor] = (),
    keep_float: Sequence[str] = (),
) -> str:
    """Write a file without proving it.

    Args:
        model: In evaluation mode, on the CPU, in fp32.
        card: Of its checkpoint.
        settings: What is in the file.
        path: With the suffix of the format.
        calibration: For int8: pixels, uint8 (N, C, H, W).
        keep_float: For int8: names of layers of the folded network that stay in fp32.

    Returns:
        For int8, what is wrong with its speed; empty if nothing is.

    Raises:
        ValueError: If a library is not installed, or a setting does not fit the network.
    """
    size = size_of(card, settings)
    graph = build_graph(model, card, settings)
    batch = 1 if settings.inside == "full" else settings.batch
    example = _example(card, settings, batch or 2, size)
    metadata = {
        **card.to_metadata(),
        "convnext": convnext.__version__,
        "licence": licence_of(card),
        "graph": json.dumps(
            {
                "inside": settings.inside,
                "output": _output(card, settings),
                "batch": batch,
                "size": None if settings.inside == "full" else list(size),
                "precision": settings.precision,
            }
        ),
    }
    writers = {"onnx": write_onnx, "openvino": _write_openvino, "pt2": _write_pt2}
    with torch.no_grad(), quiet():
        if settings.precision == "int8":
            from convnext.deploy.quantize import write_int8

            given = [_given(pixels, card, settings) for pixels in calibration]
            return write_int8(graph, example, path, metadata, given, settings, keep_float)
        writers[settings.format](graph, example, batch, path, metadata, settings)
    return ""


def build_graph(model: nn.Module, card: Card, settings: ExportSettings) -> Graph:
    """Return the network with what goes into the file around it, folded."""
    pre = card.preprocessing
    if settings.inside == "full" and card.task != "classify":
        raise ValueError(
            "a segmentor looks at images in their own ratio, and so is given them resized: take "
            "--preprocess normalize"
        )
    if settings.inside == "none":
        folded = fold(model, form="conv")
    else:
        scaled = ([255 * v for v in values] for values in (pre.mean, pre.std))
        mean, std = scaled
        folded = fold(model, mean=mean, std=std, form="conv")
    if settings.format == "openvino":
        folded = spell_out(folded)
    elif settings.precision in AMP_DTYPES:
        folded = Half(folded, AMP_DTYPES[settings.precision])
    prepare: nn.Module = {"none": nn.Identity(), "normalize": Pixels()}.get(
        settings.inside
    ) or WholeImage(pre)
    finish: nn.Module = nn.Identity()
    if settings.answers:
        finish = Probabilities() if card.task == "classify" else Labels()
    return Graph(prepare, folded, finish).eval()


def size_of(card: Card, settings: ExportSettings) -> tuple[int, int]:
    """Return the height and width of the images that a file takes."""
    if settings.size is not None:
        return settings.size
    if card.task == "classify":
        side = int(card.preprocessing.image_size)
        return side, side
    crop = card.recipe.get("segment", {}).get("crop")
    side = int(crop or card.preprocessing.image_size or 512)
    return side, side


def licence_of(card: Card) -> str:
    """Return the licence of published weights; empty for those that somebody trained."""
    from convnext.weights.published import find_published

    known = find_published(card.model) if not card.metrics else None
    return known.licence if known else ""


def _output(card: Card, settings: ExportSettings) -> str:
    if not settings.answers:
        return "logits"
    return "probabilities" if card.task == "classify" else "labels"


def _example(card: Card, settings: ExportSettings, num: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    chans, (height, width) = int(card.preprocessing.in_chans), size
    if settings.inside == "none":
        return torch.randn(num, chans, height, width, generator=generator)
    if settings.inside == "full":  # No side is a special case: neither equal nor the target's.
        height, width = height + 37, width + 91
    return torch.randint(
        0, 256, (num, height, width, chans), generator=generator, dtype=torch.uint8
    )


def _given(pixels: Tensor, card: Card, settings: ExportSettings) -> Tensor:
    """Return pixels, uint8 (N, C, H, W), as the graph takes them."""
    if settings.inside == "none":
        normalized: Tensor = card.preprocessing.normalize(pixels)
        return normalized
    return pixels.permute(0, 2, 3, 1).contiguous()


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


def _dynamic(example: Tensor, batch: int | None, settings: ExportSettings) -> dict[int, Any]:
    if settings.inside == "full":
        sides = (torch.export.Dim(n, min=8, max=32768) for n in ("height", "width"))
        return dict(zip((1, 2), sides, strict=True))
    return {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)} if batch is None else {}


def _program(
    graph: nn.Module, example: Tensor, batch: int | None, settings: ExportSettings
) -> torch.export.ExportedProgram:
    return torch.export.export(
        graph, (example,), dynamic_shapes=(_dynamic(example, batch, settings),)
    )


def write_onnx(
    graph: nn.Module,
    example: Tensor,
    batch: int | None,
    path: Path,
    metadata: dict[str, str],
    settings: ExportSettings,
) -> None:
    onnx, _ = need("onnx", "onnxscript")
    program = _program(graph, example, batch, settings)
    torch.onnx.export(
        program,
        (),
        str(path),
        input_names=["images"],
        output_names=["output"],
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    written = onnx.load(str(path))
    onnx.helper.set_model_props(written, metadata)
    written.producer_name = "convnext"
    onnx.save(written, str(path))


def _write_openvino(
    graph: nn.Module,
    example: Tensor,
    batch: int | None,
    path: Path,
    metadata: dict[str, str],
    settings: ExportSettings,
) -> None:
    (openvino,) = need("openvino")
    converted = to_openvino(graph, example, batch, settings)
    converted.set_rt_info(json.dumps(metadata), ["convnext"])
    openvino.save_model(converted, str(path), compress_to_fp16=settings.precision == "fp16")


def to_openvino(
    graph: nn.Module, example: Tensor, batch: int | None, settings: ExportSettings
) -> Any:
    """Return OpenVINO's model of a graph, straight from torch: twice as fast as by way of ONNX."""
    (openvino,) = need("openvino")
    shape = [
        -1 if i in _dynamic(example, batch, settings) else n for i, n in enumerate(example.shape)
    ]
    kind = openvino.Type.f32 if example.dtype == torch.float32 else openvino.Type.u8
    return openvino.convert_model(
        graph, example_input=example, input=[(openvino.PartialShape(shape), kind)]
    )


def _write_pt2(
    graph: nn.Module,
    example: Tensor,
    batch: int | None,
    path: Path,
    metadata: dict[str, str],
    settings: ExportSettings,
) -> None:
    program = _program(graph, example, batch, settings)
    torch.export.save(program, str(path), extra_files={EXTRA: json.dumps(metadata)})
