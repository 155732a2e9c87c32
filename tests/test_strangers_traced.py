"""Under `strace`, files from others change nothing outside, open no connection and run no program.

An audit hook sees what Python does, not what the libraries below do. Needs `strace`:
`pytest -m slow tests/test_strangers_traced.py`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="strace is a tool of Linux"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)")
# A path, with the folder that it is relative to where strace names that.
PATH = re.compile(r'(?:<([^">]*)>, )?"((?:[^"\\]|\\.)*)"')
CHANGES = re.compile(
    r"(creat|mkdir|mknod|unlink|rmdir|rename|link|symlink|truncate|l?chown|f?chmod|chmod"
    r"|l?setxattr|l?removexattr|utimes?|futimesat|utimensat|mount)(at)?2?\b"
)
WRITES = re.compile(r"\bO_(WRONLY|RDWR|CREAT|TRUNC|TMPFILE)\b")
# It failed because of what is there, not because it was not allowed.
NOTHING_DONE = re.compile(r"= -1 (ENOENT|EEXIST|ENOTDIR|EISDIR|ENOTEMPTY)\b")
LOCAL = re.compile(r"\b(AF_UNIX|AF_NETLINK)\b")
# The last are locks between the threads and processes of one program.
DEVICES = ("/dev/null", "/dev/tty", "/dev/zero", "/dev/shm/sem.")
# Python's `ctypes` asks for the list of libraries, on behalf of a library that is imported.
LIBRARIES = '"/sbin/ldconfig", ["/sbin/ldconfig", "-p"]'


def seen(trace: str, work: Path) -> Iterator[str]:
    """Yield the calls that change something outside of a folder, connect, or run a program."""
    for line in trace.splitlines():
        call = CALL.match(line)
        if call is None or NOTHING_DONE.search(line):
            continue
        name, rest = call.groups()
        if name in ("socket", "socketpair", "connect", "bind", "sendto", "sendmsg"):
            if re.search(r"\bAF_\w+", rest) and not LOCAL.search(rest):
                yield line
        elif name in ("execve", "execveat"):
            if LIBRARIES not in rest:
                yield line
        elif CHANGES.fullmatch(name) or (name.startswith("open") and WRITES.search(rest)):
            paths = [place(*found, work) for found in PATH.findall(rest)]
            if name.startswith("symlink"):
                paths = paths[1:]  # The first is only text.
            if not all(is_below(path, work) or str(path).startswith(DEVICES) for path in paths):
                yield line


def place(base: str, text: str, work: Path) -> Path:
    """Return the path of a call, without the links in its folders."""
    name = os.fsdecode(ast.literal_eval(f'b"{text}"'))
    path = os.path.join(base or str(work), name)
    return Path(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def is_below(path: Path, folder: Path) -> bool:
    return path == folder or folder in Path(os.path.normpath(path)).parents


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of hostile files; made before the trace begins."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("traced").resolve()
    run([], "make", folder)
    return folder


def run(launcher: list[str], what: str, root: Path) -> str:
    """Run a step of `hostile` in `work`, and return what it printed; its caches are outside."""
    work, outside = root / "work", root / "outside"
    caches = str(outside / f"cache-of-{what}")
    folders = [str(Path(hostile.__file__).parent), os.environ.get("PYTHONPATH", "")]
    own = {"HOME": str(outside), "PYTHONPATH": os.pathsep.join(folders)}
    own |= {"TMPDIR": str(work), "XDG_CACHE_HOME": caches, "OMP_NUM_THREADS": "1"}
    own |= {"MPLCONFIGDIR": caches, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*launcher, sys.executable, hostile.__file__, what, str(root)],
        cwd=work if work.is_dir() else root,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def traced(what: str, root: Path) -> tuple[str, list[str]]:
    """Run a step under strace; return what it printed and what was seen, less its own start."""
    log = root / f"{what}.trace"
    options = ["-f", "-qq", "-y", "-s", "4096", "-e", "trace=%file,%network", "-e", "signal=none"]
    if subprocess.run(["strace", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not allowed to trace here")
    printed = run(["strace", *options, "-o", str(log)], what, root)
    start, *found = seen(log.read_text(encoding="utf-8", errors="surrogateescape"), root / "work")
    assert "execve" in start
    assert hostile.__file__ in start
    return printed, found


def listing(folder: Path) -> list[tuple[str, int, int]]:
    found = sorted(folder.rglob("*"))
    return [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in (folder, *found)]


def test_hostile_files_change_nothing_and_ask_nobody(root: Path) -> None:
    before = listing(root / "outside")
    printed, found = traced("open", root)
    assert found == []
    assert listing(root / "outside") == before
    expected = json.loads((root / "commands.json").read_text())
    ended = json.loads(printed.splitlines()[-1])
    assert ended.keys() == expected.keys()
    for name, (_, is_read) in expected.items():
        code, text = ended[name]
        assert (code == 0) == is_read, f"{name}: {text}"
        assert "Traceback" not in text, f"{name}: {text}"


def test_the_trace_sees_what_leaves_the_folder(root: Path) -> None:
    _, found = traced("break", root)
    names = [CALL.match(line).group(1) for line in found]  # type: ignore[union-attr]
    assert [name for name in names if name not in ("vfork", "clone")] == [
        *("openat", "mkdir", "unlink", "socket", "execve"),
    ]
