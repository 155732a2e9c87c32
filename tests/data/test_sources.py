"""Images as users pass them: every kind gives the right pixels, and ambiguous ones are refused."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnext.data.downloads import is_url
from convnext.data.images import BadImage, RangedMode
from convnext.data.sources import Source, image_sources, to_image


def read_images(sources):
    """Open images one by one; yield the error instead of an image that cannot be read."""
    for source in sources:
        try:
            yield source, source.open()
        except BadImage as error:
            yield source, error


@pytest.fixture
def photos(tmp_path, noise):
    """Three images and a text file; one of the images is in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.jpg", "below/c.png")):
        noise(12, 10, seed=seed).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)


def names(sources):
    return [Path(source.name).name for source in sources]


def pixels(source, mode="RGB"):
    return np.asarray(source.open(mode))


# --- Files ---


def test_a_path_a_folder_and_globs(photos):
    one = image_sources(photos / "b.jpg")
    assert [source.path for source in one] == [photos / "b.jpg"]
    assert one[0].name == str(photos / "b.jpg")
    assert one[0].open().size == (12, 10)
    assert one[0].open("L").mode == "L"
    assert names(image_sources(photos)) == ["a.png", "b.jpg", "c.png"]
    assert names(image_sources(str(photos))) == ["a.png", "b.jpg", "c.png"]
    assert names(image_sources(f"{photos}/*.png")) == ["a.png"]
    assert names(image_sources(photos / "*.png")) == ["a.png"]
    assert names(image_sources(f"{photos}/**/*.png")) == ["a.png", "c.png"]
    assert names(image_sources(f"{photos}/*")) == ["a.png", "b.jpg"]
    assert names(image_sources(f"{photos}/**")) == ["a.png", "b.jpg", "c.png"]
    assert names(image_sources(f"{photos}/[ab].*")) == ["a.png", "b.jpg"]
    assert names(image_sources(f"{photos}/*.txt")) == ["notes.txt"]  # Expanded by a shell.


def test_a_file_whose_name_looks_like_a_glob(photos, noise):
    noise(12, 10).save(photos / "d[1].png")
    assert names(image_sources(photos / "d[1].png")) == ["d[1].png"]


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ("nothing.png", "there is no file or folder"),
        ("*.webp", r"no image matches .*\*\.webp$"),
        ("notes*", "matches 1 files that are not images"),
        ("bel*", "matches 1 folders, and .*/bel.*/.* their files"),
    ],
)
def test_what_is_not_found_is_refused_at_once(photos, pattern, error):
    for images in (f"{photos}/{pattern}", [photos / "a.png", f"{photos}/{pattern}"]):
        with pytest.raises(ValueError, match=error):
            image_sources(images)


def test_empty_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no image in"):
        image_sources(tmp_path)
    with pytest.raises(ValueError, match="there are no images"):
        image_sources([])


def test_a_damaged_file_does_not_end_the_run(photos):
    (photos / "b.jpg").write_bytes(b"\xff\xd8 cut off")
    (photos / "a0.png").touch()
    read = list(read_images(image_sources(photos)))
    assert names(source for source, _ in read) == ["a.png", "a0.png", "b.jpg", "c.png"]
    good = [isinstance(image, Image.Image) for _, image in read]
    assert good == [True, False, False, True]
    errors = [image for _, image in read if isinstance(image, BadImage)]
    assert errors[0].reason == "the file is empty"
    assert errors[1].source == str(photos / "b.jpg")


# --- Images in memory ---


def test_images_in_memory_keep_their_pixels(array):
    forms = {
        "PIL": Image.fromarray(array),
        "array": array,
        "not contiguous": np.asfortranarray(array),
        "read only": np.frombuffer(array.tobytes(), np.uint8).reshape(array.shape),
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
        "batch": torch.from_numpy(array).permute(2, 0, 1)[None],
        "list": [array],
        "generator": (image for image in [array]),
    }
    for form, images in forms.items():
        (source,) = image_sources(images)
        assert source.path is None, form
        assert source.name == "image_00000", form
        np.testing.assert_array_equal(pixels(source), array, err_msg=form)


