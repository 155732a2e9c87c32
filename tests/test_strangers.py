"""Files that others made, damaged or malicious, end in one of our errors and change nothing.

Every example changes parts of a valid file. It must be read or refused by an error of ours, within
a bounded time and memory, without a request, and without a change outside of its own folder.
`CONVNEXT_FUZZ=2000 pytest tests/test_strangers.py` tries 2,000 of each kind, other ones each time.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from object_layouts import coco, createml, cvat, labelme, truth, via, voc, yolo
from PIL import Image
from small_exports import small_checkpoint, small_detector_file, small_photos, small_segmentor

import convnext
from convnext.data.images import decode, read_header
from convnext.deploy.runtimes import Exported
from convnext.deploy.untrusted import checked_archive, checked_onnx
from convnext.recipes.recipe import read_recipe, to_yaml
from convnext.recipes.schema import Recipe
from convnext.tasks.classification.shards import to_shards

# A failure shows the fixtures of its test, with the bytes of whole files.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
LONG = "CONVNEXT_FUZZ" in os.environ
COUNT = int(os.environ.get("CONVNEXT_FUZZ", "12"))
MAX_SECONDS = 30.0
"""Of the processor, for one example."""
MAX_BYTES = 6 << 30
"""Address space that all examples may use besides what the process uses before."""

try_many = settings(
    max_examples=COUNT,
    deadline=None,
    derandomize=not LONG,
    database=None,
    # Making a failing example smaller takes many more examples, of seconds each.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


class Watch:
    """Sees what Python opens for writing, removes, runs and connects to, in some spans of time."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.found: list[str] = []

    def start(self) -> None:
        """Begin to see; a hook stays as long as its process, so only these tests install one."""
        sys.addaudithook(self.see)

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event.startswith(("socket.connect", "socket.getaddrinfo", "urllib.", "http.")):
            self.found.append(f"{event} {args[1:]!r}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
            self.found.append(f"{event} {args!r}")
        elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            flags = args[2] if isinstance(args[2], int) else 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                self.changed(event, args[0])
        elif event.startswith(("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link",
                               "os.symlink", "os.truncate", "os.chmod", "shutil.")):  # fmt: skip
            for path in args[:2]:
                if isinstance(path, str | bytes | os.PathLike):
                    self.changed(event, path)

    def changed(self, event: str, path: Any) -> None:
        place = os.path.abspath(os.fsdecode(path))
        is_inside = place == self.folder or place.startswith((f"{self.folder}{os.sep}", "/dev/"))
        allowed = is_inside or "__pycache__" in place
        if not allowed:
            self.found.append(f"{event} {place}")

    @contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        """Fail if anything outside of a folder is changed, a program runs or a host is asked."""
        began = time.process_time()
        self.folder, self.found = str(folder), []
        try:
            yield
        finally:
            self.folder = None
        assert self.found == []
        assert time.process_time() - began < MAX_SECONDS


WATCH = Watch()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that examples may change; all else stays, and memory is limited."""
    root = tmp_path_factory.mktemp("strangers")
    (root / "outside").mkdir()
    (root / "outside" / "canary.bin").write_bytes(b"canary")
    work = root / "work"
    work.mkdir()
    gc.collect()  # What other tests left may delete its own files when it is collected.
    WATCH.start()
    before = [(str(p), p.stat().st_mtime_ns) for p in sorted((root / "outside").rglob("*"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(root / "outside"))
        patch.chdir(work)
        yield work
    after = [(str(p), p.stat().st_mtime_ns) for p in sorted((root / "outside").rglob("*"))]
    assert after == before
    assert sorted(p.name for p in root.iterdir()) == ["outside", "work"]


@pytest.fixture(autouse=True)
def limited_memory() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_the_watch_sees_what_leaves_the_folder(place: Path, tmp_path: Path) -> None:
    beside = place.with_name(f"{place.name}-beside")
    for change in (
        lambda: (tmp_path / "x").write_text("x"),
        lambda: (tmp_path / "x").unlink(),
        lambda: beside.mkdir(),
        lambda: beside.rmdir(),
        lambda: os.system("true"),
    ):
        with pytest.raises(AssertionError), WATCH.over(place):
            change()
    with WATCH.over(place):
        (place / "x").write_text("x")
        (place / "x").unlink()


# An example is one number: what it changes cannot depend on what other examples did.
SEEDED = st.integers(0, 2**64 - 1).map(Random)

ODD_TEXTS = (
    *(
        "",
        " ",
        "auto",
        "none",
        "nan",
        "../../outside/canary.bin",
        "/etc/passwd",
        "~",
        "a\x1b]0;x\x07",
    ),
    *("http://127.0.0.1:9/x.pth", "file:///etc/passwd", "hf-hub:a/b", "timm/resnet18", "a\nb"),
    *("\ud800", "convnext_large", "mask_rcnn_convnext_tiny", "upernet_convnext_tiny", "x" * 5000),
    *("*" * 40, "__import__('os').system('true')", "{{7*7}}", "%s%n", "C:\\x", "NUL", "\x00"),
)
ODD_NUMBERS = (
    *(0, 1, -1, 2, 7, 255, 2**31, 2**63, 10**6, 10**9, 10**30, -(10**18)),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, float("inf"), float("nan"), -1.5, 1e6),
)


def odd_text(random: Random, size: int) -> str:
    """Return a text of up to `size` characters of any language, also of none."""
    limits = (0x7F, 0xFF, 0xFFFF, 0x10FFFF)
    return "".join(chr(random.randint(0, random.choice(limits))) for _ in range(size))


def odd_value(random: Random, depth: int = 0) -> Any:
    """Return a JSON value of any type, whose lists and mappings are at most three deep."""
    kinds = ["none", "bool", "odd number", "number", "odd text", "text"]
    kind = random.choice(kinds if depth == 3 else [*kinds, "list", "mapping"])
    if kind == "bool":
        return random.random() < 0.5
    if kind == "odd number":
        return random.choice(ODD_NUMBERS)
    if kind == "number":
        return random.randint(-100, 100_000)
    if kind == "odd text":
        return random.choice(ODD_TEXTS)
    if kind == "text":
        return odd_text(random, random.randint(0, 8))
    if kind == "list":
        return [odd_value(random, depth + 1) for _ in range(random.randint(0, 4))]
    if kind == "mapping":
        keys = [odd_text(random, random.randint(0, 6)) for _ in range(random.randint(0, 3))]
        return {key: odd_value(random, depth + 1) for key in keys}
    return None


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all parts of a JSON value."""
    found = [path] if path else []
    parts: Any = enumerate(value) if isinstance(value, list) else ()
    for key, part in value.items() if isinstance(value, dict) else parts:
        found += places_of(part, (*path, key))
    return found


def changed_json(random: Random, value: Any) -> Any:
    """Return a JSON value with one to three parts replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(random.randint(1, 3)):
        places = places_of(value)
        if not places:
            return odd_value(random)
        *above, last = random.choice(places)
        owner = value
        for key in above:
            owner = owner[key]
        kind = random.choice(["replace"] * 4 + ["remove", "deep", "add"])
        if kind == "remove":
            del owner[last]
        elif kind == "deep":
            for _ in range(random.choice([1, 20, 100])):
                owner[last] = [owner[last]]
        elif kind == "add" and isinstance(owner, dict):
            owner[odd_text(random, random.randint(0, 8))] = odd_value(random)
        else:
            owner[last] = odd_value(random)
    return value


def changed_bytes(random: Random, content: bytes) -> bytes:
    """Return a file cut off, with bytes flipped, or with a part moved or repeated."""
    content = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, max(0, len(content) - 1))
        kind = random.choice(["flip", "flip", "cut", "insert", "repeat", "number"])
        if kind == "flip" and content:
            content[at] = random.randint(0, 255)
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = random.randbytes(random.randint(0, 8))
        elif kind == "repeat":
            content[at:at] = content[at : at + random.choice([1, 16, 4096])]
        else:
            number = random.choice([0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1])
            content[at : at + 4] = struct.pack(random.choice(["<I", ">I"]), number)
    return bytes(content)


def refuse_or_read(place: Path, use: Callable[[], Any]) -> None:
    """Use a file, which must succeed or raise an error of ours with a message of some length."""
    message = "read and used"
    with WATCH.over(place):
        try:
            use()
        except (UnicodeError, json.JSONDecodeError):
            raise
        except ValueError as error:
            message = str(error)
    assert 10 < len(message) < 20_000, message[:300]


@pytest.fixture(scope="module")
def networks(place: Path) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Weights and parsed metadata of a small network of each task."""
    found = {}
    small_photos(place / "photos")
    for task, make in (
        ("classify", small_checkpoint),
        ("segment", small_segmentor),
        ("detect", small_detector_file),
    ):
        content = Path(make(place / f"{task}.safetensors")).read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        found[task] = (content[8 + size :], json.loads(content[8 : 8 + size]))
    return found


PARSED = ("changes", "classes", "preprocessing", "recipe", "metrics", "category_ids")


def parsed(metadata: dict[str, str]) -> dict[str, Any]:
    return {k: json.loads(v) if k in PARSED else v for k, v in metadata.items() if k != "sha256"}


def as_texts(card: Any) -> Any:
    """Return the metadata of a changed card: text, or JSON where it is text in our files."""
    if not isinstance(card, dict):
        return card
    return {k: json.dumps(v) if k in PARSED else v for k, v in card.items()}


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
@given(random=SEEDED)
@try_many
def test_cards_of_checkpoints(place: Path, networks: Any, task: str, random: Random) -> None:
    weights, header = networks[task]
    card = changed_json(random, parsed(header["__metadata__"]))
    head = json.dumps(header | {"__metadata__": as_texts(card)}).encode()
    path = place / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + weights)
    image = place / "photos" / "0.png"
    refuse_or_read(place, lambda: convnext.load(path, device="cpu").predict(image, progress=False))


