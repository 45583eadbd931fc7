"""Continuing an unfinished run: whether it is possible, from which attempt, and what has changed."""

import sys
from pathlib import Path

import yaml
from pydantic import ValidationError

from asysi.contract.errors import ConfigError
from asysi.contract.identity import FolderContent, Identity, identity_of, inspect_output, spec_changes
from asysi.contract.runtime import EXPERIMENT_FILE
from asysi.contract.spec import ScanExperiment


def continued(folder: Path, experiment: ScanExperiment) -> int:
    """Return the next attempt number in a directory, 0 if there is no run to continue, and print a message.

    Raises:
        ConfigError: the run in the directory is finished, or belongs to another experiment.
    """
    found, own = inspect_output(folder), identity_of(experiment)
    if found.finished:
        raise ConfigError(
            f"{folder} holds a finished run, so there is nothing to continue: replace it with --overwrite, "
            "or choose another folder with --output"
        )
    before = found.identity or _stated(folder)
    if before is None:
        if found.begun:
            raise ConfigError(
                f"{folder} holds results, but neither identity.json nor {EXPERIMENT_FILE} identifies them: "
                "choose another folder with --output"
            )
        _say(f"there is no run to continue in {folder}: starting a new one")
        return 0
    notes = _compared(folder, before, own)
    first = _next(found)
    _say(f"continuing the run in {folder} with attempt {first}{notes}")
    return first


def _compared(folder: Path, before: Identity, own: Identity) -> str:
    """Return a note on spec changes that do not affect the results."""
    if (before.namespace, before.name) != (own.namespace, own.name):
        raise ConfigError(
            f"{folder} holds a run of {before.namespace}/{before.name}, not of {own.namespace}/{own.name}: "
            "choose another folder with --output"
        )
    content, others = spec_changes(before, own)
    if content:
        raise ConfigError(
            f"the run in {folder} had another {', '.join(content)}, and its results would be of two specs: "
            "undo the change, or start over with --overwrite"
        )
    return f"; changed since: {', '.join(others)}" if others else ""


def _next(found: FolderContent) -> int:
    """Return the next attempt number: above 0 if there is anything to resume from."""
    return max(found.attempts, int(found.begun))


def _stated(folder: Path) -> Identity | None:
    """Return the identity of a run that predates identity files, from its experiment file."""
    try:
        tree = yaml.safe_load((folder / EXPERIMENT_FILE).read_bytes())
        return identity_of(ScanExperiment.model_validate(tree))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder / EXPERIMENT_FILE} cannot be read: {str(error).splitlines()[0]}"
        ) from error


def _say(text: str) -> None:
    print(text, file=sys.stderr)
