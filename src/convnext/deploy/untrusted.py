"""Exported files from anywhere: what would run code or read other files is refused beforehand.

ONNX files may name other files that hold their tensors. ONNX Runtime would open them, so they must
lie in the folder of the file, whatever the version of the runtime allows.

torch.export's archives may hold pickled objects beside tensors. Readers of zip files disagree on
what an archive holds (names that occur twice, or differ in case alone), so torch is not given the
file: it is given a new archive of the entries that were looked at, and of nothing else.

A program is json, and torch evaluates parts of it as Python: sizes (`expr_str`), guards, and the
names that it writes into the code of the module. Its operators may do anything that torch can,
such as making files. So sizes must be arithmetic on integers, guards comparisons of them, names
words, and operators among those that our exporter writes.

Weights are compared with the SHA-256 in the card, which finds damage and files that do not belong
together; anybody can write a card, so it is not a signature.
"""

from __future__ import annotations

import ast
import hashlib
import json
import mmap
import re
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from convnext.weights.checkpoint import DIGEST

EXTRA = "convnext.json"
"""The entry of a pt2 file that holds its metadata."""

# The entries of an archive of ours, by name. torch unpickles what it finds under other names.
_TENSOR = r"(weight|tensor)_\d+"
_ENTRY = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)|"
    rf"data/(weights|constants)/({_TENSOR}|\w+_config\.json)|data/sample_inputs/\w+\.pt|"
    r"models/\w+\.json|extra/[\w.]+)",
    re.ASCII,
)

# What the exports of the three tasks hold, in fp32, bf16 and fp16, and those of timm's networks.
# Nothing that reads or writes anything but tensors may be added.
_ATEN = (
    "__and__.Tensor __or__.Tensor _assert_scalar.default _assert_tensor_metadata.default "
    "_upsample_bicubic2d_aa.vec abs.default adaptive_avg_pool2d.default add.Tensor "
    "add_.Tensor addcmul.default alias.default amax.default arange.default arange.start "
    "argmax.default avg_pool2d.default baddbmm_.default batch_norm.default "
    "bitwise_not.default bmm.default cat.default ceil.default chunk.default clamp.default "
    "clamp_min.default contiguous.default conv1d.default conv2d.default "
    "conv_transpose2d.input copy_.default cos.default cumsum.default detach_.default "
    "div.Tensor div.Tensor_mode dropout.default einsum.default eq.Scalar exp.default "
    "expand.default expand_as.default eye.default fill_.Scalar flatten.using_ints "
    "floor.default floor_divide.default full_like.default ge.Scalar ge.Tensor gelu.default "
    "group_norm.default gt.Scalar hardsigmoid.default hardswish.default hardswish_.default "
    "hardtanh.default hardtanh_.default index.Tensor layer_norm.default le.Tensor "
    "lift_fresh_copy.default linalg_vector_norm.default linear.default log2.default lt.Scalar "
    "lt.Tensor masked_fill.Scalar matmul.default max.default max_pool2d.default mean.dim "
    "meshgrid.indexing min.default minimum.default mul.Tensor ne.Scalar neg.default "
    "new_full.default new_zeros.default nonzero.default numpy_T.default ones_like.default "
    "pad.default permute.default pow.Scalar relu.default relu_.default remainder.Scalar "
    "repeat.default reshape.default reshape_as.default roll.default round.default "
    "rsqrt.default rsub.Scalar scaled_dot_product_attention.default scatter.src select.int "
    "sigmoid.default silu.default silu_.default sin.default slice.Tensor softmax.int "
    "split.Tensor split_with_sizes.default sqrt.default stack.default sub.Tensor sum.default "
    "sum.dim_IntList sym_size.int to.device to.dtype topk.default transpose.int "
    "type_as.default unbind.int unflatten.int unsqueeze.default upsample_bicubic2d.vec "
    "upsample_bilinear2d.vec upsample_linear1d.vec upsample_nearest2d.vec view.default "
    "where.ScalarOther where.self zeros.default zeros_like.default"
)
_OTHERS = (
    "_operator.floordiv _operator.ge _operator.le _operator.mul "
    "torch.ops.higher_order.wrap_with_autocast torch.ops.torchvision.nms.default "
    "torch.ops.torchvision.roi_align.default"
)