GRAPHS = {
    "classify": {"output": "probabilities", "batch": None, "size": [64, 64]},
    "segment": {"output": "labels", "batch": None, "size": None},
    "detect": {
        "output": "boxes", "batch": 1, "size": [64, 64], "masks": "none", "max_detections": 9,
        "outputs": ["boxes", "scores", "labels"], "score_threshold": 0.1, "nms_threshold": 0.5,
        "mask_threshold": 0.5,
    },
}  # fmt: skip


def outputs_of(task: str, images: Any) -> list[Any]:
    """Return the outputs of a made-up graph of each task."""
    shape = images[0].shape
    count, height, width = shape[0], *(shape[1:3] if shape[-1] == 3 else shape[2:4])
    if task == "classify":
        return [torch.full((count, 3), 1 / 3).numpy()]
    if task == "segment":
        return [torch.zeros((count, height, width), dtype=torch.uint8).numpy()]
    boxes = torch.tensor([[1.0, 1, 9, 9]] * 9).numpy()
    return [boxes, torch.linspace(1, 0, 9).numpy(), torch.zeros(9, dtype=torch.int64).numpy()]


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
@given(random=SEEDED)
@try_many
def test_cards_of_exported_files(place: Path, networks: Any, task: str, random: Random) -> None:
    _, header = networks[task]
    graph = {"inside": "normalize", "precision": "fp32"} | GRAPHS[task]
    card = parsed(header["__metadata__"]) | {"graph": graph}
    changed = changed_json(random, card)
    if not isinstance(changed, dict):
        return
    texts = as_texts(changed) | {"graph": json.dumps(changed.get("graph", {}))}
    texts = {str(key): value if isinstance(value, str) else json.dumps(value)
             for key, value in texts.items()}  # fmt: skip
    exported = Exported(place / "x.onnx", texts, lambda given: outputs_of(task, given))

    def use() -> None:
        if not exported.graph:
            return  # `open_exported` refuses it.
        _ = exported.card
        convnext.api.model.Model(exported).predict(place / "photos" / "0.png", progress=False)

    refuse_or_read(place, use)


