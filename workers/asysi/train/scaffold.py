"""`asysi train new`: writes a project from the files of `template/`."""

from collections.abc import Iterator
from pathlib import Path

from asysi.contract.errors import ConfigError

TASKS = ("digits", "text")
_TEMPLATE = Path(__file__).parent / "template"
_SUFFIX = ".tmpl"
"""Suffix of a project's Python files here, so that tools do not treat them as modules of this package."""


def project_files(task: str) -> dict[str, str]:
    """Return the files of a project by their path in it; files of the task replace the common ones.

    Raises:
        ConfigError: there is no such task.
    """
    if task not in TASKS:
        raise ConfigError(f"--task {task}: there is no such task; take {' or '.join(TASKS)}")
    files: dict[str, str] = {}
    for name in ("common", task):
        folder = _TEMPLATE / name
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            files[str(file.relative_to(folder)).removesuffix(_SUFFIX)] = file.read_text(encoding="utf-8")
    return dict(sorted(files.items()))


def write_project(folder: Path, task: str) -> list[str]:
    """Write a project; returns the next steps as lines.

    Raises:
        ConfigError: there is no such task, or the folder is not empty.
    """
    files = project_files(task)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: name a folder that does not exist yet")
        for name, text in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            if file.suffix == ".sh":
                file.chmod(0o755)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from error
    return list(_next(folder, len(files)))


def _next(folder: Path, count: int) -> Iterator[str]:
    yield f"{folder}: {count} files"
    yield f"next: cd {folder} && sh train.sh cpu"