def test_gray_images(array):
    gray = array[..., 0]
    for images in (gray, Image.fromarray(gray)):
        (source,) = image_sources(images)
        np.testing.assert_array_equal(pixels(source, "L"), gray)
        np.testing.assert_array_equal(pixels(source), np.stack([gray] * 3, -1))


def test_bgr_is_the_order_of_arrays_and_tensors_only(array, photos):
    flipped = array[..., ::-1]
    tensor = torch.from_numpy(flipped.copy()).permute(2, 0, 1)
    for images in (flipped, [flipped], iter([flipped]), tensor, tensor[None]):
        (source,) = image_sources(images, channels="bgr")
        np.testing.assert_array_equal(pixels(source), array)
    for images in (Image.fromarray(array), photos / "a.png", array[..., 0]):
        one, other = (image_sources(images, channels=order)[0] for order in ("bgr", "rgb"))
        np.testing.assert_array_equal(pixels(one), pixels(other))
    with pytest.raises(ValueError, match="did you mean 'bgr'"):
        image_sources(array, channels="bgra")


def test_contracts_decide_what_could_be_read_in_two_ways():
    array = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert image_sources(array)[0].open().size == (5, 3)  # Three rows high.
    tensor = torch.from_numpy(array.reshape(3, 5, 3))
    source = image_sources(tensor)[0]
    assert source.open().size == (3, 5)  # Three columns wide.
    np.testing.assert_array_equal(pixels(source), tensor.permute(1, 2, 0).numpy())


def test_a_batch_is_so_many_images():
    batch = torch.arange(4 * 3 * 5 * 6, dtype=torch.int64).remainder(256).to(torch.uint8)
    batch = batch.reshape(4, 3, 5, 6)
    sources = image_sources(batch)
    assert names(sources) == [f"image_{i:05d}" for i in range(4)]
    for source, image in zip(sources, batch, strict=True):
        np.testing.assert_array_equal(pixels(source), image.permute(1, 2, 0).numpy())


def test_pil_images_are_read_as_their_files_are(tmp_path, noise):
    turned, clear = tmp_path / "turned.jpg", tmp_path / "clear.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(12, 10).save(turned, exif=exif)
    noise(12, 10, mode="RGBA").save(clear)
    for path in (turned, clear):
        with Image.open(path) as image:
            (source,) = image_sources(image)
            np.testing.assert_array_equal(pixels(source), pixels(image_sources(path)[0]))
    assert image_sources(turned)[0].open().size == (10, 12)