@given(random=SEEDED)
@try_many
def test_files_of_weights(place: Path, networks: Any, random: Random) -> None:
    name = random.choice(["x.safetensors", "x.pth", "x.pt2", "x.onnx"])
    content = (place / "classify.safetensors").read_bytes()
    if name == "x.pth":
        stream = BytesIO()
        torch.save({"model": {"head.fc.weight": torch.ones(3, 8)}}, stream)
        content = stream.getvalue()
    elif name == "x.pt2":
        stream = BytesIO()
        torch.save({"a": torch.ones(2)}, stream)
        content = stream.getvalue()
    elif name == "x.onnx":
        content = b"\x08\x0a\x3a\x10" + b"\x2a\x0e\x08\x02\x10\x01\x4a\x08" + b"\0" * 8
    path = place / name
    path.write_bytes(changed_bytes(random, content))
    use = {"x.pt2": checked_archive, "x.onnx": checked_onnx}.get(name, convnext.load)
    refuse_or_read(place, lambda: use(path))


@given(random=SEEDED)
@try_many
def test_recipes(place: Path, random: Random) -> None:
    import yaml

    path, text = place / "x.yaml", to_yaml(Recipe())
    if random.random() < 0.5:
        tree = changed_json(random, yaml.safe_load(text))
        text = yaml.safe_dump(json.loads(json.dumps(tree)), allow_unicode=False)
        content = text.encode("utf-8", "surrogatepass")
    else:
        content = changed_bytes(random, text.encode())
    path.write_bytes(content)
    refuse_or_read(place, lambda: read_recipe(path))


