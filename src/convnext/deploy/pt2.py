"""pt2 files from anywhere: what torch would execute on loading is refused before it sees it.

torch.export's archives may hold pickled objects beside tensors. Readers of zip files disagree on
what an archive holds (names that occur twice, or differ in case alone), so torch is not given the
file: it is given a new archive of the entries that were looked at, and of nothing else.

A program is json, and torch evaluates parts of it as Python: sizes (`expr_str`), guards, and the
names that it writes into the code of the module. Its operators may do anything that torch can,
such as making files. So sizes must be arithmetic on integers, guards comparisons of them, names
words, and operators among those that our exporter writes.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

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
    copy = BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    copy.seek(0)
    return copy


def _runs_code(contents: dict[str, bytes]) -> bool:
    """Tell whether entries hold pickles, compiled code, or what is not known.

    Raises:
        Exception: If an example of the inputs is more than tensors, or a description is damaged.
    """
    if not all(map(_ENTRY.fullmatch, contents)):
        return True
    configs = [name for name in contents if name.endswith("_config.json")]
    inputs = [name for name in contents if "/data/sample_inputs/" in name]
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