def test_a_pil_image_that_cannot_be_decoded_is_a_bad_image(tmp_path, noise):
    path = tmp_path / "cut.png"
    noise(80, 60).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    with Image.open(path) as image:
        ((_, found),) = read_images(image_sources([image]))
        assert isinstance(found, BadImage)
        assert found.source == "image_00000"
        ((_, found),) = read_images(image_sources(iter([image])))
        assert isinstance(found, BadImage)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (
            np.zeros((4, 5, 3), np.float32),
            r"float32 with shape \(4, 5, 3\): floats may range over 0 to 1 or over 0 to 255.*"
            r'\(image \* 255\).round\(\).astype\("uint8"\) for 0 to 1, or '
            r'image.round\(\).astype\("uint8"\) for 0 to 255',
        ),
        (np.zeros((4, 5, 3), np.float16), "floats may range"),
        (torch.zeros(3, 4, 5), r"torch tensor of float32.*round\(\).to\(torch.uint8\)"),
        (torch.zeros(3, 4, 5, dtype=torch.bfloat16), "bfloat16.*floats may range"),
        (np.zeros((4, 5, 3), np.uint16), r"image // 257\).astype.*if white is 65535"),
        (np.zeros((4, 5), np.int64), "if its values are 0 to 255"),
        (np.zeros((4, 5), bool), r"astype\(\"uint8\"\) \* 255"),
        (torch.zeros(3, 4, 5, dtype=torch.int32), "torch tensor of int32.*images are uint8"),
        (np.zeros((4, 5, 4), np.uint8), r"\(4, 5, 4\).*drop the alpha channel.*\[..., :3\]"),
        (np.zeros((3, 5, 4), np.uint8), r"if it is \(H, W, 4\), drop.*if it is \(3, H, W\), put"),
        (np.zeros((3, 4, 5), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((4, 5, 1), np.uint8), r"image\[..., 0\]"),
        (np.zeros((1, 4, 5), np.uint8), r"image\[0\]"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"list\(images\)"),
        (np.zeros((0, 5, 3), np.uint8), "it is empty"),
        (np.zeros(7, np.uint8), r"arrays are \(H, W, 3\) or \(H, W\)$"),
        (torch.zeros(6, 5, 3, dtype=torch.uint8), r"permute\(2, 0, 1\)"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"\(4, H, W\).*\[:3\].*\(H, W, 3\).*permute"),
        (torch.zeros(2, 4, 5, 3, dtype=torch.uint8), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(4, 4, 5, dtype=torch.uint8), r"image\[:3\]"),
        (torch.zeros(2, 4, 4, 5, dtype=torch.uint8), r"image\[:, :3\]"),
        (torch.zeros(4, 5, dtype=torch.uint8), r"expand\(3, -1, -1\)"),
        (torch.zeros(1, 4, 5, dtype=torch.uint8), r"expand\(3, -1, -1\)"),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), "it is empty"),
        (torch.zeros(7, dtype=torch.uint8), r"\(N, 3, H, W\)$"),
    ],
)
def test_ambiguous_arrays_are_refused_with_what_was_seen(image, error):
    for images in (image, [image]):
        with pytest.raises(ValueError, match=error):
            image_sources(images)
    with pytest.raises(ValueError, match=error):
        list(image_sources(iter([image])))