OPERATORS = frozenset(f"torch.ops.aten.{name}" for name in _ATEN.split()) | {*_OTHERS.split()}

# Words, with dots, of which code can be made without harm. (`+` is for the version of torch.)
_WORD = re.compile(r"[\w.+]*", re.ASCII)
_SYMBOL = re.compile(r"[a-z]\d+", re.ASCII)
# Strings that operators take, such as a mode or a message: torch keeps them in quotes.
_GIVEN = re.compile(r"[\w .,:'<>=!&|+*/%()\[\]-]*", re.ASCII)
# Parts of programs that ours do not have, and that torch could be made to execute things by.
_ABSENT = ("as_operator", "as_custom_obj", "constant_input", "custom_obj", "token")
_LONGEST = 10_000
_LARGEST = 2**63
_OPERATIONS = (
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.FloorDiv,
    ast.Mod,
    ast.USub,
    ast.Not,
    ast.And,
    ast.Or,
)
_ASSUMED = ("integer", "positive", "nonnegative")
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_CALLED = (
    "Add And CeilToInt CleanDiv Eq Equality FloorDiv Ge GreaterThan Gt Integer Le LessThan Lt Max "
    "Min Mod ModularIndexing Mul Ne Not Or PythonMod StrictGreaterThan StrictLessThan Unequality "
    "torch.sym_max torch.sym_min"
)
_FUNCTIONS = frozenset(_CALLED.split())


# The messages in ONNX files that may lead to a tensor: by number of a field, what it holds.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 14: "entry", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {13: "location"},
}
_BESIDE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
MAX_FIELDS = 5_000_000
MAX_DEPTH = 40


@contextmanager
def one_line(path: Path, problem: str) -> Iterator[None]:
    """Turn any error of a runtime or of a damaged file into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        if lines[0].startswith(f"{path} "):
            raise
        raise ValueError(f"{path} {problem}: {lines[0]}") from error


def check_digest(path: Path, metadata: Mapping[str, Any], found: str) -> None:
    """Compare the SHA-256 of a file's weights with its card; files before 0.2 have none.

    Raises:
        ValueError: If they differ.
    """
    if metadata.get(DIGEST, found) != found:
        raise ValueError(
            f"{path} is damaged: its weights do not have the SHA-256 that its card states, or they "
            "belong to another file; export the network again"
        )


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, such as the weights of an OpenVINO model."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_archive(contents: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of the tensors in an archive of torch.export."""
    names = [name for name in contents if re.search(r"/data/(weights|constants)/", name)]
    return digest_of(part for name in sorted(names) for part in (name.encode(), contents[name]))


