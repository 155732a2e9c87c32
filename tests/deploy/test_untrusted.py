"""Exported files: our own are read; what could run code or open other files is refused."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from small_exports import FILES, small_checkpoint, small_detector_file, small_segmentor

from convnext.deploy import untrusted
from convnext.deploy.export import ExportRequest
from convnext.deploy.formats import WRITERS, ExportSettings
from convnext.deploy.runtimes import Exported, open_exported, quiet
from convnext.deploy.untrusted import EXTRA, OPERATORS, checked_archive
from convnext.tasks import task_class
from convnext.tasks.detection.export.exported import ExportedDetector
from convnext.tasks.trained import open_model
from convnext.weights.checkpoint import FORMAT, Card

MAKERS: dict[str, Callable[[Path], str]] = {
    "classify": small_checkpoint,
    "segment": small_segmentor,
    "detect": small_detector_file,
}


def write(folder: Path, task: str, **settings: Any) -> Path:
    """Write the network of a task, by default as a pt2 file, and return its path."""
    source = MAKERS[task](folder / "net.safetensors")
    model, card = open_model(source, torch.device("cpu"))
    image = folder / "image.png"
    Image.new("RGB", (96, 64)).save(image)
    asked = ExportSettings(**{"format": "pt2"} | settings)
    request = ExportRequest(model=model, card=card, source=source, settings=asked, images=[image])
    spec = task_class(task).export_spec(request)
    path = folder / FILES[asked.format]
    with quiet(), torch.no_grad():
        WRITERS[asked.format](spec.blueprint(), path, spec.metadata(), asked)
    return path


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a copy of a pt2 file with another program and return its path."""
    other = path.with_name("other.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if "/models/" in name:
                program = json.loads(content)
                change(program)
                content = json.dumps(program).encode()
            new.writestr(name, content)
    return other


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a segmentor's file for any size; it has symbols and guards."""
    folder = tmp_path_factory.mktemp("segmentor")
    return write(folder, "segment", inside="none", size="any", answers=False)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("classify", {"precision": "bf16"}),
        ("classify", {"precision": "fp16", "inside": "full"}),
        ("segment", {"precision": "bf16", "size": "any"}),
        ("segment", {"precision": "fp16"}),
        ("detect", {"precision": "fp32", "size": (64, 96), "masks": "full"}),
        ("detect", {"precision": "bf16", "size": (64, 96), "inside": "full"}),
    ],
)
def test_what_we_write_is_read(task: str, settings: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, task, **settings)
    assert isinstance(open_exported(path), Exported)
    content = path.read_bytes()
    for words in ("site-packages", str(Path(untrusted.__file__).parents[1]), "in forward"):
        assert words.encode() not in content, "a stack trace"


def test_a_checked_program_computes_the_same(segmentor: Path) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 96, 128), dtype=np.float32)
    expected = torch.export.load(segmentor).module()(torch.from_numpy(images))
    found = open_exported(segmentor).run(images)
    np.testing.assert_array_equal(found, expected.detach().numpy())