def test_the_advice_in_messages_works(array):
    floats = array.astype(np.float32) / 255
    for fixed in (
        (floats * 255).round().astype("uint8"),
        np.concatenate([array, array[..., :1]], -1)[..., :3],
        array.transpose(2, 0, 1).transpose(1, 2, 0),
        torch.from_numpy(array).permute(2, 0, 1),
        (array.astype(np.uint16) * 257 // 257).astype("uint8"),
    ):
        np.testing.assert_array_equal(pixels(image_sources(fixed)[0]), array)
    gray = torch.from_numpy(array[..., 0].copy())
    for fixed in (gray.expand(3, -1, -1), gray[None].expand(3, -1, -1)):
        np.testing.assert_array_equal(pixels(image_sources(fixed)[0], "L"), gray.numpy())


@pytest.mark.parametrize("images", [b"bytes", 3, None, {"a": 1}, [3.5], [[b"x"]]])
def test_what_is_not_an_image_is_refused(images):
    with pytest.raises(TypeError, match=r"images are a path.*not (bytes|int|None|dict|float)"):
        image_sources(images)


def test_one_image_is_converted_for_drawing(array):
    for image in (Image.fromarray(array), array, torch.from_numpy(array).permute(2, 0, 1)):
        np.testing.assert_array_equal(np.asarray(to_image(image)), array)
    with pytest.raises(ValueError, match="one image is needed, not a batch of 2"):
        to_image(torch.zeros(2, 3, 4, 5, dtype=torch.uint8))
    with pytest.raises(TypeError, match="not str"):
        to_image("photo.jpg")


# --- Iterables ---


def test_lists_may_hold_everything(photos, array):
    sources = image_sources([photos, array, Image.fromarray(array), f"{photos}/*.jpg"])
    assert names(sources) == ["a.png", "b.jpg", "c.png", "image_00003", "image_00004", "b.jpg"]
    assert all(isinstance(source, Source) for source in sources)
    paths = np.array([str(photos / "a.png"), str(photos / "b.jpg")])
    assert names(image_sources(paths)) == ["a.png", "b.jpg"]


def test_generators_stay_lazy(photos, array):
    taken = []

    def stream():
        for item in (array, photos, array, photos / "gone.png", array):
            taken.append(item)
            yield item

    sources = iter(image_sources(stream()))
    assert taken == []
    next(sources)
    assert len(taken) == 1
    assert names(sources) == ["a.png", "b.jpg", "c.png", "image_00004", "gone.png", "image_00006"]


def test_a_path_of_a_generator_that_does_not_exist_is_a_bad_image(photos):
    ((source, error),) = read_images(image_sources(iter([photos / "gone.png"])))
    assert source.path == photos / "gone.png"
    assert error.reason == "there is no such file"


def test_a_generator_may_use_one_buffer_for_all(array):
    def stream():
        buffer = np.empty_like(array)
        for value in range(4):
            buffer[:] = value
            yield buffer
            yield buffer[..., 0]

    sources = list(image_sources(stream()))
    assert [int(pixels(source).max()) for source in sources] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_torch_is_not_imported(tmp_path):
    code = (
        "import sys, numpy as np, convnext.data.sources as s\n"
        "s.image_sources([np.zeros((4, 5, 3), np.uint8)])[0].open()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- URLs ---


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        buffer = io.BytesIO()
        Image.new("RGB", (12, 10), "red").save(buffer, "PNG")
        image = buffer.getvalue()
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.server.targets[path.removeprefix("/to/")])
            self.end_headers()
        elif path == "/silent":
            self.server.closing.wait(30)
        elif path == "/drip":
            self.send_response(200)
            self.end_headers()
            while not self.server.closing.wait(0.05):
                self.wfile.write(b"x")
        elif path == "/drip_headers":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
            while not self.server.closing.wait(0.05):
                self.wfile.write(b"x")
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            while not self.server.closing.is_set():
                self.wfile.write(b"x" * 2**16)
        elif path == "/gone":
            self.send_error(404)
        elif path == "/short":
            self._answer(image, len(image) + 5)
        elif path == "/declared":
            self._answer(b"", 2**40)
        else:
            self._answer(b"<html>no</html>" if path == "/page" else image)

    def _answer(self, content, length=None):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    targets: dict[str, str]

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # The client hangs up on purpose.
            super().handle_error(request, client_address)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Server(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.closing = threading.Event()
    server.targets = {
        "image": f"{server.url}/cat.png",
        "loop": f"{server.url}/to/loop",
        "file": "file:///etc/hostname",
        "ftp": "ftp://127.0.0.1/cat.png",
        "data": "data:image/png;base64,AAAA",
    }
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


def fetch_error(url, **options):
    ((source, error),) = read_images(image_sources(url, notice=lambda _: None, **options))
    assert source.name == url
    assert isinstance(error, BadImage), error
    assert error.source == url
    return error.reason


def test_a_url_is_announced_and_fetched_when_opened(server):
    lines = []
    url = f"{server.url}/cat.png?size=3"
    (source,) = image_sources(url, notice=lines.append)
    assert (source.name, source.path, lines) == (url, None, [])
    assert source.open().getpixel((0, 0)) == (255, 0, 0)
    assert lines == [f"fetching {url}"]
    (source,) = image_sources(f"{server.url}/to/image", notice=lines.append)
    assert source.open().size == (12, 10)


def test_a_url_is_announced_on_standard_error_by_default(server, capsys):
    image_sources(f"{server.url}/cat.png")[0].open()
    assert capsys.readouterr() == ("", f"fetching {server.url}/cat.png\n")


def test_what_a_server_may_do_wrong(server):
    assert fetch_error(f"{server.url}/gone") == "the server answered 404 Not Found"
    assert fetch_error(f"{server.url}/page") == "not an image, or a damaged one"
    assert "2 of" not in fetch_error(f"{server.url}/short")
    assert "bytes" in fetch_error(f"{server.url}/short")
    assert "redirect" in fetch_error(f"{server.url}/to/loop")


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_redirects_lead_to_the_web_only(server, scheme):
    reason = fetch_error(f"{server.url}/to/{scheme}")
    assert f"{scheme}:" in reason
    assert "not http or https" in reason


def test_large_content_is_refused(server):
    reason = "more than 64 MB are refused"
    assert fetch_error(f"{server.url}/declared") == f"it has 1.049e+06 MB; {reason}"
    assert fetch_error(f"{server.url}/endless") == f"it is too large; {reason}"
    small = fetch_error(f"{server.url}/cat.png", max_bytes=20)
    assert small.endswith("more than 1.907e-05 MB are refused")


def test_slow_servers_are_given_up(server):
    assert fetch_error(f"{server.url}/silent", timeout=0.2).startswith("the server was silent")
    for path in ("drip", "drip_headers"):
        assert fetch_error(f"{server.url}/{path}", timeout=0.2) == "it took longer than 2 seconds"


def test_a_server_that_does_not_answer(server):
    server.shutdown()
    server.server_close()
    assert fetch_error(f"{server.url}/cat.png").startswith("it cannot be fetched")


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("ftp://example.com/cat.png", "over http and https only"),
        ("file:///etc/hostname", "pass the path instead"),
        ("s3://bucket/cat.png", "over http and https only"),
        ("http:///cat.png", "names no server"),
        (
            "https://user:secret@example.com/cat.png",
            "https://example.com/cat.png: a URL with a user",
        ),
    ],
)
def test_other_urls_are_refused_before_anything_runs(url, error):
    for images in (url, [url]):
        with pytest.raises(ValueError, match=error) as caught:
            image_sources(images)
        assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match=error):
        next(image_sources(iter([url])))


