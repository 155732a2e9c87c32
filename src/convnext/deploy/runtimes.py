"""Run exported files in their own runtime: ONNX Runtime, OpenVINO, or torch for pt2.

Inputs and outputs are arrays, which the task interprets. Only pt2 needs torch; the other formats
work where torch is not installed.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import Mode, as_mode
from convnext.data.preprocessing import Pixels, to_array
from convnext.weights.checkpoint import Card

SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2"}
EXTRA = "convnext.json"
"""The entry of a pt2 file that holds its metadata."""
# Loggers of exporters; their reports do not concern the user's code.
LOGGERS = ("torch.onnx", "onnxscript", "torch.utils.cpp_extension", "nncf")
Array = NDArray[Any]


@dataclass(frozen=True)
class Exported:
    """An exported file, opened in its runtime."""

    path: Path
    metadata: Mapping[str, str]
    call: Callable[[Sequence[Array]], list[Array]]
    """Maps all inputs of the graph to all outputs."""

    @property
    def source(self) -> str:
        """The path, for messages."""
        return str(self.path)

    @cached_property
    def graph(self) -> dict[str, Any]:
        """The file's description of its graph (`ExportSpec.facts`); empty if it has none.

        Always contains `inside`, `precision`, `batch` (None for any) and `size` (None for any).
        """
        try:
            known = json.loads(self.metadata.get("graph", "{}"))
        except ValueError:
            return {}
        return known if isinstance(known, dict) else {}

    @cached_property
    def card(self) -> Card:
        """The card of the network.

        Raises:
            ValueError: If the metadata are damaged.
        """
        return Card.from_metadata(self.metadata, where=str(self.path))

    def run(self, images: Array) -> Array:
        """Run a graph that has one input and one output."""
        return self.call([images])[0]

    def run_in_batches(self, images: Array) -> Array:
        """Run any number of images; repeats the last one to fill a fixed batch size."""
        size = self.graph["batch"] or max(1, len(images))
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            missing = size - len(part)
            if missing and self.graph["batch"]:
                part = np.concatenate([part, np.repeat(part[-1:], missing, 0)])
            parts.append(self.run(np.ascontiguousarray(part)))
        return np.concatenate(parts)[: len(images)]


def is_exported(path: str | Path) -> bool:
    """Return whether a path has the suffix of an exported file."""
    return Path(path).suffix in SUFFIXES


def open_exported(path: str | Path) -> Exported:
    """Open an exported file.

    Raises:
        ValueError: If the file does not exist, its runtime is not installed, it was not exported by
            this package, or it could execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    openers = {"onnx": _open_onnx, "openvino": _open_openvino, "pt2": _open_pt2}
    exported = openers[SUFFIXES[path.suffix]](path)
    if not {"inside", "precision"} <= exported.graph.keys():
        raise ValueError(f"{path} was not written by `convnext export`: it has no metadata")
    return exported


def _open_onnx(path: Path) -> Exported:
    (ort,) = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class.
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    names = [entry.name for entry in session.get_inputs()]
    metadata = session.get_modelmeta().custom_metadata_map

    def call(given: Sequence[Array]) -> list[Array]:
        found: list[Array] = session.run(None, dict(zip(names, given, strict=True)))
        return found

    return Exported(path, metadata, call)


def _open_openvino(path: Path) -> Exported:
    (openvino,) = need("openvino")
    try:
        model = openvino.Core().read_model(str(path))
        metadata = json.loads(model.get_rt_info(["convnext"]).astype(str))
    except Exception as error:  # OpenVINO's neither.
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    # A file in fp16 stores its weights in fp16 and computes in fp32.
    precision = Exported(path, metadata, lambda _: []).graph.get("precision")
    request = openvino_request(model, "bf16" if precision == "bf16" else "fp32")

    def call(given: Sequence[Array]) -> list[Array]:
        found = request.infer([np.ascontiguousarray(array) for array in given])
        # The request owns the memory of the result, so copy it before the next call.
        return [np.array(found[i]) for i in range(len(found))]

    return Exported(path, metadata, call)


def _open_pt2(path: Path) -> Exported:
    import torch
    import torchvision  # noqa: F401 - Detectors call its operators.

    from convnext.deploy.pt2 import checked_archive

    extra = {EXTRA: ""}
    program = torch.export.load(checked_archive(path), extra_files=extra)
    module = program.module()
    metadata = json.loads(extra[EXTRA] or "{}")

    def call(given: Sequence[Array]) -> list[Array]:
        # The program has its own precision; ignore the caller's autocast.
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            found = module(*map(torch.from_numpy, given))
        return [out.numpy() for out in ((found,) if isinstance(found, torch.Tensor) else found)]

    return Exported(path, metadata, call)


@dataclass(frozen=True, kw_only=True)
class NoNormalization:
    """The preprocessing of a checkpoint without normalization, which the file contains.

    With `whole`, the file also resizes.
    """

    normalizes: ClassVar[bool] = False
    inner: Any
    whole: bool

    @property
    def mode(self) -> Mode:
        """The image mode of the checkpoint's preprocessing."""
        return cast(Mode, self.inner.mode)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def pixels(self, image: Image.Image) -> Pixels:
        """Return uint8 (C, H, W)."""
        if self.whole:
            return to_array(as_mode(image, self.mode))
        return cast(Pixels, self.inner.pixels(image))

    def normalize(self, batch: Array) -> NDArray[np.float32]:
        """Return uint8 pixels (N, C, H, W) as fp32, 0 to 255."""
        return batch.astype(np.float32)


def outside(preprocessing: Any, inside: str) -> Any:
    """Return the part of a preprocessing that is left to do for a file that contains `inside`."""
    if inside == "none":
        return preprocessing
    return NoNormalization(inner=preprocessing, whole=inside == "full")


def num_threads() -> int:
    """Return torch's number of threads if torch is loaded; else 0, for the runtime's default."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() else 0


def openvino_request(model: Any, precision: str) -> Any:
    """Return a CPU inference request for an OpenVINO model, with torch's number of threads.

    Args:
        model: The OpenVINO model.
        precision: The precision of inference: `bf16`, `fp16`, or fp32 for all other values.
    """
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": num_threads(),
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp16": "f16"}.get(precision, "f32"),
    }
    return import_openvino().Core().compile_model(model, "CPU", settings).create_infer_request()


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry, which reports every conversion to its vendor.

    The converter is imported only if torch is loaded; running files does not need it.
    """
    name = "openvino_telemetry"
    unwanted = name not in sys.modules
    if unwanted:
        sys.modules[name] = None  # type: ignore[assignment]  # Hides an installed module.
    try:
        import openvino

        if "torch" in sys.modules:
            import openvino.tools.ovc
    finally:
        if unwanted:
            del sys.modules[name]
    return cast(ModuleType, openvino)


def need(*modules: str) -> list[Any]:
    """Import modules of an optional dependency.

    Raises:
        ValueError: If one is not installed.
    """
    try:
        if "openvino" in modules:  # NNCF imports it too.
            import_openvino()
        return [importlib.import_module(name) for name in modules]
    except ImportError as error:
        raise ValueError(
            f"this needs {error.name}, which is not installed: pip install 'convnext[export]'"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings, and log messages of exporters below the level of errors."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
