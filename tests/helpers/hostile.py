"""Files that would run code, fetch addresses, and read or change other files, and a command each.

python hostile.py make FOLDER     # write them; the commands are in FOLDER/commands.json
python hostile.py open FOLDER     # run the commands in this process; print how each ends
python hostile.py break FOLDER    # do what no command may do, to see that it is noticed
"""

from __future__ import annotations

import copy
import ctypes
import io
import json
import os
import shutil
import socket
import sys
import tarfile
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ADDRESS = "http://127.0.0.1:9/x"


def make(root: Path) -> None:
    """Write `work` with all files, and `outside` with those that they would read or change."""
    import torch
    from small_exports import small_checkpoint, small_photos

    from convnext.deploy.export import ExportSettings
    from convnext.tasks.exporting import export

    outside, work = root / "outside", root / "work"
    outside.mkdir()
    work.mkdir()
    (outside / "canary.bin").write_bytes(b"\0" * 4096)
    (outside / "secret.txt").write_text("secret")
    photos = small_photos(work / "photos")
    shutil.copyfile(photos / "1.png", outside / "secret.png")
    good = small_checkpoint(work / "good.safetensors")
    for name, format in (("good.onnx", "onnx"), ("good.xml", "openvino"), ("good.pt2", "pt2")):
        settings = ExportSettings(format=format)  # type: ignore[arg-type]
        export(good, settings=settings, output=work / name, images=[photos], force=True)
    of_photos = str(photos / "1.png")
    commands: dict[str, tuple[list[str], bool]] = {
        name: (["predict", name, of_photos, "--output", f"out-{name}"], True)
        for name in ("good.safetensors", "good.onnx", "good.xml", "good.pt2")
    }
    for name in (*_programs(work), _onnx(work), _pickle(work, outside), *_cards(work, outside)):
        commands[name] = (["predict", name, of_photos], name == "record.safetensors")
    commands["evaluate record"] = (["evaluate", "record.safetensors"], False)
    commands["evaluate damaged"] = (["evaluate", "code.pt2", "--data", "digits"], False)
    commands["convert"] = (
        ["convert", "record.safetensors", "to.safetensors", "--to", "timm"],
        True,
    )
    commands["convert pickle"] = (["convert", "code.pth", "to.pth", "--to", "timm"], False)
    output = ["--output", "to.pt2", "--images", "photos", "--force"]
    int8 = ["--format", "onnx", "--precision", "int8", "--images", "photos", "--force"]
    commands["int8"] = (["export", "good.safetensors", *int8, "--output", "to.onnx"], True)
    commands["export"] = (["export", "record.safetensors", "--format", "pt2", *output], True)
    commands |= _data(work, outside)
    (work / "recipe.yaml").write_text(
        f"data: !!python/object/apply:os.system ['touch {outside}/x']\n"
    )
    commands["recipe"] = (["train", "recipe.yaml", "--output", "run"], False)
    postscript = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({outside}/x) (w) file\n"
    (work / "script.png").write_text(postscript)
    commands["script"] = (["predict", "good.safetensors", "script.png"], False)
    (root / "commands.json").write_text(json.dumps(commands))
    assert torch.get_num_threads()  # The exporters have not ended the process.


def _programs(work: Path) -> list[str]:
    """Write programs of torch.export that run code, and that create a file."""

    def code(program: dict[str, Any]) -> None:
        assert _replace(program, "expr_str", "__import__('os').system('touch ../outside/x')")

    def file(program: dict[str, Any]) -> None:
        graph = program["graph_module"]["graph"]
        made = copy.deepcopy(next(iter(graph["tensor_values"].values())))
        made.update(sizes=[{"as_int": 9}], strides=[{"as_int": 1}], dtype=7)
        graph["tensor_values"]["made"] = made
        inputs = [
            {"name": "filename", "arg": {"as_string": "../outside/x"}, "kind": 1},
            {"name": "shared", "arg": {"as_bool": True}, "kind": 2},
            {"name": "size", "arg": {"as_int": 9}, "kind": 2},
        ]
        node = {"target": "torch.ops.aten.from_file.default", "inputs": inputs, "metadata": {}}
        node |= {"outputs": [{"as_tensor": {"name": "made"}}], "name": "made"}
        graph["nodes"].insert(0, node | {"is_hop_single_tensor_return": None})

    for name, change in (("code.pt2", code), ("file.pt2", file)):
        with zipfile.ZipFile(work / "good.pt2") as old, zipfile.ZipFile(work / name, "w") as new:
            for entry in old.namelist():
                content = old.read(entry)
                if "/models/" in entry:
                    program = json.loads(content)
                    change(program)
                    content = json.dumps(program).encode()
                new.writestr(entry, content)
    return ["code.pt2", "file.pt2"]


def _replace(value: Any, key: str, text: str) -> int:
    count = 0
    for name, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if name == key and isinstance(part, str):
            value[name], count = text, count + 1
        elif isinstance(part, dict | list):
            count += _replace(part, key, text)
    return count


