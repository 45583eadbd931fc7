"""Makes the project's package importable, whatever folder pytest is started in."""

import sys
from pathlib import Path

import pytest

from asysi.train.project import Project, open_project

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))


@pytest.fixture(scope="session")
def project() -> Project:
    """Return the project as `config.yaml` states it, with its tables."""
    opened = open_project(FOLDER)
    opened.make_data()
    return opened


@pytest.fixture(scope="session")
def short() -> Project:
    """Return the project with 64 rows, two epochs of eight steps, and no more than it needs."""
    settings = ["debug=true", "train.threads=1", "tensorboard=false", "eval.thresholds=[]"]
    settings += ["train.batch_size=8", "train.schedule.warmup_steps=0"]
    opened = open_project(FOLDER, settings=settings)
    opened.make_data()
    return opened