GRAPH = {"inside": "none", "precision": "fp32", "batch": None, "size": None, "output": "logits"}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"inside": "all"}, {"inside": []}, {"precision": 3}, {"output": None}, {"size": 64}),
        *({"size": [64, "64"]}, {"size": [64]}, {"size": [0, 64]}, {"batch": "2"}, {"batch": -1}),
        *({"batch": True}, {"size": {}}, {"size": [10**6, 10**6]}, {"batch": 10**9}),
    ],
)
def test_a_damaged_description_of_a_graph_is_named(wrong: dict[str, Any]) -> None:
    metadata = {"graph": json.dumps(GRAPH | wrong)}
    with pytest.raises(ValueError, match=f"net.onnx has damaged metadata: {next(iter(wrong))} of"):
        _ = Exported(Path("net.onnx"), metadata, lambda _: []).graph


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"masks": "all"}, "masks"),
        ({"outputs": ["boxes", "scores"]}, "outputs"),
        ({"masks": "full"}, "outputs"),
        ({"size": None}, "size"),
        ({"max_detections": "9"}, "max_detections"),
        ({"nms_threshold": None}, "nms_threshold"),
    ],
)
def test_a_damaged_description_of_a_detector_is_named(wrong: dict[str, Any], name: str) -> None:
    own = {"masks": "none", "outputs": ["boxes", "scores", "labels"], "max_detections": 9}
    own |= dict.fromkeys(("score_threshold", "nms_threshold", "mask_threshold"), 0.5)
    metadata = {"graph": json.dumps(GRAPH | {"size": [64, 64]} | own | wrong)}
    exported = Exported(Path("net.onnx"), metadata, lambda _: [])
    with pytest.raises(ValueError, match=f"net.onnx has damaged metadata: {name} of the graph"):
        ExportedDetector(exported, cast(Card, None))


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", '{"inside": "none"}', pytest.param("[" * 100_000, id="deep")]
)
def test_a_file_without_a_description_has_none(text: str) -> None:
    assert Exported(Path("net.onnx"), {"graph": text}, lambda _: []).graph == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "cannot be read: its metadata is not a JSON object"),
        ("{", "cannot be read: Expecting"),
        pytest.param("[" * 100_000, "cannot be read: maximum recursion", id="deep"),
        ("{}", "has no metadata"),
        (json.dumps({"graph": GRAPH}), "has no metadata"),
        (json.dumps({"graph": json.dumps(GRAPH)}), "is not a checkpoint of this package"),
        (json.dumps({"graph": json.dumps(GRAPH), "format": FORMAT}), "has damaged metadata"),
    ],
)
def test_damaged_metadata_is_one_sentence(segmentor: Path, text: str, message: str) -> None:
    other = segmentor.with_name("other.pt2")
    with zipfile.ZipFile(segmentor) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            new.writestr(name, text if name.endswith(f"/{EXTRA}") else old.read(name))
    with pytest.raises(ValueError, match=f"other.pt2.* {message}"):
        open_exported(other)


