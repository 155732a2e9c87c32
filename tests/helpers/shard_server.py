"""Shards, and a local server that fails on request."""

from __future__ import annotations

import io
import tarfile
import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from convnext.data.shards import store


@pytest.fixture
def png(noise):
    """A function seed -> the bytes of a PNG of 12 x 10 pixels."""

    def make(seed):
        buffer = io.BytesIO()
        noise(12, 10, seed=seed).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def write_tar():
    """A function (path, [(name, bytes)]) -> path of a tar with these files."""

    def write(path, files, **options):
        with tarfile.open(path, "w", **options) as tar:
            for name, data in files:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


def patience(fault: int | float | None) -> float:
    """The timeout in seconds for a test of this fault.

    It is short only if the server is silent: on a busy machine an answer takes long.
    """
    return 1.0 if isinstance(fault, float) else 30.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # A full queue drops connections, which then take a second.


class Server:
    """A web server for a folder that fails according to `faults`: {path: [fault, ...]}.

    A fault is a status, or a number of seconds to be silent for. One is used per request; the last
    one stays.
    """

    def __init__(self, folder):
        self.folder = folder
        self.faults = {}
        self.declares_length = True
        self.requests = Counter()
        self.closing = threading.Event()
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=str(folder))

            def do_GET(self):
                name = self.path.strip("/")
                outer.requests[name] += 1
                left = outer.faults.get(name, [])
                fault = left[0] if left else None
                if len(left) > 1:
                    left.pop(0)
                if isinstance(fault, float):
                    outer.closing.wait(fault)
                elif fault is not None:
                    self.send_error(fault)
                else:
                    super().do_GET()

            def send_header(self, keyword, value):
                if outer.declares_length or keyword != "Content-Length":
                    super().send_header(keyword, value)

            def log_message(self, *arguments):
                pass

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def serve(monkeypatch):
    """A function folder -> `Server`; pauses between retries are short."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(store, "BACKOFF", 0.01)
    servers = []

    def start(folder):
        servers.append(Server(folder))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def impatient(monkeypatch):
    """A function (file name, seconds): only requests of this file have so short a timeout.

    A healthy answer may take long on a busy machine, so the others keep theirs.
    """

    def shorten(name, seconds):
        usual = store.Store._filesystem

        def filesystem(self, url):
            if url.endswith(f"/{name}"):
                return store.open_filesystem(url, timeout=seconds)
            return usual(self, url)

        monkeypatch.setattr(store.Store, "_filesystem", filesystem)

    return shorten


@pytest.fixture
def loader(tmp_path):
    """Loader settings with a separate cache, for a local server."""
    from convnext.tasks.classification.recipe import ClassificationLoader

    return ClassificationLoader(shard_cache=str(tmp_path / "cache"), retries=3, timeout=5.0)


@pytest.fixture
def make_shards(tmp_path, png, write_tar):
    """A function that writes shards of different images: (sizes, val_sizes) -> folder."""

    def make(sizes=(7, 5, 9, 6, 8, 7, 6, 8), val_sizes=(6, 4), name="shards"):
        root = tmp_path / name
        root.mkdir()
        seed = 0
        for part, counts in (("train", sizes), ("val", val_sizes)):
            for number, count in enumerate(counts):
                files = []
                for _ in range(count):
                    files.append((f"{seed:06d}.png", png(seed)))
                    files.append((f"{seed:06d}.cls", str(seed % 2).encode()))
                    seed += 1
                write_tar(root / f"{part}-{number:06d}.tar", files)
        (root / "classes.txt").write_text("cat\ndog\n")
        return root

    return make
