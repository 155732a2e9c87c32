"""The project files: workflows, issue forms, citation, hooks, pinned versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import check_jsonschema
import pytest
import yaml
from click.testing import CliRunner
from pre_commit.commands.validate_config import validate_config

import convnext

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
CONFIG = GITHUB / "ISSUE_TEMPLATE" / "config.yml"
FORMS = sorted(set((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) - {CONFIG})


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("custom.github-workflows-require-timeout", WORKFLOWS),
        ("vendor.github-issue-forms", FORMS),
        ("vendor.github-issue-config", [CONFIG]),
        ("vendor.citation-file-format", [ROOT / "CITATION.cff"]),
    ],
)
def test_files_follow_their_schema(schema: str, paths: list[Path], tmp_path: Path) -> None:
    assert paths
    check = ["--builtin-schema", schema]  # The package has these schemas.
    checked = CliRunner().invoke(check_jsonschema.main, [*check, *map(str, paths)])
    assert checked.exit_code == 0, checked.output
    # The check must refuse a wrong file.
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("jobs: {a: {}}\nbody: 1\nblank_issues_enabled: 3\n", encoding="utf-8")
    assert CliRunner().invoke(check_jsonschema.main, [*check, str(wrong)]).exit_code == 1


def test_ci_runs_everywhere() -> None:
    job = read(GITHUB / "workflows" / "ci.yml")["jobs"]["checks"]
    matrix = job["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "classifiers"
    ]
    versions = [c.split(" :: ")[2] for c in classifiers if re.search(r":: 3\.\d+$", c)]
    assert matrix["python"] == versions
    assert job["defaults"]["run"]["shell"] == "bash"
    assert job["steps"][-1]["run"] == ".ci/run"


def test_issue_forms_have_distinct_names() -> None:
    assert [form.stem for form in FORMS] == ["bug", "feature", "misread_data"]
    assert len({read(form)["name"] for form in FORMS}) == len(FORMS)
    for form in FORMS:
        ids = [part["id"] for part in read(form)["body"] if "id" in part]
        assert len(ids) == len(set(ids))


def test_citation_names_this_version_and_the_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert str(citation["version"]) == convnext.__version__
    assert citation["license"] == "MIT"
    (paper,) = citation["references"]
    assert paper["title"] == "A ConvNet for the 2020s"
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Liu", "Mao", "Wu", "Feichtenhofer", "Darrell", "Xie"]


def test_hooks_run_the_checks_of_ci() -> None:
    config = ROOT / ".pre-commit-config.yaml"
    assert validate_config([str(config)]) == 0
    (repository,) = read(config)["repos"]
    assert repository["repo"] == "local"  # A commit downloads nothing.
    hooks = {hook["entry"] for hook in repository["hooks"]}
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert hooks == {line.removesuffix(" &") for line in lines if line.startswith(".venv/bin/")}


def test_constraints_pin_everything_that_is_asked_for() -> None:
    """Every direct requirement of the package and its development extras has one version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {
        re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
        for requirement in (
            *project["dependencies"],
            *extras["dev"],
            *extras["docs"],
            *extras["export"],
        )
    } - {"convnext"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert wanted <= pinned
    assert all(line.startswith("#") or "==" in line for line in lines)