@pytest.fixture(scope="module")
def objects(place: Path) -> dict[str, dict[str, bytes]]:
    """The files of a small data set in the layouts of other tools."""
    found = {}
    for make in (coco, yolo, voc, labelme, via, createml, cvat):
        root = place / make.__name__
        make(root, truth())
        found[make.__name__] = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }
        shutil.rmtree(root)
    return found


def write_all(root: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(root, ignore_errors=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@pytest.mark.parametrize("layout", ["coco", "yolo", "voc", "labelme", "via", "createml", "cvat"])
@given(random=SEEDED)
@try_many
def test_annotations(place: Path, objects: Any, layout: str, random: Random) -> None:
    files = dict(objects[layout])
    texts = [name for name in files if not name.endswith((".png", ".jpg"))]
    name = random.choice(texts)
    if name.endswith(".json") and random.random() < 0.75:
        files[name] = json.dumps(changed_json(random, json.loads(files[name]))).encode()
    else:
        files[name] = changed_bytes(random, files[name])
    root = place / "data"
    write_all(root, files)
    refuse_or_read(place, lambda: convnext.check_data(root, task="detect", progress=False))


@pytest.fixture(scope="module")
def shards(place: Path) -> dict[str, bytes]:
    """The files of class folders that were written as shards."""
    for split in ("train", "val"):
        for label in ("a", "b"):
            (place / "folders" / split / label).mkdir(parents=True)
            for i in range(3):
                image = Image.new("RGB", (9, 8), (40 * i, 90, 200 * (label == "a")))
                image.save(place / "folders" / split / label / f"{i}.png")
    root = place / "shards"
    to_shards(str(place / "folders"), root, shard_mb=0.001)
    files = {path.name: path.read_bytes() for path in sorted(root.iterdir()) if path.is_file()}
    shutil.rmtree(root)
    return files


@given(random=SEEDED)
@try_many
def test_shards(place: Path, shards: Any, random: Random) -> None:
    files = dict(shards)
    name = random.choice(sorted(files))
    if name.endswith(".json") and random.random() < 0.5:
        files[name] = json.dumps(changed_json(random, json.loads(files[name]))).encode()
    else:
        files[name] = changed_bytes(random, files[name])
    root = place / "data"
    write_all(root, files)
    refuse_or_read(place, lambda: convnext.check_data(root, task="classify", progress=False))


def pictures() -> Sequence[tuple[str, bytes]]:
    """Return a small picture in each of several formats."""
    found = []
    gradient = Image.linear_gradient("L").resize((24, 17))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"):
        stream = BytesIO()
        gradient.convert("RGB").save(stream, kind)
        found.append((kind, stream.getvalue()))
    return found


@given(random=SEEDED)
@try_many
def test_pictures(place: Path, random: Random) -> None:
    kind, content = random.choice(pictures())
    path = place / f"x.{kind.lower()}"
    path.write_bytes(changed_bytes(random, content))
    refuse_or_read(place, lambda: (read_header(path), decode(path, mode="RGB")))
