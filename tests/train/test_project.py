"""The projects that `asysi train new` writes: examples, documents, sources and their own tests."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asysi.contract.errors import ConfigError
from asysi.train.scaffold import TASKS, project_files, write_project
from asysi.train.sources import read_sources, render_sources, tasks_of

ROOT = Path(__file__).parents[2]
HEADINGS = (Path(__file__).parent / "tech_spec_headings.txt").read_text().splitlines()


@pytest.mark.parametrize("task", TASKS)
def test_the_example_is_what_the_command_writes(task: str) -> None:
    """examples/train-* are projects of `asysi train new`, file by file."""
    folder = ROOT / f"examples/train-{task}"
    files = project_files(task)
    ignored = ("data/", "runs/")
    there = {
        name
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".pytest_cache" not in path.parts
        and not (name := str(path.relative_to(folder))).startswith(ignored)
    }  # fmt: skip
    assert there == set(files)
    assert all((folder / name).read_text() == text for name, text in files.items())


@pytest.mark.parametrize("task", TASKS)
def test_the_specification_has_every_section_and_no_gap(task: str) -> None:
    """TECH_SPEC.md has the committed headings, and no document has a placeholder or a dead link."""
    files = project_files(task)
    headings = re.findall(r"^##+ .*", re.sub(r"```.*?```", "", files["TECH_SPEC.md"], flags=re.S), re.M)
    assert headings == HEADINGS
    for name in [name for name in files if name.endswith(".md")]:
        assert not re.search(r"<[^!>/]*>|YYYY|XXX|TODO|TBD", files[name]), name
        for link in re.findall(r"\]\(([^)#]+)\)", files[name]):
            assert os.path.normpath(Path(name).parent / link) in files, f"{name}: {link}"


@pytest.mark.parametrize("task", TASKS)
def test_tables_and_tasks_agree_with_the_inventory(task: str, tmp_path: Path) -> None:
    """Drift between docs/sources.yaml, TECH_SPEC.md and the tasks is found, and mended by the command."""
    write_project(tmp_path / "p", task)
    assert render_sources(tmp_path / "p", check=True) == []
    inventory = tmp_path / "p/docs/sources.yaml"
    inventory.write_text(inventory.read_text().replace("effort_days: 0.5", "effort_days: 9", 1))
    assert render_sources(tmp_path / "p", check=True) == ["TECH_SPEC.md", "docs/tasks.md", "docs/tasks.json"]
    render_sources(tmp_path / "p")
    assert render_sources(tmp_path / "p", check=True) == []
    tasks = json.loads((tmp_path / "p/docs/tasks.json").read_text())
    assert tasks == list(tasks_of(read_sources(tmp_path / "p")))
    assert 9 in [task["days"] for task in tasks]
    assert set(tasks[0]) == {"target", "source", "reuse", "days", "risks", "licence action"}


def test_a_licence_that_nothing_is_said_about_is_refused(tmp_path: Path) -> None:
    """Each source with a licence needs a decision about it."""
    write_project(tmp_path / "p", "digits")
    inventory = tmp_path / "p/docs/sources.yaml"
    inventory.write_text(inventory.read_text().partition("licenses:")[0])
    with pytest.raises(ConfigError, match=r"licenses has no entry for S1 \(BSD-3-Clause\)"):
        read_sources(tmp_path / "p")


def test_a_folder_with_files_is_not_written_to(tmp_path: Path) -> None:
    """`asysi train new` refuses a folder that is not empty, and a task that does not exist."""
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        write_project(tmp_path, "digits")
    with pytest.raises(ConfigError, match="take digits or text"):
        write_project(tmp_path / "new", "sums")


def own_tests(folder: Path, *selected: str) -> "subprocess.CompletedProcess[str]":
    """Run a project's tests in its folder."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selected]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_digits_project_passes_its_own_tests(digits: Path, tmp_path: Path) -> None:
    """`python3 -m pytest` passes in a project that was just written."""
    shutil.copytree(digits, tmp_path / "digits")
    done = own_tests(tmp_path / "digits")
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.mark.long
def test_the_text_project_passes_its_own_tests(tmp_path: Path) -> None:
    """The same for the text project."""
    write_project(tmp_path / "text", "text")
    done = own_tests(tmp_path / "text")
    assert done.returncode == 0, done.stdout
