"""The structure of the package: rules that import-linter cannot express."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import grimp
import pytest

from convnext.tasks import task_folders

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "convnext"
TASKS = task_folders()

MAX_MODULES = 236
MAX_ROOT_MODULES = 6
# Lines of a function's body from which its docstring must give a reason: "Long because ...".
MAX_LINES = 60

# Where a task may be named outside tasks/: the choices of the command line.
CHOICES = {"api/training.py"}
# Modules that still import each other in a circle and should not.
TO_BE_OPENED: list[list[str]] = []


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        yield name, ast.parse(path.read_text(encoding="utf-8"), name)


def test_the_names_of_tasks_stay_in_their_folder() -> None:
    found: dict[str, list[int]] = {}
    for name, tree in sources():
        for node in ast.walk(tree):
            is_own = isinstance(node, ast.Constant) and name.startswith(
                f"tasks/{TASKS.get(str(node.value), '?')}/"
            )
            if isinstance(node, ast.Constant) and node.value in TASKS and not is_own:
                found.setdefault(name, []).append(node.lineno)
    assert found.keys() == {"tasks/__init__.py", *CHOICES}, found


def paths_of(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield every imported module and every text of one word, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Constant) and " " not in str(node.value):
            yield str(node.value), node.lineno


def test_the_folders_of_tasks_are_imported_by_their_tasks_only() -> None:
    """Imports inside functions and for type checkers count, and texts that name a module too."""
    found: dict[str, list[int]] = {}
    for name, tree in sources():
        for path, line in paths_of(tree):
            for folder in TASKS.values():
                is_named = f"tasks.{folder}." in f"{path}." or path.startswith(f"{folder}.")
                if is_named and not name.startswith(f"tasks/{folder}/"):
                    found.setdefault(name, []).append(line)
    assert found.keys() == {"tasks/__init__.py"}, found


def test_modules_are_few() -> None:
    names = [name for name, _ in sources()]
    assert len(names) <= MAX_MODULES
    at_root = [n for n in names if "/" not in n and n not in ("__init__.py", "__main__.py")]
    assert len(at_root) <= MAX_ROOT_MODULES, at_root


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function's body, without its signature and its docstring."""
    body = function.body[int(ast.get_docstring(function) is not None) :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_long_functions_say_why() -> None:
    found = [
        (name, function, num_lines(function))
        for name, tree in sources()
        for function in functions(tree)
    ]
    long = [
        (name, f.name, lines)
        for name, f, lines in found
        if lines > MAX_LINES and "Long because" not in (ast.get_docstring(f) or "")
    ]
    assert long == []
    assert max(lines for _, _, lines in found) > MAX_LINES / 2, "the search finds nothing"


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that all reach each other (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == order[module]:
            start = stack.index(module)
            group, stack[start:] = stack[start:], []
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(edges):
        if module not in order:
            visit(module)
    return found


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set[str]()}
    assert circles(edges) == [["a", "b", "c"]]


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count too, since circles hide there."""
    graph = grimp.build_graph("convnext", exclude_type_checking_imports=True, cache_dir=None)
    edges = {m: set(graph.find_modules_directly_imported_by(m)) for m in graph.modules}
    assert sum(map(len, edges.values())) > 500
    found = circles(edges)
    assert [group for group in found if group not in TO_BE_OPENED] == []


# Tests of each task that run in a copy that lacks another one: data, `auto`, network, loss, metric.
TESTS = {
    "classify": (
        "classification/robustness/test_table.py",
        "classification/test_auto.py",
        "classification/test_data.py",
        "classification/test_inspect.py",
        "classification/test_metric.py",
        "classification/test_mix.py",
        "classification/test_shards.py",
    ),
    "segment": (
        "segmentation/test_auto.py",
        "segmentation/test_data.py",
        "segmentation/test_heads.py",
        "segmentation/test_loss.py",
        "segmentation/test_metric.py",
        "segmentation/test_predict.py",
    ),
    "detect": (
        "detection/data/test_convert.py",
        "detection/data/test_fix.py",
        "detection/model/test_boxes.py",
        "detection/model/test_training.py",
        "detection/test_auto.py",
        "detection/test_metric.py",
    ),
}
ONE_FORWARD = """
import torch, convnext
from convnext.api.settings import full_settings, make_recipe, short_names
from convnext.recipes.recipe import all_settings, flatten
from convnext.tasks import task_class, task_names
left = set(task_names())
assert {gone!r} not in left and len(left) == {count} - 1, left
assert convnext.list_models()
assert set(short_names().values()) <= set(all_settings())
for task, value in {{"classify": "class_folders", "segment": "coco", "detect": "coco"}}.items():
    if task in left:
        recipe = make_recipe(None, {{"task": task, **full_settings({{"layout": value}})}})
        assert value in dict(flatten(recipe)).values(), task
for task in sorted(left):
    kind = task_class(task)
    assert kind.name == task
    model = convnext.create_model(kind.default_prefix() + "convnext_atto", num_classes=3).eval()
    image = torch.zeros(3, 64, 64)
    with torch.no_grad():
        model([image]) if kind.name == "detect" else model(image[None])
"""


def copy_without(task: str, folder: Path) -> Path:
    """Copy the sources and remove one task: its folder and its line."""
    source = folder / "src"
    shutil.copytree(PACKAGE, source / "convnext", ignore=shutil.ignore_patterns("__pycache__"))
    tasks = source / "convnext" / "tasks"
    shutil.rmtree(tasks / TASKS[task])
    lines = (tasks / "__init__.py").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not re.match(rf'    "{task}": ', line)]
    assert len(kept) == len(lines) - 1
    (tasks / "__init__.py").write_text("".join(kept), encoding="utf-8")
    return source


def run_in(source: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


# What a command says if no task can do its work.
COMMANDS = """
import sys
from convnext.cli import main
left = {left!r}
print("commands", file=sys.stderr)
for gone, argv in {{
    "classify": ["evaluate", "photos", "--robustness"],
    "detect": ["data", "objects", "--to", "coco", "--output", "absent"],
}}.items():
    assert main(argv) == 2
    print(gone not in left, file=sys.stderr)
"""


@pytest.mark.parametrize("task", TASKS)
def test_a_package_without_a_task_builds_the_networks_of_the_others_and_says_what_is_gone(
    task: str, tmp_path: Path
) -> None:
    """One process for both, because it imports torch."""
    left = sorted(TASKS.keys() - {task})
    code = ONE_FORWARD.format(gone=task, count=len(TASKS)) + COMMANDS.format(left=left)
    printed = run_in(copy_without(task, tmp_path), ["-c", code]).stderr
    lines = printed.partition("commands\n")[2].splitlines()
    answers = list(zip(lines[1::2], lines[::2], strict=True))
    assert [gone for gone, _ in answers].count("True") == (0 if task == "segment" else 1)
    assert len(answers) == 2
    for gone, answer in answers:
        assert ("none of the tasks" in answer) == (gone == "True"), answer


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_package_without_a_task_passes_the_tests_of_the_others(task: str, tmp_path: Path) -> None:
    source = copy_without(task, tmp_path)
    others = [file for other, files in TESTS.items() if other != task for file in files]
    tests = [f"tests/tasks/{file}" for file in others]
    assert all((ROOT / test).is_file() for test in tests)
    # This one asks for settings of another task.
    left_out = ["-k", "not test_what_means_nothing_is_refused", "-m", "not slow"]
    run_in(source, ["-m", "pytest", "-q", *left_out, "-p", "no:cacheprovider", *tests])
