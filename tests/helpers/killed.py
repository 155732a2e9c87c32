"""Commands that are killed at file operations of their own, in processes forked from this one.

A fork starts in milliseconds, so that many kills take minutes. Forks of a process that has computed
gradients may hang: `python killed.py CASE FOLDER KILLS` starts a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# The audit events of operations that change files.
CHANGES = {
    f"os.{name}"
    for name in ("rename", "remove", "mkdir", "rmdir", "truncate", "link", "symlink", "chmod")
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code; -9 if it was killed."""
    operations: int
    """The number of its file operations, if it was not killed."""
    printed: str


def run(argv: Sequence[str], folder: Path, *, kill_at: int | None = None) -> Ended:
    """Run a command in a fork of this process, with `folder` as its working directory.

    Args:
        argv: The arguments of `convnext`.
        folder: Only operations below it count.
        kill_at: The number of the file operation before which the process is killed.
    """
    log = folder.with_name(f"{folder.name}.log")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _command(argv, folder, kill_at, log, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        counted = pipe.read()
    _, status = os.waitpid(pid, 0)
    printed = log.read_text(encoding="utf-8", errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), int(counted or b"0"), printed)


def _command(
    argv: Sequence[str], folder: Path, kill_at: int | None, log: Path, writer: int
) -> None:
    """Run a command in this process, which ends with it."""
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for stream in (1, 2):
            os.dup2(handle, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(folder)
        root, count = str(folder), 0

        def note(event: str, given: tuple[object, ...]) -> None:
            nonlocal count
            if event == "open":
                path, _, flags = given
                is_write = isinstance(flags, int) and flags & WRITES
                counts = bool(is_write) and isinstance(path, str) and _is_below(path, root)
            else:
                # Trees are removed by names relative to a handle.
                path = os.fsdecode(given[0]) if isinstance(given[0], str | bytes) else ""
                counts = event in CHANGES and (not os.path.isabs(path) or _is_below(path, root))
            if counts:
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(note)
        from convnext.cli import main

        code = main(argv)
        os.write(writer, str(count).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _is_below(path: str, root: str) -> bool:
    return os.path.abspath(path).startswith(root + os.sep)


Digest = dict[str, object]


def tensors_and_metrics(folder: Path) -> Digest:
    """Return all tensors of a run, its metrics and scores, as values that can be compared."""
    from cli_runs import learned

    tensors, rows = learned(folder / "run")
    found: Digest = {name: hash_of(tensor.numpy().tobytes()) for name, tensor in tensors.items()}
    evaluation = json.loads((folder / "run/evaluation.json").read_text(encoding="utf-8"))
    found["rows"], found["evaluation"] = rows, {**evaluation, "source": ""}
    found["report"] = (folder / "run/report.html").is_file()
    found["left"] = hidden(folder / "run")
    return found


def outcomes(folder: Path) -> Digest:
    """Return the outcome of every run of a study, without times."""
    found: Digest = {}
    for path in sorted(folder.glob("study/runs/**/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[str(path.relative_to(folder))] = (result["state"], result.get("score"))
    found["page"] = (folder / "study/index.html").is_file()
    return found


def files(folder: Path) -> Digest:
    """Return a hash of every file that is there, hidden ones included, without measurements."""
    return {
        str(path.relative_to(folder)): hash_of(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".proof.json")
    }


def hidden(folder: Path) -> list[str]:
    """Return the temporary files that are left in a run folder."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob(".*"))
    return [name for name in names if name != ".convnext-run"]


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


TINY = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16]}
COMMON = (
    *("--schedule.steps", "4", "--run.eval_every", "1", "--run.save_every", "1"),
    *("--run.precision", "fp32", "--network.changes", json.dumps(TINY)),
)
SETTINGS = {
    "classify": ("--model", "convnext_atto", "--network.stem_stride", "1", "--input.image_size"),
    "segment": (
        *("--model", "upernet_convnext_atto", "--segment.channels", "8", "--optim.batch_size"),
        *("8", "--segment.crop"),
    ),
    "detect": (
        *("--model", "mask_rcnn_convnext_atto", "--detect.channels", "8", "--detect.fc_dim", "16"),
        *("--detect.num_proposals", "20", "--optim.batch_size", "4", "--input.image_size"),
    ),
}
SIZES = {"classify": "8", "segment": "40", "detect": "64"}


def train(task: str, data: str) -> tuple[str, ...]:
    """Return a command that trains a tiny network, or resumes that."""
    batch = ("--optim.batch_size", "480") if task == "classify" else ()
    own = (*SETTINGS[task], SIZES[task], *batch)
    return ("train", "--data", data, *own, *COMMON, "--output", "run", "--resume")


def cases(inputs: Path) -> dict[str, tuple[Sequence[str], Callable[[Path], Digest]]]:
    """Return a command by name, and what must be the same after it; makes its inputs."""
    from shapes import write_shapes
    from small_exports import small_checkpoint, small_photos
    from small_objects import coco_squares

    shapes, squares = str(inputs / "shapes"), str(inputs / "squares")
    write_shapes(Path(shapes))
    coco_squares(Path(squares))
    checkpoint = small_checkpoint(inputs / "net.safetensors")
    photos = str(small_photos(inputs / "photos"))
    tiny = json.dumps(TINY)
    study = (
        *("compare", "convnext_atto", "convnext_femto", "--data", "digits", "--output", "study"),
        *("--jobs", "1", "--no-speed", "--schedule.epochs", "1", "--run.precision", "fp32"),
        *("--network.changes", tiny, "--input.image_size", "8", "--network.stem_stride", "1"),
    )
    export = ("export", checkpoint, "--format", "onnx", "--output", "net.onnx", "--images", photos)
    return {
        "classify": (train("classify", "digits"), tensors_and_metrics),
        "segment": (train("segment", shapes), tensors_and_metrics),
        "detect": (train("detect", squares), tensors_and_metrics),
        "study": (study, outcomes),
        "convert": (("convert", checkpoint, "other.safetensors", "--to", "timm"), files),
        "to-coco": (("data", squares, "--to", "coco", "--output", "coco"), files),
        "export": ((*export, "--force"), files),
    }


def is_complete(ended: Ended) -> bool:
    """Whether a command found nothing left to do.

    A conversion that was killed when all was written leaves a complete folder, which is refused.
    """
    return ended.code == 0 or "exists and is not empty" in ended.printed


def kill_often(name: str, root: Path, *, kills: int, seed: int = 0) -> dict[str, object]:
    """Kill a command at random operations, repeat it to its end, and compare what it wrote.

    Returns:
        The number of kills and of operations, and a line for every loss.
    """
    inputs = root / "inputs"
    inputs.mkdir(parents=True)
    command, digest = cases(inputs)[name]
    work = root / "work"
    work.mkdir()
    whole = run(command, work)
    if whole.code != 0:
        raise RuntimeError(f"{name} ended with {whole.code}: {whole.printed}")
    expected = digest(work)
    rng, done, losses = random.Random(f"{name} {seed}"), 0, []
    while done < kills:
        shutil.rmtree(work)
        work.mkdir()
        at = []
        # A third of the repetitions is killed too.
        while done < kills and (not at or rng.random() < 1 / 3):
            at.append(rng.randint(1, whole.operations))
            ended = run(command, work, kill_at=at[-1])
            if is_complete(ended):
                at.pop()
                break
            done += 1
            if ended.code != -signal.SIGKILL:
                losses.append(f"killed at {at[:-1]}, ended with {ended.code}: {ended.printed}")
        ended = run(command, work)
        found = digest(work) if is_complete(ended) else {}
        if not is_complete(ended):
            losses.append(f"killed at {at}, ended with {ended.code}: {ended.printed[-2000:]}")
        elif found != expected:
            different = [k for k in expected.keys() | found if expected.get(k) != found.get(k)]
            values = "; ".join(f"{k}: {found.get(k)}"[:300] for k in sorted(different)[:5])
            losses.append(f"killed at {at}, other {values}")
    return {"case": name, "kills": done, "operations": whole.operations, "losses": losses}


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    # What every fork needs is imported once.
    import convnext.api.model
    import convnext.reports.report
    import convnext.training.run  # noqa: F401

    print(json.dumps(kill_often(sys.argv[1], Path(sys.argv[2]), kills=int(sys.argv[3]))))