def _onnx(work: Path) -> str:
    """Write a graph with a tensor in a file outside of its folder."""
    import onnx

    model = onnx.load(str(work / "good.onnx"))
    tensor = onnx.TensorProto(name="secret", data_type=1, dims=[1024], data_location=1)
    tensor.external_data.add(key="location", value="../outside/canary.bin")
    model.graph.initializer.append(tensor)
    onnx.save(model, str(work / "reads.onnx"))
    return "reads.onnx"


class _Touch:
    """Runs a program when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def _pickle(work: Path, outside: Path) -> str:
    import torch

    torch.save({"model": _Touch(outside / "x")}, work / "code.pth")
    return "code.pth"


def _cards(work: Path, outside: Path) -> list[str]:
    """Write weights whose cards name an address and a folder to clear."""
    from small_exports import CLASSES, NETWORK

    from convnext.data.preprocessing import Preprocessing
    from convnext.tasks.trained import build
    from convnext.weights.checkpoint import Card
    from convnext.weights.files import read_file, save_tensors

    tensors, metadata = read_file(work / "good.safetensors")
    recipe = {"data": ADDRESS, "loader": {"shard_cache": str(outside), "shard_cache_gb": 1e-9}}
    record = {**metadata, "recipe": json.dumps(recipe)}
    save_tensors(work / "record.safetensors", tensors, record)
    changes = {"pretrained": True, "pretrained_cfg": {"url": ADDRESS}}
    fetches = {"model": "timm/resnet18", "changes": json.dumps({"num_classes": 3, **changes})}
    save_tensors(work / "fetches.safetensors", tensors, {**metadata, **fetches})
    pre = Preprocessing(image_size=64, crop_pct=0.875, mean=(0.5,) * 3, std=(0.5,) * 3)
    card = Card(model="convnext_atto", changes=NETWORK, classes=CLASSES, preprocessing=pre)
    assert build(card) is not None  # What is refused is refused for what it asks for.
    return ["record.safetensors", "fetches.safetensors"]


def _data(work: Path, outside: Path) -> dict[str, tuple[list[str], bool]]:
    """Write data sets whose files name others outside, and return the commands."""
    commands: dict[str, tuple[list[str], bool]] = {}
    for name, listed in (("up", "../../outside/secret.png"), ("away", ADDRESS + ".png")):
        for split in ("train", "val"):
            folder = work / f"coco-{name}"
            folder.mkdir(exist_ok=True)
            content = {
                "images": [{"id": 1, "file_name": listed, "width": 64, "height": 64}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 8, 8],
                                 "area": 64, "iscrowd": 0}],
                "categories": [{"id": 1, "name": "cat"}],
            }  # fmt: skip
            (folder / f"instances_{split}.json").write_text(json.dumps(content))
        # What is listed as an address is a file that is missing.
        commands[f"coco {name}"] = (["data", f"coco-{name}", "--task", "detect"], name == "away")
    folder = work / "voc"
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    shutil.copyfile(work / "photos" / "1.png", folder / "JPEGImages" / "a.png")
    entity = f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{outside}/secret.txt">]>'
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    size = "<size><width>64</width><height>64</height><depth>3</depth></size>"
    text = f"{entity}<annotation>{size}<object><name>&e;</name>{box}</object></annotation>"
    (folder / "Annotations" / "a.xml").write_text(text)
    commands["voc entity"] = (["data", "voc", "--task", "detect"], False)
    folder = work / "shards"
    folder.mkdir()
    png = (work / "photos" / "1.png").read_bytes()
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}-000000.tar", "w") as tar:
            for stem in ("../../outside/x", f"{outside}/x", "0", "1"):
                label = b"0" if stem == "0" else b"1"
                for suffix, content in (("png", png), ("cls", label)):
                    member = tarfile.TarInfo(f"{stem}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            link = tarfile.TarInfo("2.png")
            link.type, link.linkname = tarfile.SYMTYPE, str(outside / "secret.png")
            tar.addfile(link)
    # Members of shards are read where they are, whatever their names.
    commands["shards"] = (["data", "shards", "--task", "classify"], True)
    return commands


def open_all(root: Path) -> None:
    """Run all commands in this process, and print the exit code and the last line of each."""
    from convnext.cli import main

    commands, found = json.loads((root / "commands.json").read_text()), {}
    for name, (words, _) in commands.items():
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            try:
                code = main(words)
            except SystemExit as error:
                code = error.code
        found[name] = (code, printed.getvalue()[-600:])
    print(json.dumps(found))


def break_out(root: Path) -> None:
    """Change a file without Python's open, run a program, and ask for a connection."""
    libc = ctypes.CDLL(None)
    handle = libc.open(os.fsencode(root / "outside" / "new"), os.O_CREAT | os.O_WRONLY, 0o600)
    os.close(handle)
    os.mkdir("../outside/folder")
    os.unlink(root / "outside" / "new")
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    os.system("true")


if __name__ == "__main__":
    {"make": make, "open": open_all, "break": break_out}[sys.argv[1]](Path(sys.argv[2]))