def test_a_program_that_torch_cannot_read_is_one_sentence(segmentor: Path) -> None:
    def unknown_input(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["inputs"] = []

    def no_graph(program: dict[str, Any]) -> None:
        del program["graph_module"]["graph"]

    for change in (unknown_input, no_graph):
        with pytest.raises(ValueError, match=r"other.pt2 cannot be (read|run): ") as raised:
            open_exported(changed(segmentor, change)).run(np.zeros((1, 3, 96, 96), np.float32))
        assert "\n" not in str(raised.value)


def test_an_input_that_a_file_does_not_take_is_one_sentence(segmentor: Path) -> None:
    with pytest.raises(ValueError, match=r"net.pt2 cannot be run: ") as raised:
        open_exported(segmentor).run(np.zeros((1, 7, 96, 96), np.float32))
    assert "\n" not in str(raised.value)


def replace_all(value: Any, key: str, text: str) -> int:
    """Replace every string under a key, and return the number of replacements."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    count = 0
    for name, part in list(parts):
        if name == key and isinstance(part, str):
            value[name] = text
            count += 1
        elif isinstance(part, dict | list):
            count += replace_all(part, key, text)
    return count


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("expr_str", "__import__('os').system('true')"),
        ("expr_str", "Symbol('s1', positive=open('x'))"),
        ("expr_str", "Symbol('s1 or 1')"),
        ("expr_str", "(lambda: 1)()"),
        ("expr_str", "s1.__class__"),
        ("expr_str", "9**9**9"),
        ("expr_str", "Mul(" * 5000 + "1" + ")" * 5000),
        ("target", "torch.ops.aten.from_file.default"),
        ("target", "torch.hub.load"),
        ("target", "_operator.attrgetter"),
        ("name", "x=print(1)"),
        ("in_spec", '[1, {"type": "a b()", "context": "null", "children_spec": []}]'),
        ("in_spec", '[1, {"type": null, "context": "[\\"x=print(1)\\"]", "children_spec": []}]'),
    ],
)
def test_what_torch_would_execute_is_refused(segmentor: Path, key: str, text: str) -> None:
    def change(program: dict[str, Any]) -> None:
        assert replace_all(program, key, text)

    with pytest.raises(ValueError, match="other"):
        checked_archive(changed(segmentor, change))


@pytest.mark.parametrize(
    "guard",
    [
        "__import__('os').system('true')",
        "L['images'].size()[0].__class__ == 1",
        "[x for x in L]",
        "L['images'].tofile()[0] == 1",
        'L["images"].size()[0] == 1, "") or (print(1)',
    ],
)
def test_guards_are_comparisons_of_sizes(segmentor: Path, guard: str) -> None:
    def change(program: dict[str, Any]) -> None:
        assert program["guards_code"]
        program["guards_code"].append(guard)

    with pytest.raises(ValueError, match="other"):
        checked_archive(changed(segmentor, change))


@pytest.mark.parametrize(
    "part",
    [
        {"as_operator": "torch.hub.load"},
        {"as_graph": {"name": "g", "graph": {"nodes": [{"target": "torch.hub.load"}]}}},
        {"constant_input": {"name": "x", "value": {"as_string": "' or print(1) or '"}}},
    ],
)
def test_parts_that_no_export_has_are_refused(segmentor: Path, part: dict[str, Any]) -> None:
    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["inputs"].append(part)

    with pytest.raises(ValueError, match="other"):
        checked_archive(changed(segmentor, change))


def test_notes_on_nodes_do_not_reach_torch(segmentor: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        for node in program["graph_module"]["graph"]["nodes"]:
            node["metadata"] = {"stack_trace": "'); print(1)", "custom": "__import__('os')"}

    with zipfile.ZipFile(checked_archive(changed(segmentor, change))) as archive:
        name = next(name for name in archive.namelist() if "/models/" in name)
        nodes = json.loads(archive.read(name))["graph_module"]["graph"]["nodes"]
    assert nodes
    assert all(node["metadata"] == {} for node in nodes)


def test_only_json_is_a_program(segmentor: Path) -> None:
    with zipfile.ZipFile(segmentor, "a") as archive:
        copied = dict.fromkeys(archive.namelist())
    other = segmentor.with_name("more.pt2")
    with zipfile.ZipFile(segmentor) as old, zipfile.ZipFile(other, "w") as new:
        for name in copied:
            new.writestr(name, old.read(name))
        new.writestr(next(iter(copied)).split("/")[0] + "/models/model.py", b"print(1)")
    with pytest.raises(ValueError, match="not the json of a program"):
        checked_archive(other)


@pytest.mark.parametrize("folder", ["constants", "weights"])
@pytest.mark.parametrize("name", ["model.pt", "opaque_obj_0", "custom_obj_0", "tensor_x"])
def test_entries_that_torch_would_unpickle_are_refused(
    segmentor: Path, folder: str, name: str
) -> None:
    other = segmentor.with_name("pickle.pt2")
    shutil.copyfile(segmentor, other)
    with zipfile.ZipFile(other, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/data/{folder}/{name}", b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="would run code"):
        checked_archive(other)


def test_a_constant_is_a_tensor_under_a_name_of_a_tensor(segmentor: Path) -> None:
    other = segmentor.with_name("constant.pt2")
    with zipfile.ZipFile(segmentor) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("model_constants_config.json"):
                entry = {"path_name": "opaque_obj_0", "use_pickle": False, "tensor_meta": {}}
                content = json.dumps({"config": {"x": entry}}).encode()
            new.writestr(name, content)
    with pytest.raises(ValueError, match="would run code"):
        checked_archive(other)


def test_no_operator_opens_a_file_or_changes_the_process() -> None:
    words = (
        "file",
        "load",
        "save",
        "open",
        "import",
        "eval",
        "attr",
        "system",
        "from_blob",
        "set_",
    )
    assert [name for name in OPERATORS if any(word in name for word in words)] == []
    assert all(hasattr(torch.ops, name.split(".")[2]) for name in OPERATORS if "ops" in name)
    assert not OPERATORS & {"torch.ops.aten.as_strided.default"}


def flip_a_weight(path: Path) -> None:
    """Change one byte of the weights, as a bad disk does; the file stays readable."""
    if path.suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        name = max((n for n in contents if "/weights/" in n), key=lambda n: len(contents[n]))
        contents[name] = contents[name][:-1] + bytes([contents[name][-1] ^ 1])
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return
    content: bytes | bytearray
    if path.suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        model = onnx.load(str(path))
        tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        tensor.raw_data = tensor.raw_data[:-1] + bytes([tensor.raw_data[-1] ^ 1])
        onnx.save(model, str(path))
        return
    weights = path.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_weights_are_found_before_they_are_used(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, "classify", format=kind)
    digest = open_exported(path).metadata["sha256"]
    assert len(digest) == 64
    flip_a_weight(path)
    with pytest.raises(ValueError, match=r"is damaged: its weights do not have the SHA-256"):
        open_exported(path)


def test_weights_of_another_network_are_not_taken(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    path = write(tmp_path / "a", "classify", format="openvino")
    other = write(tmp_path / "b", "classify", format="openvino", precision="fp16")
    shutil.copyfile(other.with_suffix(".bin"), path.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"net.xml .*(SHA-256|cannot be read)"):
        open_exported(path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(ValueError, match=r"net.xml .*(SHA-256|cannot be read)"):
        open_exported(path)


@pytest.fixture(scope="module")
def plain_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("onnx"), "classify", format="onnx")


@pytest.mark.parametrize("where", ["initializer", "constant", "function"])
@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "/etc/passwd", "..\\secret.bin", "C:/secret.bin", "", "link.bin",
     "*/_ORT_MEM_ADDR_/*", "a/../../secret.bin"],
)  # fmt: skip
def test_tensors_outside_of_the_folder_are_refused(
    plain_onnx: Path, location: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = onnx.load(str(plain_onnx))
    tensor = onnx.TensorProto(name="secret", data_type=1, dims=[1024], data_location=1)
    tensor.external_data.add(key="location", value=location)
    if where == "initializer":
        model.graph.initializer.append(tensor)
    else:
        node = onnx.helper.make_node("Constant", [], ["secret"], value=tensor)
        if where == "constant":
            model.graph.node.append(node)
        else:
            opsets = [onnx.helper.make_opsetid("", 18)]
            made = onnx.helper.make_function("ours", "f", [], ["secret"], [node], opsets)
            model.functions.append(made)
    onnx.save(model, str(folder / "net.onnx"))
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(ort, "InferenceSession", None)  # It must not see the file.
    with pytest.raises(ValueError, match="outside of its folder; that is refused") as raised:
        open_exported(folder / "net.onnx")
    assert "\n" not in str(raised.value)


def test_tensors_beside_the_file_are_read(plain_onnx: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(plain_onnx))
    kept = [p for p in model.metadata_props if p.key != "sha256"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    path = tmp_path / "net.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="net.data", size_threshold=200)
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    found, expected = (open_exported(p).run(pixels) for p in (path, plain_onnx))
    np.testing.assert_array_equal(found, expected)


def test_a_damaged_onnx_file_is_one_sentence(plain_onnx: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "net.onnx", plain_onnx.read_bytes()
    generator = np.random.default_rng(0)
    for size in (0, 1, 7, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"net.onnx ") as raised:
            open_exported(path)
        assert "\n" not in str(raised.value)
    for _ in range(40):
        path.write_bytes(generator.bytes(300))
        with pytest.raises(ValueError, match=r"net.onnx "):
            open_exported(path)


def test_an_onnx_file_of_nested_graphs_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    for _ in range(20):
        node = onnx.helper.make_node("If", [""], [], then_branch=graph)
        graph = onnx.helper.make_graph([node], "g", [], [])
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ValueError, match="its graphs are nested more than 40 deep"):
        open_exported(path)