def test_a_drive_is_not_a_scheme():
    assert not is_url("C://photos/a.png")
    assert not is_url(Path("https://example.com/a.png"))
    assert is_url("HTTPS://example.com/a.png")


def test_a_folder_is_read_as_for_training(photos, tmp_path, noise):
    other = tmp_path / "other"
    other.mkdir()
    noise(12, 10).save(other / "linked.png")
    noise(12, 10).save(photos / ".hidden.png")
    (photos / "__MACOSX").mkdir()
    noise(12, 10).save(photos / "__MACOSX" / "a.png")
    (photos / "x.xyz").write_bytes(b"x")
    try:
        (photos / "link").symlink_to(other)
        (other / "back").symlink_to(photos)
        (photos / "broken.png").symlink_to(tmp_path / "nowhere.png")
    except OSError:
        pytest.skip("links need another permission here")
    lines = []
    found = image_sources(photos, notice=lines.append)
    assert names(found) == ["a.png", "b.jpg", "c.png", "broken.png", "linked.png"]
    assert lines == [
        f"files in {photos} that are not images by their ending, left out: 2 (1 .txt, 1 .xyz, "
        f"such as {photos / 'notes.txt'})"
    ]
    with pytest.raises(BadImage, match="there is no such file"):
        found[3].open()


def test_masks_beside_images_are_left_out(tmp_path, noise):
    lines = []
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for i in range(3):
        noise(12, 10, seed=i).save(tmp_path / f"data/images/{i}.png")
        Image.fromarray(np.eye(12, 10, dtype=np.uint8)).save(tmp_path / f"data/masks/{i}_mask.png")
    noise(12, 10, seed=9).save(tmp_path / "data/images/extra.png")
    found = list(image_sources(tmp_path / "data", notice=lines.append))
    assert sorted(Path(source.name).name for source in found) == [
        "0.png",
        "1.png",
        "2.png",
        "extra.png",
    ]
    assert lines[0].endswith(f"left out: 3 (such as {tmp_path / 'data/masks/0_mask.png'})")
    # The masks alone are what was asked for.
    assert len(list(image_sources(tmp_path / "data/masks"))) == 3


@pytest.mark.parametrize("mode", ["I", "F"])
def test_wide_images_in_memory_need_the_range_of_a_model(mode):
    image = Image.new(mode, (4, 3), 100)
    (source,) = image_sources(image)
    with pytest.raises(ValueError, match=f"image_00000 is a PIL image in mode {mode}, whose val"):
        source.open("RGB")
    assert source.open(RangedMode("L", (0.0, 200.0))).getpixel((0, 0)) in (127, 128)
    lazy = next(iter(image_sources(iter([image]))))
    with pytest.raises(ValueError, match="which are different images"):
        lazy.open("L")