def digest_of(parts: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of byte strings and of their sizes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def checked_onnx(path: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file whose tensors are in it, or in files in its folder.

    Raises:
        ValueError: If it is damaged, its weights do not have the SHA-256 of its card, or a tensor
            is in a file elsewhere.
    """
    with one_line(path, "is damaged, or is not an ONNX file"), path.open("rb") as file:
        # Closed with the last view of it, which the traceback of an error may hold.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        metadata, digest = _read_onnx(path, memoryview(content))
    check_digest(path, metadata, digest)
    return metadata


def _read_onnx(path: Path, view: memoryview) -> tuple[dict[str, str], str]:
    """Return the metadata and the digest of the weights; refuse tensors in files elsewhere."""
    metadata, digest, num_fields = {}, hashlib.sha256(), 0
    todo = deque([("model", view, 0)])
    while todo:
        kind, message, depth = todo.popleft()
        is_graph = kind == "graph" and depth == 1
        if depth > MAX_DEPTH:
            raise ValueError(f"its graphs are nested more than {MAX_DEPTH} deep")
        for number, value in _fields(message):
            num_fields += 1
            if num_fields > MAX_FIELDS:
                raise ValueError(f"it has more than {MAX_FIELDS:,} parts")
            inner = _MESSAGES[kind].get(number)
            if inner is None or value is None:
                continue
            if is_graph and inner == "tensor":
                digest.update(len(value).to_bytes(8, "little"))
                digest.update(value)
            if inner in ("entry", "location"):
                key, text = _entry(value)
                if inner == "entry":
                    metadata[key] = text
                elif key == "location":
                    _check_location(path, text)
            else:
                todo.append((inner, value, depth + 1))
    return metadata, digest.hexdigest()


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Yield the numbers of the fields of a protobuf message, and the bytes of those that have them.

    Raises:
        ValueError: If it is cut off, or not protobuf.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind, value = key & 7, None
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            size, at = _varint(message, at)
            value = message[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("it has fields of an unknown kind")
        if at > len(message):
            raise ValueError("it is cut off")
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it is cut off")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it has a number of more than ten bytes")


def _entry(message: memoryview) -> tuple[str, str]:
    """Return a key and a value of text."""
    parts = {number: value for number, value in _fields(message) if value is not None}
    key, value = (bytes(parts.get(number, b"")).decode() for number in (1, 2))
    return key, value


def _check_location(path: Path, location: str) -> None:
    """Check that a file with tensors is in the folder of the model.

    Raises:
        ValueError: If it is not, or the name is more than a plain relative path.
    """
    folder = path.resolve().parent
    if not _BESIDE.fullmatch(location) or not (folder / location).resolve().is_relative_to(folder):
        raise ValueError(
            f"{path} keeps tensors in {location[:200]!r}, outside of its folder; that is refused, "
            "because a file from anywhere must not read other files"
        )


def checked_archive(path: Path) -> BytesIO:
    """Return the archive of a pt2 file that holds tensors and programs alone.

    Raises:
        ValueError: If it is not such a file, is damaged, or holds anything that would run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # Stored as they are, none is larger than the file, whatever a header says.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            contents = {entry.filename: archive.read(entry) for entry in entries if stored}
        contents = {name: _checked(name, content) for name, content in contents.items()}
        harmful = not stored or len({name.casefold() for name in contents}) != len(entries)
        harmful = harmful or _runs_code(contents)
    except Exception as error:  # What a damaged or a malicious archive raises is anybody's guess.
        raise ValueError(f"{path} is damaged, or holds more than tensors: {error}") from error
    if harmful:
        raise ValueError(f"{path} holds objects that would run code when they are loaded; refused")
    check_digest(path, _metadata_of(contents), digest_of_archive(contents))
    copy = BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    copy.seek(0)
    return copy


def _metadata_of(contents: Mapping[str, bytes]) -> Mapping[str, Any]:
    """Return the metadata in an archive; empty if it is damaged, which `open_exported` reports."""
    for name in contents:
        if name.endswith(f"/extra/{EXTRA}"):
            try:
                metadata = json.loads(contents[name])
            except (ValueError, RecursionError):
                return {}
            return metadata if isinstance(metadata, dict) else {}
    return {}


def _runs_code(contents: dict[str, bytes]) -> bool:
    """Tell whether entries hold pickles, compiled code, or what is not known.

    Raises:
        Exception: If an example of the inputs is more than tensors, or a description is damaged.
    """
    if not all(map(_ENTRY.fullmatch, contents)):
        return True
    configs = [name for name in contents if name.endswith("_config.json")]
    inputs = [name for name in contents if "/data/sample_inputs/" in name]
    import torch

    for name in inputs:
        torch.load(BytesIO(contents[name]), weights_only=True)
    pickled = any(
        entry.get("use_pickle") or not re.fullmatch(_TENSOR, str(entry.get("path_name")), re.ASCII)
        for name in configs
        for entry in json.loads(contents[name]).get("config", {}).values()
    )
    return pickled or not (configs and inputs)


def _checked(name: str, content: bytes) -> bytes:
    """Return an entry; the json of a program without what only people read.

    Raises:
        ValueError: If a program holds what it must not.
    """
    if "/models/" not in name.casefold():
        return content
    if not name.endswith(".json"):
        raise ValueError(f"{name} is not the json of a program")
    program = json.loads(content)
    _check(program)
    return json.dumps(program).encode()


def _check(value: Any, key: str = "") -> None:
    """Check a part of a program, and empty the notes on its nodes in place.

    Raises:
        ValueError: Naming what is not allowed.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            if not _WORD.fullmatch(name):
                raise ValueError(f"{name!r} is not a name")
            if name in _ABSENT and part is not None:
                raise ValueError(f"programs of this package have no {name}")
            if name == "metadata":
                value[name] = {}
            else:
                _check(part, name)
    elif isinstance(value, list):
        for part in value:
            _check(part, key)
    elif isinstance(value, str):
        _check_text(value, key)


def _check_text(text: str, key: str) -> None:
    if key == "target":
        if text not in OPERATORS:
            raise ValueError(f"the operator {text!r} is not one that this package exports")
    elif key in ("expr_str", "guards_code"):
        if len(text) > _LONGEST or not _is_arithmetic(ast.parse(text, mode="eval").body):
            raise ValueError(f"{text[:80]!r} is not arithmetic on integers")
    elif key in ("in_spec", "out_spec", "context"):
        if text:
            _check(json.loads(text), "context_of")
    elif not (_GIVEN if key == "as_string" else _WORD).fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a word")


def _is_arithmetic(node: ast.expr) -> bool:
    """Tell whether an expression combines integers, sizes of inputs and symbols, and no more."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int) and abs(node.value) < _LARGEST
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, _OPERATIONS) and _is_arithmetic(node.operand)
    if isinstance(node, ast.BinOp):
        sides = (node.left, node.right)
        return isinstance(node.op, _OPERATIONS) and all(map(_is_arithmetic, sides))
    if isinstance(node, ast.BoolOp):
        return all(map(_is_arithmetic, node.values))
    if isinstance(node, ast.Compare):
        known = all(isinstance(op, _COMPARISONS) for op in node.ops)
        return known and all(map(_is_arithmetic, (node.left, *node.comparators)))
    if isinstance(node, ast.Subscript):  # x.size()[1]
        sizes, place = node.value, node.slice
        return _is_size(sizes) and isinstance(place, ast.Constant) and isinstance(place.value, int)
    if isinstance(node, ast.Name):
        return _SYMBOL.fullmatch(node.id) is not None
    return isinstance(node, ast.Call) and _is_known_call(node)


def _is_known_call(node: ast.Call) -> bool:
    called, assumed = ast.unparse(node.func), node.keywords
    if called == "Symbol":  # Symbol('s1', positive=True, integer=True)
        known = all(isinstance(k.value, ast.Constant) and k.arg in _ASSUMED for k in assumed)
        first = node.args[0] if len(node.args) == 1 else None
        if not known or not isinstance(first, ast.Constant) or not isinstance(first.value, str):
            return False
        return _SYMBOL.fullmatch(first.value) is not None
    return called in _FUNCTIONS and not assumed and all(map(_is_arithmetic, node.args))


def _is_size(node: ast.expr) -> bool:
    """Tell whether an expression is the size, or stride, of an input: `L['images'].size()`."""
    pattern = r"L(\['\w+'\]|\[\d+\])+\.(size|stride)\(\)"
    return re.fullmatch(pattern, ast.unparse(node), re.ASCII) is not None
