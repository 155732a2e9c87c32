"""`export` and `convert`: write a network as a file for other runtimes, or in another layout."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.atomic import atomic_write, draft_beside, sync_folder
from convnext.deploy import export as deployment
from convnext.deploy.export import ExportRequest, ExportResult, ExportSettings
from convnext.models.config import NetworkConfig
from convnext.models.factory import network_configs
from convnext.names import nearest
from convnext.tasks import task_class
from convnext.tasks.factory import create_model, dense_kind, dense_prefix, infer_model
from convnext.tasks.trained import Opened, opened
from convnext.weights.checkpoint import FORMAT, Card, is_exported
from convnext.weights.dense import layouts_of_model
from convnext.weights.files import save_tensors
from convnext.weights.layouts import layout_for, recognize, with_num_dims
from convnext.weights.load import export_tensors, shorten
from convnext.weights.sources import read_source


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
    request = ExportRequest(
        model=model,
        card=trained.card,
        source=name,
        settings=settings,
        images=images,
        num_images=num_images,
        note=note,
    )
    spec = task_class(trained.card.task).export_spec(request)
    return deployment.export(spec, output=output, force=force, note=note)


# Keys that wrap the state dict in files of these packages; those of dense networks come from the
# OpenMMLab toolboxes.
_WRAPPED = {"official": "model", "openmmlab": "state_dict"}
_WRAPPED_DENSE = {"official": "state_dict", "openmmlab": "state_dict"}


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """Source and result of a conversion."""

    source: str
    source_layout: str
    model: str
    changes: dict[str, Any]
    """Config fields in which the network differs from the named one."""
    written_layout: str
    tensors: int
    dropped: tuple[str, ...]
    """Tensors of the source that the network does not have."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        changes = ", ".join(f"{name}={value}" for name, value in self.changes.items())
        lines = [
            f"{self.source}: {self.model}{f' with {changes}' if changes else ''}, "
            f"{self.tensors} tensors from {self.source_layout} to {self.written_layout}"
        ]
        if self.dropped:
            lines.append(f"left out: {shorten(self.dropped)}")
        return "\n".join(lines)


def convert(
    source: str | Path, target: str | Path, layout: str, *, model: str | None = None
) -> ConvertReport:
    """Read a checkpoint in any layout and write it in another one.

    Args:
        source: A file, a folder, or a hub id.
        target: A `.safetensors` or `.pth` file, written atomically.
        layout: "official", "timm", "torchvision", "transformers", "openmmlab" or "convnext".
        model: The network; by default from the file's metadata, or else inferred from its shapes.

    Raises:
        ValueError: If the source cannot be read or is not a network of this package, or the layout
            does not support the network.
        BusyError: If another process writes the same file.
        OSError: If the file cannot be written; an old one is kept.
    """
    target = Path(target)
    if target.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"{target} must end in .safetensors or .pth")
    tensors, metadata = read_source(source)
    name, changes = _network(tensors, metadata, model)
    with torch.device("meta"):
        network = create_model(name, **changes)
    config = getattr(network, "backbone", network).config
    assert isinstance(config, NetworkConfig), "other networks are refused before"
    layouts = layouts_of_model(network)
    layout_for(layout, config, layouts)
    recognition = recognize(tensors, layouts)
    found = {ours: tensors[theirs] for theirs, ours in recognition.names.items()}
    expected = network.state_dict()
    ours = {
        key: with_num_dims(found[key], tensor.ndim)
        for key, tensor in expected.items()
        if key in found
    }
    wrong = [key for key, tensor in ours.items() if tensor.shape != expected[key].shape]
    absent = [key for key in expected if key not in ours and not _optional(key)]
    if wrong or absent:
        what = f"has other shapes for {shorten(wrong)}" if wrong else f"lacks {shorten(absent)}"
        raise ValueError(f"{source} is not a {name}: it {what}")
    exported = export_tensors(ours, config, layout, layouts)
    keep = metadata if layout == "convnext" and metadata.get("model") == name else {"format": "pt"}
    wrapped = _WRAPPED_DENSE if dense_prefix(name) else _WRAPPED
    _write(target, exported, wrapped.get(layout), keep)
    return ConvertReport(
        source=str(source),
        source_layout=recognition.layout.name,
        model=name,
        changes=changes,
        written_layout=layout,
        tensors=len(exported),
        dropped=tuple(t for t in tensors if recognition.names.get(t) not in ours),
    )


def _network(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], model: str | None
) -> tuple[str, dict[str, Any]]:
    """Return a network's name and changes: as given, from the file's metadata, or inferred."""
    if model is not None:
        if not _is_ours(model):
            raise ValueError(f"there is no model {model!r}{nearest(model, network_configs())}")
        return model, _classes_and_channels(tensors, model)
    if metadata.get("format") == FORMAT:
        card = Card.from_metadata(metadata, where="the checkpoint")
        if not _is_ours(card.model):
            raise ValueError(
                f"{card.model} is not a network of this package and has no other layouts"
            )
        return card.model, _changed(card.model, card.changes)
    return infer_model(tensors)


def _is_ours(name: str) -> bool:
    """Whether a network, or its backbone, is one of this package."""
    return name.removeprefix(dense_prefix(name) or "") in network_configs()


def _classes_and_channels(tensors: Mapping[str, Tensor], model: str) -> dict[str, Any]:
    """Return the numbers of classes and channels in a file, for a network named by the user."""
    if (kind := dense_kind(model)) is not None:
        tables = kind.tables
        own = (*tables.shapes, *tables.present, "output_norms", "in_chans")
        return {k: v for k, v in tables.infer(tensors)[1].items() if k in own}
    recognition = recognize(tensors)
    shapes = {ours: tensors[theirs].shape for theirs, ours in recognition.names.items()}
    head, stem = shapes.get("head.fc.weight", (0,)), shapes.get("stem.conv.weight")
    changes: dict[str, Any] = {} if head[0] == 1000 else {"num_classes": head[0]}
    return changes | ({"in_chans": stem[1]} if stem and stem[1] != 3 else {})


def _changed(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the named network; a run's card lists all values."""
    with torch.device("meta"):
        known, new = create_model(name), create_model(name, **values)
    assert isinstance(known.changes, dict)
    assert isinstance(new.changes, dict)
    return {key: value for key, value in new.changes.items() if value != known.changes[key]}


def _optional(name: str) -> bool:
    """Whether a backbone without its classifier may lack a tensor."""
    return name.startswith("head.") or name.endswith("num_batches_tracked")


def _write(
    target: Path, tensors: Mapping[str, Tensor], key: str | None, metadata: Mapping[str, str]
) -> None:
    with draft_beside(Path(os.path.abspath(target))) as folder:
        draft = folder / target.name
        try:
            _write_file(draft, tensors, key, metadata)
        except OSError as error:
            if error.filename is not None:
                error.filename = str(target)  # Not the name of the draft.
            raise
        draft.replace(target)
        sync_folder(target.parent)


def _write_file(
    path: Path, tensors: Mapping[str, Tensor], key: str | None, metadata: Mapping[str, str]
) -> None:
    if path.suffix == ".safetensors":
        save_tensors(path, tensors, metadata, sign=False)  # Like other packages' files.
        return
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = BytesIO()  # On a full disk, torch's own writer would end the process.
    torch.save({key: plain} if key else plain, content)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())
