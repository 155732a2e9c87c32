"""Exported files, run by their own runtime: ONNX Runtime, OpenVINO, or torch for pt2.

Arrays go in and arrays come out; what they mean is for the task of the card to say. Only pt2 needs
torch, so a file of another format can be used where torch is not installed.
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
"""Where a pt2 file keeps its metadata."""
# Those that report on code that is not the user's.
LOGGERS = ("torch.onnx", "onnxscript", "torch.utils.cpp_extension", "nncf")
Array = NDArray[Any]


@dataclass(frozen=True)
class Exported:
    """A file in its runtime."""

    path: Path
    metadata: Mapping[str, str]
    call: Callable[[Sequence[Array]], list[Array]]
    """From all that the graph takes to all that it gives."""

    @property
    def source(self) -> str:
        """Where it came from, for messages."""
        return str(self.path)

    @cached_property
    def graph(self) -> dict[str, Any]:
        """What the file computes beside the network: `ExportSpec.facts`; empty if it says nothing.

        Always there: `inside`, `precision`, `batch` (None for any) and `size` (None for any).
        """
        try:
            known = json.loads(self.metadata.get("graph", "{}"))
        except ValueError:
            return {}
        return known if isinstance(known, dict) else {}

    @cached_property
    def card(self) -> Card:
        """The card of the network in the file.

        Raises:
            ValueError: If the metadata are damaged.
        """
        return Card.from_metadata(self.metadata, where=str(self.path))

    def run(self, images: Array) -> Array:
        """Return what a graph of one input and one output gives."""
        return self.call([images])[0]

    def run_in_batches(self, images: Array) -> Array:
        """As `run`, for any number of images: a fixed batch is filled up with the last one."""
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
    """Tell whether a path names an exported file, by its ending."""
    return Path(path).suffix in SUFFIXES


def open_exported(path: str | Path) -> Exported:
    """Open a file for running.

    Raises:
        ValueError: If there is no such file, its runtime is not installed, it was not exported by
            this package, or it holds what could execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    openers = {"onnx": _open_onnx, "openvino": _open_openvino, "pt2": _open_pt2}
    exported = openers[SUFFIXES[path.suffix]](path)
    if not {"inside", "precision"} <= exported.graph.keys():
        raise ValueError(f"{path} was not written by `convnext export`: it does not say what it is")
    return exported


def _open_onnx(path: Path) -> Exported:
    (ort,) = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # Its exceptions share no base class.
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
    except Exception as error:  # Likewise.
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    # A file in fp16 stores its weights so and computes in fp32.
    precision = Exported(path, metadata, lambda _: []).graph.get("precision")
    request = openvino_request(model, "bf16" if precision == "bf16" else "fp32")

    def call(given: Sequence[Array]) -> list[Array]:
        found = request.infer([np.ascontiguousarray(array) for array in given])
        # The result's memory is the request's: it is copied before the next call.
        return [np.array(found[i]) for i in range(len(found))]

    return Exported(path, metadata, call)


def _open_pt2(path: Path) -> Exported:
    import torch
    import torchvision  # noqa: F401 - A detector's program calls its operators.

    from convnext.deploy.pt2 import checked_archive

    extra = {EXTRA: ""}
    program = torch.export.load(checked_archive(path), extra_files=extra)
    module = program.module()
    metadata = json.loads(extra[EXTRA] or "{}")

    def call(given: Sequence[Array]) -> list[Array]:
        # The program has its own precision, whatever the caller's.
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            found = module(*map(torch.from_numpy, given))
        return [out.numpy() for out in ((found,) if isinstance(found, torch.Tensor) else found)]

    return Exported(path, metadata, call)


@dataclass(frozen=True, kw_only=True)
class NoNormalization:
    """The preprocessing of a checkpoint without its last step, which is inside of a file.

    `whole` leaves the resizing to the file, too.
    """

    normalizes: ClassVar[bool] = False
    inner: Any
    whole: bool

    @property
    def mode(self) -> Mode:
        """As the checkpoint's."""
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
    """Return what of a preprocessing is left to do for a file that has `inside` of it."""
    if inside == "none":
        return preprocessing
    return NoNormalization(inner=preprocessing, whole=inside == "full")


def num_threads() -> int:
    """Return how many threads a runtime may use: as torch, where that is loaded; 0 for its own."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() else 0


def openvino_request(model: Any, precision: str) -> Any:
    """Return what infers by an OpenVINO model on the CPU, with the threads that torch has.

    Args:
        model: OpenVINO's.
        precision: Of what the model leaves open: `bf16`, `fp16`, or of all others fp32.
    """
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": num_threads(),
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp16": "f16"}.get(precision, "f32"),
    }
    return import_openvino().Core().compile_model(model, "CPU", settings).create_infer_request()


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry, which tells its makers of every conversion.

    Its converter is imported where torch is loaded; running files does not need it.
    """
    name = "openvino_telemetry"
    unwanted = name not in sys.modules
    if unwanted:
        sys.modules[name] = None  # type: ignore[assignment]  # As if it were not installed.
    try:
        import openvino

        if "torch" in sys.modules:
            import openvino.tools.ovc
    finally:
        if unwanted:
            del sys.modules[name]
    return cast(ModuleType, openvino)


def need(*modules: str) -> list[Any]:
    """Import what an extra brings.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        if "openvino" in modules:  # NNCF imports it, too.
            import_openvino()
        return [importlib.import_module(name) for name in modules]
    except ImportError as error:
        raise ValueError(
            f"this needs {error.name}, which is not installed: pip install 'convnext[export]'"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, and all but errors of exporters' logs, from the screen."""
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
